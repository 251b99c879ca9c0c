"""The dense network: an ONNX Runtime session.

It maps inputs to a logit, and knows nothing of ids, tables or calibration. Next stop: `pipeline.model.model`.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any, Literal

import onnxruntime

from pipeline.arrays import F32
from pipeline.errors import BundleError
from pipeline.inputs import ARRAYS, KEPT_ROWS, REQUEST, DenseInputs, Layout

__all__ = ["Network", "RunStop"]


class Network:
    """Loaded network. `run` may be called from several threads at once.

    Args:
        path: dense.onnx or context.onnx, already checked by `pipeline.bundle.graph.check_graph`.
        layout: of its inputs: full, or split for context.onnx.
        linear: whether the network has a weight per id.
        threads: of one run (intra-op); each session has its own pool.
        device: `cuda` needs the CUDA provider; `auto` uses it where there is a GPU.

    Raises:
        BundleError: ONNX Runtime cannot load it.
    """

    def __init__(
        self,
        path: Path,
        layout: Layout,
        *,
        linear: bool,
        threads: int = 1,
        device: Literal["auto", "cpu", "cuda"] = "auto",
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = (
            4  # an error is raised as well, and its text, which names nodes, is then shown as text
        )
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        providers: list[Any] = ["CPUExecutionProvider"]
        if device == "cuda" or (device == "auto" and _has_cuda()):
            # TensorFloat-32 would round scores to three digits.
            providers.insert(0, ("CUDAExecutionProvider", {"use_tf32": "0"}))
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # ONNX Runtime raises its own types
            raise BundleError(f"{path} cannot be loaded by ONNX Runtime: {error}", path.name) from None
        self.provider: str = self._session.get_providers()[0]
        self._feeds = [
            (block, array, columns.prefix + array)
            for block, columns in enumerate(layout.blocks)
            for array, width in zip(ARRAYS, columns.widths, strict=True)
            if width and (linear or array != "linear")
        ]
        self.layout = layout
        # ONNX Runtime otherwise keeps the memory of its largest run: 25 MB for 8,000 rows through 3 x 400.
        self._shrink = onnxruntime.RunOptions()
        if self.provider == "CPUExecutionProvider":
            self._shrink.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def run(self, inputs: DenseInputs, stop: RunStop | None = None) -> F32:
        """Logits float32 `[n]` of `inputs`, which have this network's layout. `stop` may end the run early, which raises."""
        # A plain run: arrays of the host are read in place, and an I/O binding for every n costs more than it saves (621
        # against 592 us); a GPU gets one copy of each array either way.
        feeds = {name: getattr(inputs.blocks[block], array) for block, array, name in self._feeds}
        if self.layout.is_split:
            feeds[REQUEST] = inputs.request
        options = self._shrink if inputs.n > KEPT_ROWS else None
        logits: F32 = self._session.run(["logit"], feeds, options if stop is None else stop.options)[0]
        return logits


class RunStop:
    """Ends the runs that it is given to once `seconds` have passed since it was entered.

    Attributes:
        passed: whether they have.
    """

    def __init__(self, seconds: float) -> None:
        self.options = onnxruntime.RunOptions()
        self.options.log_severity_level = 4
        self._timer = threading.Timer(seconds, self._stop)
        self._timer.name, self._timer.daemon = "run-stop", True
        self.passed = False

    def __enter__(self) -> RunStop:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _stop(self) -> None:
        self.passed = self.options.terminate = True


def _has_cuda() -> bool:
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers() and os.path.exists("/dev/nvidiactl")

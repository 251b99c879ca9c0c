"""The dense network: an ONNX Runtime session.

It knows inputs and a logit, and nothing of ids, tables or calibration. Next stop: `pipeline.model`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnxruntime

from pipeline.errors import BundleError
from pipeline.graph import inputs_of
from pipeline.inputs import DenseInputs
from pipeline.schema import Schema

__all__ = ["Network"]

F32 = npt.NDArray[np.float32]


class Network:
    """A network that is ready to run. `run` may be called from several threads at once.

    Args:
        path: dense.onnx, already checked by `pipeline.graph.check_graph`.
        schema: of the bundle.
        linear: whether the network has the input `linear`.
        threads: of one run (intra-op); each session has a pool of its own.
        device: `cuda` needs the CUDA provider; `auto` takes it where a card is there.

    Raises:
        BundleError: ONNX Runtime cannot load it.
    """

    def __init__(
        self,
        path: Path,
        schema: Schema,
        *,
        linear: bool,
        threads: int = 1,
        device: Literal["auto", "cpu", "cuda"] = "auto",
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
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
        self._inputs = tuple(inputs_of(schema, linear=linear))

    def run(self, inputs: DenseInputs) -> F32:
        """Logits float32 `[n]` of the rows that `inputs` shows."""
        (block,) = inputs.blocks
        logits: F32 = self._session.run(["logit"], {name: getattr(block, name) for name in self._inputs})[0]
        return logits


def _has_cuda() -> bool:
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers() and os.path.exists("/dev/nvidiactl")

"""The dense network: an ONNX Runtime session and the arrays that it reads.

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
from pipeline.schema import Schema

__all__ = ["DenseInputs", "Network"]

F32 = npt.NDArray[np.float32]


class DenseInputs:
    """What the network reads for n rows: `embeddings` float32 `[n, W]`, `linear` `[n, F]`, `numbers` `[n, M]`.

    An input that the network lacks has no rows (`linear`) or no columns (the others). Holds room for `capacity` rows
    and shows the first n of them (`take`), so that one allocation serves many requests of one thread.
    """

    __slots__ = ("_embeddings", "_linear", "_numbers", "capacity", "embeddings", "linear", "n", "numbers")

    def __init__(self, schema: Schema, *, linear: bool, capacity: int) -> None:
        self.capacity = capacity
        fields = len(schema.embedded)
        self._embeddings: F32 = np.zeros((capacity, schema.embedding_width), np.float32)
        self._linear: F32 = np.zeros((capacity if linear and fields else 0, fields), np.float32)
        self._numbers: F32 = np.zeros((capacity, len(schema.numbers)), np.float32)
        self.take(capacity)

    def take(self, n: int) -> None:
        """Show n rows; n is at most `capacity`."""
        self.n = n
        self.embeddings = self._embeddings[:n]
        self.linear = self._linear[:n]
        self.numbers = self._numbers[:n]


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
        logits: F32 = self._session.run(["logit"], {name: getattr(inputs, name) for name in self._inputs})[0]
        return logits


def _has_cuda() -> bool:
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers() and os.path.exists("/dev/nvidiactl")

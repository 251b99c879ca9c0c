"""A server of the Open Inference Protocol on a real socket, whose answers a test writes: right, odd or hostile ones."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import grpc
import numpy as np

from pipeline.arrays import Array
from protos.inference import SERVICE, message, methods

Answer = Callable[[Any, Any], Any]
"""From a ModelInferRequest and gRPC's context to a ModelInferResponse or bytes."""


def response(
    values: Array, *, name: str = "OUTPUT__0", datatype: str = "FP32", shape: tuple[int, ...] | None = None
) -> Any:
    made = message("ModelInferResponse")(model_name="ranker", model_version="1")
    made.outputs.add(name=name, datatype=datatype, shape=values.shape if shape is None else shape)
    made.raw_output_contents.append(values.tobytes())
    return made


def tensors(request: Any) -> dict[str, Array]:
    """The numeric inputs of a request."""
    dtypes = {"FP32": "<f4", "INT64": "<i8", "INT32": "<i4", "FP64": "<f8"}
    return {
        put.name: np.frombuffer(raw, dtypes[put.datatype]).reshape(put.shape)
        for put, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        if put.datatype in dtypes
    }


class ScriptedServer:
    """Model `ranker` by `answer`; `inputs` and `outputs` are its metadata: name -> (datatype, shape).

    Attributes:
        seen: requests, in order. cancelled: set once a call was ended by its caller.
    """

    def __init__(
        self, answer: Answer, inputs: dict[str, tuple[str, list[int]]] | None = None,
        outputs: dict[str, tuple[str, list[int]]] | None = None, credentials: grpc.ServerCredentials | None = None,
    ) -> None:  # fmt: skip
        self.answer, self.ready = answer, True
        self.inputs, self.outputs = inputs or {}, outputs or {}
        self.seen: list[Any] = []
        self.cancelled = threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(8))
        calls = {
            "ServerLive": lambda request, context: methods()["ServerLive"][1](live=True),
            "ModelReady": lambda request, context: methods()["ModelReady"][1](ready=self.ready),
            "ModelMetadata": self._metadata,
            "ModelInfer": self._infer,
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                call,
                methods()[name][0].FromString,
                lambda found: found if isinstance(found, bytes) else found.SerializeToString(),
            )
            for name, call in calls.items()
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        if credentials is None:
            port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self.target = f"127.0.0.1:{port}"

    def __enter__(self) -> ScriptedServer:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(0).wait(10)

    def _infer(self, request: Any, context: Any) -> Any:
        self.seen.append(request)
        context.add_callback(lambda: None if context.code() else self.cancelled.set())
        return self.answer(request, context)

    def _metadata(self, request: Any, context: Any) -> Any:
        made = methods()["ModelMetadata"][1](name=request.name, versions=["1"], platform="scripted")
        for there, into in ((self.inputs, made.inputs), (self.outputs, made.outputs)):
            for name, (datatype, shape) in there.items():
                into.add(name=name, datatype=datatype, shape=shape)
        return made

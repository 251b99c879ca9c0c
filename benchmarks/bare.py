"""Bare gRPC server in Python: grpc.aio, uvloop, the model as one ONNX graph, and nothing else.

    python -m benchmarks.bare GRAPH PORT

One process per core shares the port. It answers ModelInfer with one raw INT64 tensor of dense indices; no names of
models, no checks, no deadlines, no log.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import uvloop

from benchmarks.onnx_session import session
from pipeline.errors import BatonError
from protos.inference import SERVICE, message

__all__ = ["BareServer"]


InferRequest, InferResponse = message("ModelInferRequest"), message("ModelInferResponse")
READY = "listening"


class BareServer:
    """Processes of the bare server, one per core, behind one port. A context manager."""

    def __init__(self, graph: Path, port: int, processes: int) -> None:
        self.port = port
        argv = [sys.executable, "-m", "benchmarks.bare", str(graph), str(port)]
        self._processes = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(processes)]

    def __enter__(self) -> BareServer:
        for process in self._processes:
            assert process.stdout is not None
            if process.stdout.readline().strip() != READY:
                self.stop()
                raise BatonError("the bare server did not start; its message is above")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pids(self) -> list[int]:
        """Process ids."""
        return [process.pid for process in self._processes]

    def stop(self) -> None:
        """End all processes."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.communicate()


async def _serve(graph: str, port: int) -> None:
    model = session(graph, 1)

    async def infer(request: Any, context: Any) -> Any:
        index = np.frombuffer(request.raw_input_contents[0], "<i8").reshape(request.inputs[0].shape)
        scores = model.run(["score"], {"index": index})[0]
        response = InferResponse(model_name=request.model_name, raw_output_contents=[scores.tobytes()])
        response.outputs.add(name="score", datatype="FP32", shape=[len(scores)])
        return response

    method = grpc.unary_unary_rpc_method_handler(
        infer, request_deserializer=InferRequest.FromString, response_serializer=InferResponse.SerializeToString
    )
    server = grpc.aio.server(options=[("grpc.so_reuseport", 1), ("grpc.max_receive_message_length", 64 << 20)])
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, {"ModelInfer": method})])
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print(READY, flush=True)
    while os.getppid() == PARENT:  # a bench that was killed leaves nothing behind
        await asyncio.sleep(1)
    await server.stop(0)


if __name__ == "__main__":
    PARENT = os.getppid()
    uvloop.run(_serve(sys.argv[1], int(sys.argv[2])))

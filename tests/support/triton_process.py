"""A real Triton server of one test: the binary of nvidia-pytriton's wheel, with a model written in Python.

The wheel is put into build/triton by `make tools`, apart from the environment, since it asks for an older numpy. So the
model takes and gives arrays by DLPack, which does not depend on numpy's version.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import numpy as np
import pytest

from protos.inference import SERVICE, methods

ROOT = Path(__file__).parents[2] / "build" / "triton"
BACKEND = ROOT / "pytriton" / "tritonserver"
STUB = BACKEND / "python_backend_stubs" / f"{sys.version_info[0]}.{sys.version_info[1]}" / "triton_python_backend_stub"
BINARY = BACKEND / "bin" / "tritonserver"
LIMIT = 60.0

CONFIG = """
name: "ranker"
backend: "python"
max_batch_size: 1024
input [ { name: "INPUT__0" data_type: TYPE_FP32 dims: [ 12 ] } ]
output [ { name: "OUTPUT__0" data_type: TYPE_FP32 dims: [ 2 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""
MODEL = """
import numpy as np
import triton_python_backend_utils as triton

WEIGHTS = np.linspace(-1, 1, 12, dtype=np.float32)


class TritonPythonModel:
    def execute(self, requests):
        return [triton.InferenceResponse([triton.Tensor.from_dlpack("OUTPUT__0", scores(request))]) for request in requests]


def scores(request):
    matrix = np.from_dlpack(triton.get_input_tensor_by_name(request, "INPUT__0"))
    clicked = 1 / (1 + np.exp(-(matrix.astype(np.float64) @ WEIGHTS)))
    return np.stack([1 - clicked, clicked], 1).astype(np.float32)
"""


def expected(matrix: Any) -> Any:
    """What column 1 of the model is for float32 `[n, 12]`, in double precision."""
    weights = np.linspace(-1, 1, 12, dtype=np.float32)
    return 1 / (1 + np.exp(-(matrix.astype(np.float64) @ weights)))


class Triton:
    """A Triton server with model `ranker`, as a context manager; it may be stopped, killed and started again."""

    def __init__(self, folder: Path, port: int) -> None:
        if not BINARY.exists() or not STUB.exists():
            pytest.skip(f"{BINARY} or {STUB} is not there: `make tools` brings nvidia-pytriton's wheel")
        self.folder, self.port = folder, port
        self.target = f"127.0.0.1:{port}"
        backend = folder / "backends" / "python"
        backend.mkdir(parents=True)
        for path in (*(BACKEND / "backends" / "python").iterdir(), STUB):
            (backend / path.name).symlink_to(path)
        (folder / "models" / "ranker" / "1").mkdir(parents=True)
        (folder / "models" / "ranker" / "config.pbtxt").write_text(CONFIG)
        (folder / "models" / "ranker" / "1" / "model.py").write_text(MODEL)
        shutil.copy(STUB, folder / "stub")  # a link would not find its own folder
        (backend / STUB.name).unlink()
        shutil.move(folder / "stub", backend / STUB.name)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Triton:
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(ROOT / "nvidia_pytriton.libs"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(Path(np.__file__).parents[1]),
        }
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(str(BINARY), f"--model-repository={self.folder}/models"),
                    *(f"--backend-directory={self.folder}/backends", "--allow-http=false", "--allow-metrics=false"),
                    *("--grpc-address=127.0.0.1", f"--grpc-port={self.port}"),
                ],
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # its model runs in a process of its own, which ends with the group
            )
        until = time.monotonic() + LIMIT
        while not self.ready():
            if self.process.poll() is not None or time.monotonic() > until:
                raise AssertionError(f"Triton did not start: {(self.folder / 'log').read_text()[-3000:]}")
            time.sleep(0.05)
        return self

    def ready(self) -> bool:
        """Whether the model can be asked."""
        request, answer = methods()["ModelReady"]
        with grpc.insecure_channel(self.target) as channel:
            call = channel.unary_unary(f"/{SERVICE}/ModelReady", request.SerializeToString, answer.FromString)
            try:
                return bool(call(request(name="ranker"), timeout=5).ready)
            except grpc.RpcError:
                return False

    def signal(self, number: signal.Signals) -> None:
        """To the server and its model."""
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """As a crash would."""
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGKILL)
            self.process.wait(20)

    def __enter__(self) -> Triton:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

"""ONNX Runtime sessions of the limit and the bare server."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

__all__ = ["session"]


def session(graph: Path | str, threads: int) -> ort.InferenceSession:
    """Session on the CPU with so many threads; with one thread it runs on its caller's."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])

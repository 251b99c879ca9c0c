"""What the fuzz tests share: how many requests the long ones send, and the memory that they may take."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
from collections.abc import Iterator

import psutil

__all__ = ["MOST_GROWTH", "REQUESTS", "resident", "tracebacks"]

REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "3000"))
"""Requests of one long test; `make fuzz` sends 100,000."""
MOST_GROWTH = 48 << 20
"""Bytes: caches and pools fill once; a leak of a request's size in each call would be several times that."""


def resident() -> int:
    """Bytes of memory of this process."""
    gc.collect()
    return int(psutil.Process(os.getpid()).memory_info().rss)


class _Tracebacks(logging.Handler):
    """Keeps the text of records with a traceback: the records would hold frames, and with them calls and their streams."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and not record.name.startswith("grpc."):  # what health and reflection cannot read
            self.seen.append(f"{record.name}: {record.getMessage()}: {record.exc_info[1]!r}")


@contextlib.contextmanager
def tracebacks() -> Iterator[list[str]]:
    """What is logged with a traceback while it lasts, but for gRPC's own services."""
    handler, foreign = _Tracebacks(), logging.getLogger("grpc")
    logging.getLogger().addHandler(handler)
    foreign.propagate = False  # pytest keeps records, and theirs hold calls
    try:
        yield handler.seen
    finally:
        foreign.propagate = True
        logging.getLogger().removeHandler(handler)

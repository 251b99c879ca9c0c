"""What the fuzz tests share: how many requests the long ones send, and the memory that they may take."""

from __future__ import annotations

import gc
import os

import psutil

__all__ = ["MOST_GROWTH", "REQUESTS", "resident"]

REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "5000"))
"""Requests of one long test; `make fuzz` sends 100,000."""
MOST_GROWTH = 48 << 20
"""Bytes: caches and pools fill once; a leak of a request's size in each call would be several times that."""


def resident() -> int:
    """Bytes of memory of this process."""
    gc.collect()
    return int(psutil.Process(os.getpid()).memory_info().rss)

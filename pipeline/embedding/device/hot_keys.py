"""The keys that were asked for most, kept on disk, so that a new process begins with a warm cache.

One file per bundle and width: a magic line, a checksum and int64 keys, the most recently used first. Keys are salted by
table name and not by version, so they serve every generation of a bundle. Several processes write the same file: the
last one wins, whole. What cannot be read is as good as none.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from pipeline.disk import replacing

__all__ = ["read_keys", "write_keys"]

I64 = npt.NDArray[np.int64]
MAGIC = b"baton-hot-keys 1\n"

log = logging.getLogger(__name__)


def write_keys(path: Path, keys: I64) -> None:
    """Write `[n]` keys.

    Raises:
        OSError: the disk is full or fails; what was there before stays.
    """
    body = np.ascontiguousarray(keys, "<i8").tobytes()
    with replacing(path) as staging:
        staging.write_bytes(MAGIC + xxhash.xxh3_64_digest(body) + body)


def read_keys(path: Path) -> I64:
    """The keys of a file, `[n]`; none, and a line in the log, when it is damaged."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return np.empty(0, np.int64)
    except OSError as error:
        log.warning("hot keys %s cannot be read, the cache starts cold: %s", path, error)
        return np.empty(0, np.int64)
    head = len(MAGIC) + 8
    body = raw[head:]
    if raw[: len(MAGIC)] != MAGIC or xxhash.xxh3_64_digest(body) != raw[len(MAGIC) : head] or len(body) % 8:
        log.warning("hot keys %s are damaged, the cache starts cold", path)
        return np.empty(0, np.int64)
    return np.frombuffer(body, "<i8").astype(np.int64)

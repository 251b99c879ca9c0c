"""Counter of ids without a row: a sketch of fixed size that decides which of them get one.

A count-min sketch (Cormode, Muthukrishnan, J. Algorithms 2005) of two hashes over one array of bytes. A count may be too
high, never too low. All counts are halved when the sketch is full, so that old sightings count less.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.arrays import I64, U8

__all__ = ["FirstSeen"]


SKETCH_BITS = 20
_MULTIPLIERS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))


class FirstSeen:
    """Counts up to 255 of 64-bit keys in 1 MiB.

    >>> seen = FirstSeen()
    >>> key = np.array([42])
    >>> [seen.add(key).tolist() for _ in range(3)]
    [[1], [2], [3]]
    """

    def __init__(self) -> None:
        self.counts: U8 = np.zeros(1 << SKETCH_BITS, np.uint8)
        self._added = 0

    def add(self, keys: I64) -> I64:
        """Count every key once more, int64 `[n]`, repeated ones together; the count of each, this time included."""
        cells = [
            ((keys.astype(np.uint64) * m) >> np.uint64(64 - SKETCH_BITS)).astype(np.int64) for m in _MULTIPLIERS
        ]  # fmt: skip
        for cell in cells:
            distinct, times = np.unique(cell, return_counts=True)
            self.counts[distinct] = np.minimum(self.counts[distinct].astype(np.int64) + times, 255)
        counts = np.minimum(self.counts[cells[0]], self.counts[cells[1]]).astype(np.int64)
        self._added += len(keys)
        if self._added > len(self.counts):
            self.counts >>= 1
            self._added //= 2
        return counts

    def state(self) -> dict[str, npt.NDArray[np.generic]]:
        """Copies of the arrays that `restore` takes."""
        return {"counts": self.counts.copy(), "added": np.array([self._added])}

    def restore(self, counts: U8, added: I64) -> None:
        self.counts, self._added = counts.copy(), int(added[0])

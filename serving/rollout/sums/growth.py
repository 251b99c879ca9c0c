"""Growing evidence: lines of blocks that are kept as numbers, with their moments, while only newer blocks come.

A look costs then as much as the blocks since the last one, however many there are. Where an old block changes, by a late
label, all lines are read again.
"""

from __future__ import annotations

import numpy as np

from pipeline.arrays import F64
from serving.rollout.sums.selection import COLUMNS, LAST, TIME, Selection

__all__ = ["Growth"]

_KEPT_ENTRIES = 4


class Growth:
    """Lines of evidence in the order of time.

    Attributes:
        identity: of what the lines are of; with another one they are read again.
        end: number of the block that they are complete up to.
    """

    def __init__(self) -> None:
        self.identity: tuple[int, ...] = ()
        self.begin((), 0)

    def begin(self, identity: tuple[int, ...], first: int) -> None:
        """No lines, up to block `first`."""
        self.identity, self.end = identity, first
        self._lines: F64 = np.zeros((64, COLUMNS))
        self._count = 0
        self._moments = Selection.no_moments()
        self._kept: dict[tuple[int, int], Selection] = {}

    def changed(self, block: int) -> None:
        """A block has changed."""
        if block < self.end:
            self.identity = ()

    def add(self, lines: F64, end: int) -> None:
        """Add the lines `[m, COLUMNS]` of all blocks up to `end`."""
        self.end = end
        if not len(lines):
            return
        count = self._count + len(lines)
        if count > len(self._lines):
            more = np.zeros((max(2 * len(self._lines), count), COLUMNS))
            more[: self._count] = self._lines[: self._count]
            self._lines = more
        self._lines[self._count : count] = lines
        self._count = count
        self._moments.add(Selection.tested(lines))

    def since(self, from_ms: float, tail: F64 | None = None) -> Selection:
        """Lines of blocks that start at `from_ms` or later, and those of `tail`."""
        lines = self._lines[: self._count]
        lines = lines[np.searchsorted(lines[:, TIME], from_ms) :]
        return Selection(lines if tail is None else np.concatenate([lines, tail[tail[:, TIME] >= from_ms]]))

    def between(self, from_ms: float, until_ms: float, tail: F64 | None = None) -> Selection:
        """Lines of blocks that start at `from_ms` or later and end by `until_ms`, and those of `tail`. The last ones asked for are kept."""
        lines = self._lines[: self._count]
        first, end = (int(np.searchsorted(lines[:, at], ms)) for at, ms in ((TIME, from_ms), (LAST, until_ms)))
        if tail is not None and end == self._count:
            within = tail[(tail[:, TIME] >= from_ms) & (tail[:, LAST] < until_ms)]
            return Selection(np.concatenate([lines[first:end], within]))
        key = (first, end)
        if key not in self._kept:
            while len(self._kept) >= _KEPT_ENTRIES:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = Selection(lines[first:end])
        return self._kept[key]

    def all(self, tail: F64 | None = None) -> Selection:
        """All lines, and those of `tail` `[m, COLUMNS]` after them."""
        lines = self._lines[: self._count]
        if tail is None:
            return Selection(lines, self._moments)
        moments = self._moments.copy()
        moments.add(Selection.tested(tail))
        return Selection(np.concatenate([lines, tail]), moments)

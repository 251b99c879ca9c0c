"""View of the evidence in a table of blocks, made once per look: what the rules of `look` ask for, of all traffic or a slice.

Blocks whose labels are missing, blocks of an older candidate and the open block are no part of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from pipeline.arrays import I64, Array
from serving.rollout.sums.blocks import BlockTable, Slice
from serving.rollout.sums.selection import EXTRA, LAST, TIME, VERSION, Selection

__all__ = ["EvidenceView"]


class EvidenceView:
    """Evidence of a table as it is now.

    Attributes:
        silent: the newest block is one of a run without any click where many were expected: it proves nothing.
    """

    def __init__(self, table: BlockTable) -> None:
        self._table = table
        rows, silent = table.closed()
        self.silent = bool(len(silent) and silent[-1])
        self._rows = np.concatenate([_in_order(table.merged), rows[~silent]])

    def all(self, part: Slice | None = None) -> Selection:
        """All evidence, in blocks of one length. Merged blocks that are not complete yet are left out."""
        table = self._table
        lines = table.lines(self._rows, part)
        if not table.doublings:
            return table.numbers(lines)
        groups = (lines[:, TIME] - table.origin) >> table.doublings
        complete = groups < (table.open - table.origin) >> table.doublings
        return table.numbers(_merged(lines[complete], groups[complete]))

    def since(self, from_ms: float, part: Slice | None = None) -> Selection:
        """Evidence of blocks that start at `from_ms` or later: single ones, and merged ones where it reaches back so far."""
        rows = self._rows
        first = math.ceil(from_ms / self._table.block_ms)
        return self._table.numbers(self._table.lines(rows[self._table.sums[rows, TIME] >= first], part))


def _in_order(merged: Mapping[int, int]) -> Array:
    return np.array([row for _, row in sorted(merged.items())], np.intp)


def _merged(lines: I64, groups: I64) -> I64:
    """Lines `[n, COLUMNS]` added up by group, in the order of groups."""
    if not len(lines):
        return lines
    order = np.argsort(groups, kind="stable")
    lines, groups = lines[order], groups[order]
    starts = np.flatnonzero(np.concatenate(([True], groups[1:] != groups[:-1])))
    found: I64 = np.add.reduceat(lines, starts)
    found[:, TIME] = np.minimum.reduceat(lines[:, TIME], starts)
    found[:, LAST] = np.maximum.reduceat(lines[:, LAST], starts)
    found[:, VERSION] = np.minimum.reduceat(lines[:, VERSION], starts)
    found[:, EXTRA] += np.diff([*starts, len(lines)]) - 1
    return found

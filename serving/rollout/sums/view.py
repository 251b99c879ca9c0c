"""View of the evidence in a table of blocks, made once per look: what the rules of `look` ask for, of all traffic or a slice.

Blocks whose labels are missing, blocks of an older candidate and the open block are no part of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from pipeline.arrays import F64, I64, Array
from serving.rollout.sums.blocks import BlockTable, Slice
from serving.rollout.sums.selection import CLICKS, EXTRA, LAST, TIME, VERSION, Selection

__all__ = ["EvidenceView"]


class EvidenceView:
    """Evidence of a table as it is now.

    Attributes:
        silent: the newest block is one of a run without any click where many were expected: it proves nothing.

    What only newer blocks were added to since the last view goes on from there (`table.growth`). Blocks without a click at the
    end may turn out to be an outage of labels, so the growth ends before them.
    """

    def __init__(self, table: BlockTable) -> None:
        self._table, self._growth = table, table.growth
        identity = (table.origin, table.version, table.doublings)
        if self._growth.identity != identity or self._growth.end > table.open:
            self._growth.begin(identity, table.origin)
        self._rows: Array | None = None
        self._tail: F64 | None = None
        self.silent = self._grow_merged() if table.doublings else self._grow()

    def all(self, part: Slice | None = None) -> Selection:
        """All evidence, in blocks of one length. Merged blocks that are not complete yet are left out."""
        if part is None and self._rows is None:
            return self._growth.all(self._tail)
        lines = self._table.lines(self._all_rows(), part)
        return self._table.numbers(self._whole(lines) if self._table.doublings else lines)

    def since(self, from_ms: float, part: Slice | None = None) -> Selection:
        """Evidence of blocks that start at `from_ms` or later: single ones, and merged ones where it reaches back so far."""
        table = self._table
        first = math.ceil(from_ms / table.block_ms)
        if part is None and self._rows is None:
            if not table.doublings:
                return self._growth.since(from_ms, self._tail)
            if first > max(table.open - table.fine, table.origin):
                lines = table.sums[self._singles(first, table.open)]
                if not (lines[:, CLICKS] <= 0).any():
                    return table.numbers(lines)
        rows = self._all_rows()
        return table.numbers(table.lines(rows[table.sums[rows, TIME] >= first], part))

    def between(self, from_ms: float, until_ms: float) -> Selection:
        """As `all`, of blocks that start at `from_ms` or later and end by `until_ms`."""
        if self._rows is None:
            return self._growth.between(from_ms, until_ms, self._tail)
        found = self.all()
        return found.where((found.time >= from_ms) & (found.last < until_ms))

    def newest(self, version: int, at_least: int) -> Selection:
        """Blocks of this version or newer alone; the newest blocks where these are fewer than `at_least`."""
        table = self._table
        latest = self.since((table.open - table.fine) * table.block_ms)
        lines = latest.lines
        first = int(np.searchsorted(lines[:, VERSION] >= version, True)) if len(lines) else 0
        return Selection(lines[min(first, max(0, len(lines) - at_least)) :])

    def _all_rows(self) -> Array:
        if self._rows is None:
            self._read()
        assert self._rows is not None
        return self._rows

    def _read(self) -> bool:
        """Find all rows; returns whether the newest is silent."""
        rows, silent = self._table.closed()
        self._rows = np.concatenate([_in_order(self._table.merged), rows[~silent]])
        return bool(len(silent) and silent[-1])

    def _singles(self, first: int, end: int) -> Array:
        """Rows of the evidence's single blocks from `first` on, up to `end`, in order."""
        single, span = self._table.single, range(first, end)
        blocks = span if len(span) <= len(single) else sorted(block for block in single if block in span)
        rows = np.array([row for block in blocks if (row := single.get(block)) is not None], np.intp)
        found: Array = rows[self._table.sums[rows, VERSION] >= self._table.version]
        return found

    def _grow(self) -> bool:
        """Put the blocks since the last look into the growth; returns whether the newest is silent."""
        table, growth = self._table, self._growth
        lines = table.sums[self._singles(growth.end, table.open)]
        if not len(lines):
            return False
        quiet = lines[:, CLICKS] <= 0
        silent = table.numbers(lines).silent() if quiet.any() else quiet
        settled = len(lines) - int(np.argmin(quiet[::-1])) if not quiet.all() else 0
        if settled:
            growth.add(table.numbers(lines[:settled][~silent[:settled]]).lines, int(lines[settled - 1, TIME]) + 1)
        if settled < len(lines):
            self._tail = table.numbers(lines[settled:][~silent[settled:]]).lines
        return bool(silent[-1])

    def _grow_merged(self) -> bool:
        """As `_grow`, of merged blocks that are complete now."""
        table, growth = self._table, self._growth
        newer = self._singles(max(growth.end, table.open - table.fine), table.open)
        if (table.sums[newer, CLICKS] <= 0).any():
            growth.identity = ()
            return self._read()
        end = table.origin + ((table.open - table.origin) >> table.doublings << table.doublings)
        if end > growth.end:
            if growth.end == table.origin:
                lines = self._whole(table.sums[self._all_rows()])
                self._rows = None
            else:
                groups = range(table.group(growth.end), table.group(end))
                merged = np.array([table.merged[group] for group in groups if group in table.merged], np.intp)
                rows = np.concatenate([merged, self._singles(growth.end, end)])
                lines = self._whole(table.sums[rows])
            growth.add(table.numbers(lines).lines, end)
        return False

    def _whole(self, lines: I64) -> I64:
        """Lines in merged blocks that are complete."""
        table = self._table
        groups = (lines[:, TIME] - table.origin) >> table.doublings
        complete = groups < (table.open - table.origin) >> table.doublings
        return _merged(lines[complete], groups[complete])


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

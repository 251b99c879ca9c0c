"""Table of blocks: sums over all paired rows of one interval of prediction time, a line per block, in bounded memory.

Sums are integers of fixed scale (`scale`), so they are the same whatever the order in which rows, labels and revisions
came. A block is *single* while it is among the newest, since windows and late labels need it. Older ones merge when the
table is full: in pairs, all alike, so that all evidence is of blocks of one length, `block_ms` times a power of two. A block
whose labels are missing, or that an older candidate scored, merges with others like it alone: it is no evidence.

    past ── before the evidence began, for display alone ── merged ── singles (the newest `fine` blocks, or more) ── open

`analysis` writes the table from labelled rows, `simulate` from generated ones; `view` reads what the rules ask for.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np

from pipeline.arrays import F64, I64, Array, Mask
from serving.rollout.sums.growth import Growth
from serving.rollout.sums.outcome import OutcomeSums
from serving.rollout.sums.scale import AUC_UNITS, NAT_UNITS, SQUARE_UNITS, UNITS, checked, fixed
from serving.rollout.sums.selection import (
    AUC_BLOCKS,
    AUC_DELTA,
    CANDIDATE,
    CLICKS,
    COLUMNS,
    EXTRA,
    LAST,
    LOSS_DELTA,
    REQUEST_SQUARES,
    ROWS,
    SERVED,
    SERVED_CLICKS,
    SERVED_STABLE,
    SQUARES,
    STABLE,
    TIME,
    VERSION,
    Selection,
)

__all__ = ["MAX_BLOCKS", "MAX_TABLE_ROWS", "REVISABLE_BLOCKS", "BlockTable", "Slice"]

Slice = tuple[str, int]
"""Name of a field, and the code that `serving.rollout.sums.slices` gives to one of its values."""

REVISABLE_BLOCKS = 128
"""Newest blocks whose AUC difference still changes with late labels; in older blocks only the other sums do."""
MAX_BLOCKS = 4096
"""Most blocks of a table, merged ones counted once."""
MAX_TABLE_ROWS = 200_000
"""Most lines of a table, of all traffic and of slices together, beyond the fewest blocks that windows need."""
PAST_BLOCKS = 64
_LEAST_MERGED_BLOCKS = 96
_NO_VERSION = 1 << 62
PART = [ROWS, CLICKS, STABLE, CANDIDATE, LOSS_DELTA, EXTRA]
"""Columns of a slice's line."""
_FACTORS = np.ones(COLUMNS)
_FACTORS[[CLICKS, STABLE, CANDIDATE, SERVED_CLICKS, SERVED, SERVED_STABLE, SQUARES]] = 1.0 / UNITS
_FACTORS[LOSS_DELTA] = 1.0 / NAT_UNITS
_FACTORS[REQUEST_SQUARES] = 1.0 / SQUARE_UNITS
_FACTORS[AUC_DELTA] = 1.0 / AUC_UNITS


class BlockTable:
    """Table with a line per block. Blocks may come in any order, and counted rows can be taken back.

    Args:
        block_ms: length of a block.
        window_blocks: length of the window that is looked at block by block.
        most_blocks, most_rows: see MAX_BLOCKS and MAX_TABLE_ROWS.

    Attributes:
        sums: int64 `[rows, COLUMNS]`; `row_of` finds the row of a block, to be added to in place.
        parts: int64 `[rows, slices, len(PART)]`, the same of every followed slice, by `part_of`.
        outcome: of the arms' answers during the present stay, by key and not by block.
        doublings: how often blocks were merged in pairs.
    """

    def __init__(
        self, block_ms: int, window_blocks: int = 120, most_blocks: int = MAX_BLOCKS, most_rows: int = MAX_TABLE_ROWS
    ) -> None:
        self.block_ms, self.fine = block_ms, window_blocks + REVISABLE_BLOCKS
        self.outcome = OutcomeSums()
        self.growth = Growth()
        self.doublings = 0
        self.version = 0
        self.origin = 0
        self.open = -1
        self.quiet = 0
        self.sums = np.zeros((256, COLUMNS), np.int64)
        self.parts = np.zeros((256, 0, len(PART)), np.int64)
        self.slices: dict[Slice, int] = {}
        self.single: dict[int, int] = {}
        self.merged: dict[int, int] = {}
        self.aside: dict[int, int] = {}
        self._past: list[tuple[int, int]] = []
        self._free: list[int] = []
        self._used = 0
        self._limits = most_blocks, most_rows

    @property
    def most(self) -> int:
        """Most blocks now; the more slices, the fewer."""
        blocks, lines = self._limits
        return max(self.fine + PAST_BLOCKS + _LEAST_MERGED_BLOCKS, min(blocks, lines // (1 + len(self.slices))))

    @property
    def blocks(self) -> int:
        """Number of blocks, merged ones counted once."""
        return len(self.single) + len(self.merged) + len(self.aside) + len(self._past)

    @property
    def size(self) -> int:
        """Number of lines, those of slices included."""
        return self.blocks * (1 + len(self.slices))

    @property
    def newest_ms(self) -> int | None:
        """Start of the block that is still open. Rows mature in prediction order, so all blocks before it are complete."""
        return self.open * self.block_ms if self.open >= 0 else None

    def begin(self, from_ms: int, version: int) -> None:
        """Evidence is of blocks that start at `from_ms` or later and have no row of a candidate older than `version`."""
        origin = -(-from_ms // self.block_ms)
        if origin == self.origin:
            self.version = version
            return
        for row in (*self.merged.values(), *self.aside.values()):
            insort(self._past, (int(self.sums[row, TIME]), row))
        self.merged, self.aside = {}, {}
        self.origin, self.version, self.doublings, self.quiet = origin, version, 0, 0

    def row_of(self, block: int) -> int:
        """Row of block number `time_ms // block_ms`; a new one where it has none. A newer block than all opens it, and may
        merge older ones."""
        self.growth.changed(block)
        row = self.single.get(block)
        if row is not None:
            return row
        if block > self.open:
            self.open = block
            self._tidy()
        elif block <= self.open - self.fine and (row := self._long(block)) is not None:
            self.sums[row, TIME] = min(int(self.sums[row, TIME]), block)
            self.sums[row, LAST] = max(int(self.sums[row, LAST]), block)
            return row
        elif self.blocks >= self.most:
            self._tidy()
        row = self.single[block] = self._new(block)
        return row

    def part_of(self, part: Slice) -> int:
        """Place of a slice in `parts`; a new one where it has none."""
        at = self.slices.get(part)
        if at is None:
            at = self.slices[part] = len(self.slices)
            if at == self.parts.shape[1]:
                more = np.zeros((len(self.parts), max(8, at), len(PART)), np.int64)
                self.parts = np.concatenate([self.parts, more], axis=1)
        return at

    def set_auc(self, block: int, delta: float) -> None:
        """Set the AUC difference of a single block; NaN: it has one class only."""
        has = not np.isnan(delta)
        self.growth.changed(block)
        self.sums[self.single[block], [AUC_DELTA, AUC_BLOCKS]] = int(fixed(delta, AUC_UNITS)) if has else 0, int(has)

    def fill(self, first: int, lines: F64) -> None:
        """Put whole lines `[t, COLUMNS]` of numbers for blocks first, first + 1, ..., in place of what is there. TIME, LAST
        and AUC_BLOCKS follow from the rest."""
        values = lines.copy()
        values[:, AUC_BLOCKS] = ~np.isnan(lines[:, AUC_DELTA])
        values[:, AUC_DELTA] = np.nan_to_num(lines[:, AUC_DELTA])
        scaled = np.rint(values / _FACTORS)
        checked(scaled)
        for at, line in enumerate(scaled.astype(np.int64)):
            row = self.row_of(first + at)
            self.sums[row, VERSION:] = line[VERSION:]

    def select(self, from_ms: int, until_ms: int | None = None, part: Slice | None = None) -> Selection:
        """Closed blocks that start at `from_ms` or later, of any length, evidence or not; those of a slice."""
        return self.numbers(self.lines(self.rows(from_ms, until_ms), part))

    def rows(self, from_ms: int, until_ms: int | None = None) -> Array:
        """Rows of `select`, intp `[t]`, in order."""
        end = self.open if until_ms is None else min(-(-until_ms // self.block_ms), self.open)
        held = chain(self.single.values(), self.merged.values(), self.aside.values(), (row for _, row in self._past))
        rows = np.fromiter(held, np.intp, self.blocks)
        time = self.sums[rows, TIME]
        keep = (time * self.block_ms >= from_ms) & (time < end)
        found: Array = rows[keep][np.argsort(time[keep], kind="stable")]
        return found

    def lines(self, rows: Array, part: Slice | None) -> I64:
        """Sums of rows, int64 `[t, COLUMNS]`; those of a slice, where it has any."""
        if part is None:
            found: I64 = self.sums[rows]
            return found
        at = self.slices.get(part)
        if at is None:
            return np.zeros((0, COLUMNS), np.int64)
        found = np.zeros((len(rows), COLUMNS), np.int64)
        found[:, : VERSION + 1] = self.sums[rows, : VERSION + 1]
        found[:, PART] = self.parts[rows, at]
        return found[found[:, ROWS] > 0]

    def numbers(self, lines: I64) -> Selection:
        """Sums as numbers."""
        found = lines * _FACTORS
        found[:, [TIME, LAST]] *= self.block_ms
        return Selection(found)

    def kinds(self) -> Iterator[tuple[str, int]]:
        """Every row, with the kind of its block: past, merged, aside or single."""
        yield from (("past", row) for _, row in self._past)
        for kind, rows in (("merged", self.merged), ("aside", self.aside), ("single", self.single)):
            yield from ((kind, row) for _, row in sorted(rows.items()))

    def save(self, only: Collection[Slice] | None = None) -> tuple[dict[str, Any], dict[str, Array]]:
        """All of it, as (head for JSON, arrays), for `restore`. `only`: these slices alone."""
        kinds = list(self.kinds())
        rows = np.array([row for _, row in kinds], np.intp)
        slices = [(part, at) for part, at in self.slices.items() if only is None or part in only]
        head = {
            "open": self.open, "origin": self.origin, "version": self.version, "quiet": self.quiet,
            "doublings": self.doublings, "kinds": [kind for kind, _ in kinds], "slices": [part for part, _ in slices],
        }  # fmt: skip
        parts = self.parts[rows][:, [at for _, at in slices]]
        return head, {"blocks": self.sums[rows], "parts": parts}

    def restore(self, head: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        """Fill an empty table with the result of `save`."""
        self.open, self.origin, self.version = head["open"], head["origin"], head["version"]
        self.quiet, self.doublings = head["quiet"], head["doublings"]
        self.slices = {(field, code): at for at, (field, code) in enumerate(head["slices"])}
        self.sums, self.parts = arrays["blocks"].copy(), arrays["parts"].copy()
        self._used = len(self.sums)
        for row, kind in enumerate(head["kinds"]):
            block = int(self.sums[row, TIME])
            if kind == "past":
                self._past.append((block, row))
            elif kind == "single":
                self.single[block] = row
            else:
                (self.merged if kind == "merged" else self.aside)[self.group(block)] = row

    def group(self, block: int) -> int:
        """Number of the merged block that a block belongs to, counted from where the evidence began."""
        return (block - self.origin) >> self.doublings

    def closed(self) -> tuple[Array, Mask]:
        """Rows of the single, closed blocks of the evidence `[t]`, in order, and the mask of those whose labels are missing."""
        rows = np.fromiter(self.single.values(), np.intp, len(self.single))
        time = self.sums[rows, TIME]
        keep = (time >= self.origin) & (time < self.open) & (self.sums[rows, VERSION] >= self.version)
        rows = rows[keep][np.argsort(time[keep])]
        if not (self.sums[rows, CLICKS] <= 0).any():
            return rows, np.zeros(len(rows), np.bool_)
        return rows, self.numbers(self.sums[rows]).silent(self.quiet / UNITS)

    def merge(self, doublings: int) -> None:
        """Merge blocks in pairs until that has been done so often."""
        while self.doublings < doublings:
            self._double()

    # What is merged, and when.

    def _long(self, block: int) -> int | None:
        """Row of the merged block that an old block belongs to; None: it is one by itself."""
        if block < self.origin:
            at = bisect_right(self._past, block, key=lambda line: line[0]) - 1
            return self._past[at][1] if at >= 0 else None
        if not self.doublings:
            return None
        group = self.group(block)
        row = self.aside.get(group)
        if row is not None and self.sums[row, TIME] <= block <= self.sums[row, LAST]:
            return row
        if group not in self.merged:
            self.merged[group] = self._new(block)
        return self.merged[group]

    def _new(self, block: int) -> int:
        if self._free:
            row = self._free.pop()
        else:
            row = self._used
            self._used += 1
            if row == len(self.sums):
                self.sums = np.concatenate([self.sums, np.zeros((max(256, row), COLUMNS), np.int64)])
                more = np.zeros((max(256, row), *self.parts.shape[1:]), np.int64)
                self.parts = np.concatenate([self.parts, more])
        self.sums[row] = self.parts[row] = 0
        self.sums[row, [TIME, LAST, VERSION]] = block, block, _NO_VERSION
        return row

    def _tidy(self) -> None:
        """Merge as much as is needed now. It depends on what was counted alone, and not on when."""
        if self.doublings:
            self._merge_old()
        if self.blocks < self.most:
            return
        self._compress_past()
        while self.blocks >= self.most:
            self._double()

    def _merge_old(self) -> None:
        """Put blocks that are older than the newest `fine` into their merged blocks."""
        old = sorted(block for block in self.single if block <= self.open - self.fine)
        rows, silent = self.closed()
        outages = frozenset(self.sums[rows[silent], TIME].tolist())
        for block in old:
            row = self.single.pop(block)
            if block < self.origin:
                insort(self._past, (block, row))
                continue
            stale = bool(self.sums[row, VERSION] < self.version)
            if not stale:
                self.quiet = self.quiet + int(self.sums[row, STABLE]) if self.sums[row, CLICKS] <= 0 else 0
            self._put(self.aside if stale or block in outages else self.merged, self.group(block), row)

    def _put(self, groups: dict[int, int], group: int, row: int) -> None:
        if group in groups:
            self._fold(row, groups[group])
        else:
            groups[group] = row

    def _double(self) -> None:
        """Merge the merged blocks in pairs; at first, the single ones."""
        self.doublings += 1
        if self.doublings == 1:
            self._merge_old()
            return
        for name in ("merged", "aside"):
            before: dict[int, int] = getattr(self, name)
            after: dict[int, int] = {}
            for group, row in sorted(before.items()):
                self._put(after, group >> 1, row)
            setattr(self, name, after)

    def _compress_past(self) -> None:
        """Merge neighbours among the blocks from before the evidence, down to half of PAST_BLOCKS."""
        for block in [block for block in self.single if block < self.origin and block <= self.open - self.fine]:
            insort(self._past, (block, self.single.pop(block)))
        if len(self._past) <= PAST_BLOCKS:
            return
        each = -(-len(self._past) // (PAST_BLOCKS // 2))
        chunks = [self._past[at : at + each] for at in range(0, len(self._past), each)]
        self._past = [chunk[0] for chunk in chunks]
        for (_, into), *rest in chunks:
            for _, row in rest:
                self._fold(row, into)

    def _fold(self, row: int, into: int) -> None:
        """Add one row to another and free it."""
        line, to = self.sums[row], self.sums[into]
        to[TIME], to[LAST] = min(to[TIME], line[TIME]), max(to[LAST], line[LAST])
        to[VERSION] = min(to[VERSION], line[VERSION])
        to[EXTRA:] += line[EXTRA:]
        to[EXTRA] += 1
        checked(to[EXTRA:])
        both = (self.parts[row, :, 0] > 0) & (self.parts[into, :, 0] > 0)
        self.parts[into] += self.parts[row]
        self.parts[into, :, -1] += both
        self._free.append(row)

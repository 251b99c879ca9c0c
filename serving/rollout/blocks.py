"""Table of blocks: sums over all paired rows of one interval of prediction time, one line per block.

`analysis` writes it from labelled rows, `simulate` from generated ones; `reconcile` reads it through `select`.
"""

from __future__ import annotations

import numpy as np

from pipeline.arrays import F64, Mask
from serving.rollout import evidence
from serving.rollout.evidence import Limits, Test
from serving.rollout.outcome import OutcomeSums

__all__ = ["BlockTable", "Selection", "Slice"]

Slice = tuple[str, int]
"""Name of a field, and the code that `serving.rollout.slices` gives to one of its values."""

(
    TIME, ROWS, CLICKS, STABLE, CANDIDATE, LOSS_DELTA, AUC_DELTA,
    SERVED_ROWS, SERVED_CLICKS, SERVED, EXPOSED, VERSION,
) = range(12)  # fmt: skip
COLUMNS = 12
SILENT_CLICKS = 20.0
"""A run of blocks without one click where stable expected this many is an outage of labels, not a measurement."""


def _column(at: int) -> property:
    return property(lambda self: self.lines[:, at])


class Selection:
    """A selection of blocks: float64 `lines` `[t, COLUMNS]`, and each column `[t]` by name.

    `time` start of the block, Unix milliseconds; `rows` paired rows (both arms scored them) and `clicks` on them;
    `stable`, `candidate` sums of the arms' scores over them; `loss_delta` sum of the candidate's LogLoss minus stable's;
    `auc_delta` difference of AUC, NaN with one class only; `served_rows`, `served_clicks`, `served` rows that the
    candidate answered, clicks and its scores on them; `exposed` exposed rows, paired or not.
    """

    def __init__(self, lines: F64) -> None:
        self.lines = lines

    time: F64 = _column(TIME)  # type: ignore[assignment]
    rows: F64 = _column(ROWS)  # type: ignore[assignment]
    clicks: F64 = _column(CLICKS)  # type: ignore[assignment]
    stable: F64 = _column(STABLE)  # type: ignore[assignment]
    candidate: F64 = _column(CANDIDATE)  # type: ignore[assignment]
    loss_delta: F64 = _column(LOSS_DELTA)  # type: ignore[assignment]
    auc_delta: F64 = _column(AUC_DELTA)  # type: ignore[assignment]
    served_rows: F64 = _column(SERVED_ROWS)  # type: ignore[assignment]
    served_clicks: F64 = _column(SERVED_CLICKS)  # type: ignore[assignment]
    served: F64 = _column(SERVED)  # type: ignore[assignment]
    exposed: F64 = _column(EXPOSED)  # type: ignore[assignment]

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.lines)

    def bias(self, arm: str = "candidate") -> float:
        """Relative bias of an arm over all paired rows; NaN without a click."""
        clicks = float(self.clicks.sum())
        return float(getattr(self, arm).sum()) / clicks - 1.0 if clicks > 0 else float("nan")

    def bias_limits(self, arm: str, error: float) -> Limits:
        """Relative bias with limits, each one-sided at `error`, by linearising the ratio around its value."""
        return _ratio_limits(getattr(self, arm), self.clicks, error)

    def served_limits(self, error: float) -> Limits:
        """As `bias_limits`, of the candidate on the rows that it answered itself."""
        return _ratio_limits(self.served, self.served_clicks, error)

    def bias_tests(self, bound: float, error: float, at_least: int) -> tuple[Test, Test]:
        """Tests that the candidate's bias lies below +bound and above -bound, each at `error`.

        `Z+ = sum(p - (1 + d) y)` must be below 0 and `Z- = sum(p - (1 - d) y)` above it, per block.
        """
        return _two(self.candidate, self.clicks, bound, error, at_least)

    def served_tests(self, bound: float, error: float, at_least: int) -> tuple[Test, Test]:
        """As `bias_tests`, on the rows that the candidate answered itself."""
        return _two(self.served, self.served_clicks, bound, error, at_least)

    def relative_tests(self, bound: float, error: float, at_least: int) -> tuple[Test, Test]:
        """As `bias_tests`, of the candidate's bias minus stable's: a change of both arms alike cancels."""
        apart = self.candidate - self.stable
        return (
            evidence.test_below(apart - bound * self.clicks, error, at_least),
            evidence.test_below(-apart - bound * self.clicks, error, at_least),
        )

    def loss_limits(self, error: float) -> Limits:
        """The candidate's LogLoss per row minus stable's, with limits each one-sided at `error`."""
        return _per(self.loss_delta, self.rows, error)

    def loss_test(self, most: float, error: float, at_least: int) -> Test:
        """Test that the candidate's LogLoss per row exceeds stable's by less than `most`."""
        return evidence.test_below(self.loss_delta - most * self.rows, error, at_least)

    def auc_test(self, least: float, error: float, at_least: int) -> Test:
        """Test that the candidate's AUC minus stable's, averaged over blocks, is more than `least`."""
        return evidence.test_below(least - self.auc_delta[~np.isnan(self.auc_delta)], error, at_least)

    def population_moved(self, error: float, at_least: int, least: float = 0.01) -> bool:
        """Whether the candidate's bias on rows that it served is shown to differ from that on the rest, by `least`."""
        rest_clicks, rest = self.clicks - self.served_clicks, self.candidate - self.served
        clicks = float(rest_clicks.sum())
        if clicks <= 0 or float(self.served_clicks.sum()) < 100:
            return False
        ratio = float(rest.sum()) / clicks
        above = evidence.test_below(self.served - (ratio + least) * self.served_clicks, error, at_least)
        below = evidence.test_below((ratio - least) * self.served_clicks - self.served, error, at_least)
        return evidence.Verdict.BREACHED in (above.verdict, below.verdict)

    def coverage(self) -> float:
        """Fraction of exposed rows that both arms scored; NaN without rows."""
        exposed = float(self.exposed.sum())
        return float(self.rows.sum()) / exposed if exposed > 0 else float("nan")

    def silent(self) -> Mask:
        """Mask `[t]` of runs of blocks without a click where stable expected many: the labels are missing."""
        quiet = self.clicks <= 0
        if not quiet.any():
            return quiet
        order = np.argsort(self.time)
        run = np.empty(len(order), np.intp)
        run[order] = np.cumsum(~quiet[order])
        expected = np.bincount(run[quiet], self.stable[quiet], int(run.max()) + 1)
        missing: Mask = quiet & (expected[run] >= SILENT_CLICKS)
        return missing

    def where(self, mask: Mask) -> Selection:
        """The blocks of a mask `[t]`."""
        return Selection(self.lines[mask])


class BlockTable:
    """Table with a line per block. Blocks may come in any order, and counted rows can be taken back. 96 bytes a block.

    `slices` holds a table of the same kind for every followed slice of the traffic, with lines only where it has rows.
    `outcome` sums the outcome of the arms' answers during the present stay, by key and not by block.
    """

    def __init__(self, block_ms: int) -> None:
        self.block_ms = block_ms
        self.slices: dict[Slice, BlockTable] = {}
        self.outcome = OutcomeSums()
        self._lines = np.zeros((256, COLUMNS))
        self._at: dict[int, int] = {}
        self._open = -1

    @property
    def size(self) -> int:
        """Number of lines, those of slices included."""
        return len(self._at) + sum(table.size for table in self.slices.values())

    def slice(self, part: Slice, from_ms: int, version: int = 0, until_ms: int | None = None) -> Selection:
        """As `select`, of one slice's rows; no blocks where it has none."""
        table = self.slices.get(part)
        if table is None:
            return Selection(np.zeros((0, COLUMNS)))
        table._open = self._open  # the rows of all traffic close a block, not those of the slice
        return table.select(from_ms, version, until_ms)

    def line(self, block: int) -> F64:
        """The line of block number `time_ms // block_ms`, float64 `[COLUMNS]`, to be added to in place."""
        at = self._at.get(block)
        if at is None:
            at = self._at[block] = len(self._at)
            if at == len(self._lines):
                self._lines = np.concatenate([self._lines, np.zeros_like(self._lines)])
            self._lines[at, TIME] = block * self.block_ms
            self._lines[at, AUC_DELTA] = np.nan
            self._lines[at, VERSION] = np.inf
            self._open = max(self._open, block)
        line: F64 = self._lines[at]
        return line

    def fill(self, first: int, lines: F64) -> None:
        """Put whole lines `[t, COLUMNS]` for blocks first, first + 1, ... at the end; TIME is set here."""
        start = len(self._at)
        while start + len(lines) > len(self._lines):
            self._lines = np.concatenate([self._lines, np.zeros_like(self._lines)])
        self._lines[start : start + len(lines)] = lines
        numbers = np.arange(first, first + len(lines))
        self._lines[start : start + len(lines), TIME] = numbers * self.block_ms
        self._at.update(zip(numbers.tolist(), range(start, start + len(lines)), strict=True))
        self._open = max(self._open, first + len(lines) - 1)

    @property
    def newest_ms(self) -> int | None:
        """Start of the block that is still open. Rows mature in prediction order, so all blocks before it are complete."""
        return self._open * self.block_ms if self._open >= 0 else None

    def select(self, from_ms: int, version: int = 0, until_ms: int | None = None) -> Selection:
        """Closed blocks that start at `from_ms` or later and have no row of a candidate older than `version`."""
        lines = self._lines[: len(self._at)]
        time = lines[:, TIME]
        end = self._open * self.block_ms if until_ms is None else min(until_ms, self._open * self.block_ms)
        keep = (time >= from_ms) & (time < end)
        if version:
            keep &= lines[:, VERSION] >= version
        return Selection(lines[keep])

    def forget(self, before_ms: int) -> None:
        """Drop the lines of blocks that start before `before_ms`."""
        for table in self.slices.values():
            table.forget(before_ms)
        kept = {block: at for block, at in self._at.items() if block * self.block_ms >= before_ms}
        self._lines = np.concatenate([self._lines[list(kept.values())], np.zeros((256, COLUMNS))])
        self._at = {block: at for at, block in enumerate(kept)}


def _two(predicted: F64, clicks: F64, bound: float, error: float, at_least: int) -> tuple[Test, Test]:
    return (
        evidence.test_below(predicted - (1.0 + bound) * clicks, error, at_least),
        evidence.test_below((1.0 - bound) * clicks - predicted, error, at_least),
    )


def _ratio_limits(predicted: F64, clicks: F64, error: float) -> Limits:
    found = _per(predicted, clicks, error)
    return Limits(found.mean - 1.0, found.low - 1.0, found.high - 1.0, found.blocks)


def _per(above: F64, below: F64, error: float) -> Limits:
    """Limits of `sum(above) / sum(below)`, block values `[t]`, by linearising the ratio around its value."""
    total = float(below.sum())
    if total <= 0:
        return Limits(float("nan"), float("nan"), float("nan"), len(below))
    ratio = float(above.sum()) / total
    around = evidence.limits((above - ratio * below) * (len(below) / total), error)
    return Limits(ratio, ratio + around.low, ratio + around.high, len(below))

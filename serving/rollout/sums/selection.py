"""Selection of blocks: their sums as numbers, and the limits and tests on them.

`blocks` keeps the sums as integers and selects; `look` asks. A line is one block, or several that were merged: a longer
block is a valid block, and its limits are those of the same evidence (see `evidence.limits`).
"""

from __future__ import annotations

import numpy as np

from pipeline.arrays import F64, Mask
from serving.rollout.sums import evidence
from serving.rollout.sums.evidence import Limits, Test

__all__ = ["Selection"]

(
    TIME, LAST, VERSION, EXTRA, ROWS, CLICKS, STABLE, CANDIDATE, LOSS_DELTA, AUC_DELTA, AUC_BLOCKS,
    SERVED_ROWS, SERVED_CLICKS, SERVED, EXPOSED, REQUESTS, SQUARES, REQUEST_SQUARES,
) = range(18)  # fmt: skip
COLUMNS = 18
SILENT_CLICKS = 20.0
"""A run of blocks without one click where stable expected this many is an outage of labels, not a measurement."""


def _column(at: int) -> property:
    return property(lambda self: self.lines[:, at])


class Selection:
    """A selection of blocks: float64 `lines` `[t, COLUMNS]`, and each column `[t]` by name.

    `time`, `last` starts of the first and the last block of a line, Unix milliseconds; `rows` paired rows (both arms scored them) and `clicks` on them;
    `stable`, `candidate` sums of the arms' scores over them; `loss_delta` sum of the candidate's LogLoss minus stable's;
    `auc_delta` difference of AUC, summed over the `auc_blocks` that have both classes; `served_rows`, `served_clicks`,
    `served` rows that the candidate answered, clicks and its scores on them; `exposed` exposed rows, paired or not;
    `requests` with paired rows; `squares` of the clicks of rows, `request_squares` of those of requests (of a revision, of
    the change that it makes).
    """

    def __init__(self, lines: F64) -> None:
        self.lines = lines

    time: F64 = _column(TIME)  # type: ignore[assignment]
    last: F64 = _column(LAST)  # type: ignore[assignment]
    rows: F64 = _column(ROWS)  # type: ignore[assignment]
    clicks: F64 = _column(CLICKS)  # type: ignore[assignment]
    stable: F64 = _column(STABLE)  # type: ignore[assignment]
    candidate: F64 = _column(CANDIDATE)  # type: ignore[assignment]
    loss_delta: F64 = _column(LOSS_DELTA)  # type: ignore[assignment]
    auc_delta: F64 = _column(AUC_DELTA)  # type: ignore[assignment]
    auc_blocks: F64 = _column(AUC_BLOCKS)  # type: ignore[assignment]
    served_rows: F64 = _column(SERVED_ROWS)  # type: ignore[assignment]
    served_clicks: F64 = _column(SERVED_CLICKS)  # type: ignore[assignment]
    served: F64 = _column(SERVED)  # type: ignore[assignment]
    exposed: F64 = _column(EXPOSED)  # type: ignore[assignment]
    requests: F64 = _column(REQUESTS)  # type: ignore[assignment]
    squares: F64 = _column(SQUARES)  # type: ignore[assignment]
    request_squares: F64 = _column(REQUEST_SQUARES)  # type: ignore[assignment]

    @property
    def blocks(self) -> int:
        """Number of blocks; one that was merged counts for those that it was made of."""
        return len(self.lines) + round(float(self.lines[:, EXTRA].sum()))

    def spanned_ms(self) -> float:
        """Time from the start of the first block to that of the last, 0 without blocks."""
        return float(self.last.max() - self.time.min()) if len(self.lines) else 0.0

    def bias(self, arm: str = "candidate") -> float:
        """Relative bias of an arm over all paired rows; NaN without a click."""
        clicks = float(self.clicks.sum())
        return float(getattr(self, arm).sum()) / clicks - 1.0 if clicks > 0 else float("nan")

    def bias_limits(self, arm: str, error: float) -> Limits:
        """Relative bias with limits, each one-sided at `error`, by linearising the ratio around its value."""
        return _ratio_limits(getattr(self, arm), self.clicks, error, self.blocks)

    def served_limits(self, error: float) -> Limits:
        """As `bias_limits`, of the candidate on the rows that it answered itself."""
        return _ratio_limits(self.served, self.served_clicks, error, self.blocks)

    def bias_tests(self, bound: float, error: float, at_least: int) -> tuple[Test, Test]:
        """Tests that the candidate's bias lies below +bound and above -bound, each at `error`.

        `Z+ = sum(p - (1 + d) y)` must be below 0 and `Z- = sum(p - (1 - d) y)` above it, per block.
        """
        return _two(self.candidate, self.clicks, bound, error, at_least, self.blocks)

    def served_tests(self, bound: float, error: float, at_least: int) -> tuple[Test, Test]:
        """As `bias_tests`, on the rows that the candidate answered itself."""
        return _two(self.served, self.served_clicks, bound, error, at_least, self.blocks)

    def relative_tests(self, bound: float, error: float, at_least: int) -> tuple[Test, Test]:
        """As `bias_tests`, of the candidate's bias minus stable's: a change of both arms alike cancels."""
        apart = self.candidate - self.stable
        return (
            evidence.test_merged(apart - bound * self.clicks, error, at_least, self.blocks),
            evidence.test_merged(-apart - bound * self.clicks, error, at_least, self.blocks),
        )

    def loss_limits(self, error: float) -> Limits:
        """The candidate's LogLoss per row minus stable's, with limits each one-sided at `error`."""
        return _per(self.loss_delta, self.rows, error, self.blocks)

    def loss_test(self, most: float, error: float, at_least: int) -> Test:
        """Test that the candidate's LogLoss per row exceeds stable's by less than `most`."""
        return evidence.test_merged(self.loss_delta - most * self.rows, error, at_least, self.blocks)

    def auc_test(self, least: float, error: float, at_least: int) -> Test:
        """Test that the candidate's AUC minus stable's, averaged over blocks with both classes, is more than `least`."""
        has = self.auc_blocks > 0
        blocks = self.auc_blocks[has]
        lacking = least * blocks - self.auc_delta[has]
        return evidence.test_merged(lacking, error, at_least, round(float(blocks.sum())))

    def auc_mean(self) -> float:
        """The candidate's AUC minus stable's, averaged over blocks with both classes; NaN without one."""
        blocks = float(self.auc_blocks.sum())
        return float(self.auc_delta.sum()) / blocks if blocks > 0 else float("nan")

    def population_moved(self, error: float, at_least: int, least: float = 0.01) -> bool:
        """Whether the candidate's bias on rows that it served is shown to differ from that on the rest, by `least`."""
        rest_clicks, rest = self.clicks - self.served_clicks, self.candidate - self.served
        clicks = float(rest_clicks.sum())
        if clicks <= 0 or float(self.served_clicks.sum()) < 100:
            return False
        ratio = float(rest.sum()) / clicks
        above = evidence.test_merged(self.served - (ratio + least) * self.served_clicks, error, at_least, self.blocks)
        below = evidence.test_merged((ratio - least) * self.served_clicks - self.served, error, at_least, self.blocks)
        return evidence.Verdict.BREACHED in (above.verdict, below.verdict)

    def coverage(self) -> float:
        """Fraction of exposed rows that both arms scored; NaN without rows."""
        exposed = float(self.exposed.sum())
        return float(self.rows.sum()) / exposed if exposed > 0 else float("nan")

    def silent(self, before: float = 0.0) -> Mask:
        """Mask `[t]` of runs of blocks without a click where stable expected many: the labels are missing.

        Args:
            before: clicks expected in the run of such blocks that ended right before the first one here.
        """
        quiet = self.clicks <= 0
        if not quiet.any():
            return quiet
        order = np.argsort(self.time)
        run = np.empty(len(order), np.intp)
        run[order] = np.cumsum(~quiet[order])
        expected = np.bincount(run[quiet], self.stable[quiet], int(run.max()) + 1)
        expected[0] += before
        missing: Mask = quiet & (expected[run] >= SILENT_CLICKS)
        return missing

    def where(self, mask: Mask) -> Selection:
        """The blocks of a mask `[t]`."""
        return Selection(self.lines[mask])


def _two(predicted: F64, clicks: F64, bound: float, error: float, at_least: int, blocks: int) -> tuple[Test, Test]:
    return (
        evidence.test_merged(predicted - (1.0 + bound) * clicks, error, at_least, blocks),
        evidence.test_merged((1.0 - bound) * clicks - predicted, error, at_least, blocks),
    )


def _ratio_limits(predicted: F64, clicks: F64, error: float, blocks: int) -> Limits:
    found = _per(predicted, clicks, error, blocks)
    return Limits(found.mean - 1.0, found.low - 1.0, found.high - 1.0, found.blocks)


def _per(above: F64, below: F64, error: float, blocks: int) -> Limits:
    """Limits of `sum(above) / sum(below)`, block values `[t]`, by linearising the ratio around its value."""
    total = float(below.sum())
    if total <= 0:
        return Limits(float("nan"), float("nan"), float("nan"), blocks)
    ratio = float(above.sum()) / total
    around = evidence.limits((above - ratio * below) * (len(below) / total), error, blocks)
    return Limits(ratio, ratio + around.low, ratio + around.high, blocks)

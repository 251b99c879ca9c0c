"""Selection of blocks: their sums as numbers, and the limits and tests on them.

`blocks` keeps the sums as integers and selects; `look` asks. A line is one block, or several that were merged: a longer
block is a valid block, and its limits are those of the same evidence (see `evidence.mean_limits`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from pipeline.arrays import F64, Mask
from serving.rollout.sums import evidence
from serving.rollout.sums.evidence import Limits, Test
from serving.rollout.sums.moments import Moments

__all__ = ["LEAST_INFORMATION_BLOCKS", "Selection"]

(
    TIME, LAST, VERSION, EXTRA, ROWS, CLICKS, STABLE, CANDIDATE, LOSS_DELTA, AUC_DELTA, AUC_BLOCKS,
    SERVED_ROWS, SERVED_CLICKS, SERVED, EXPOSED, REQUESTS, SQUARES, REQUEST_SQUARES, LEFT_OUT,
    SERVED_STABLE,
) = range(20)  # fmt: skip
COLUMNS = 20
SILENT_CLICKS = 20.0
"""A run of blocks without one click where stable expected this many is an outage of labels, not a measurement."""
LEAST_INFORMATION_BLOCKS = 50.0
"""Least information of a bias: the limits are asymptotic, and clicks that come in a few clusters are a few values."""
_BOTH_CLASSES = COLUMNS - EXTRA
_ARMS = {"stable": STABLE, "candidate": CANDIDATE}


def _column(at: int) -> property:
    return property(lambda self: self.lines[:, at])


class Selection:
    """A selection of blocks: float64 `lines` `[t, COLUMNS]`, and each column `[t]` by name.

    `time`, `last` starts of the first and the last block of a line, Unix milliseconds; `rows` paired rows (both arms scored them) and `clicks` on them;
    `stable`, `candidate` sums of the arms' scores over them; `loss_delta` sum of the candidate's LogLoss minus stable's;
    `auc_delta` difference of AUC, summed over the `auc_blocks` that have both classes; `served_rows`, `served_clicks`,
    `served` rows that the candidate answered, clicks and its scores on them; `exposed` exposed rows, paired or not;
    `requests` with paired rows; `squares` of the clicks of rows, `request_squares` of those of requests (of a revision, of
    the change that it makes); `left_out` exposed rows that are in no other sum, see `cap`; `served_stable`
    stable's scores on the rows that the candidate answered.
    """

    def __init__(self, lines: F64, moments: Moments | None = None) -> None:
        self.lines = lines
        self._moments = moments
        self._totals: list[float] | None = None
        self._information: dict[tuple[int, int, bool], float] = {}

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
    left_out: F64 = _column(LEFT_OUT)  # type: ignore[assignment]
    served_stable: F64 = _column(SERVED_STABLE)  # type: ignore[assignment]

    @property
    def blocks(self) -> int:
        """Number of blocks; one that was merged counts for those that it was made of."""
        return len(self.lines) + round(self.total(EXTRA))

    def spanned_ms(self) -> float:
        """Time from the start of the first block to that of the last, 0 without blocks."""
        return float(self.last.max() - self.time.min()) if len(self.lines) else 0.0

    def bias(self, arm: str = "candidate") -> float:
        """Relative bias of an arm over all paired rows; NaN without a click."""
        clicks = self.total(CLICKS)
        return self.total(_ARMS[arm]) / clicks - 1.0 if clicks > 0 else float("nan")

    def bias_limits(self, arm: str, error: float) -> Limits:
        """Relative bias with limits, each one-sided at `error`, by linearising the ratio around its value; infinite ones
        before there is enough information."""
        return self._ratio_limits(_ARMS[arm], CLICKS, error)

    def served_limits(self, error: float) -> Limits:
        """As `bias_limits`, of the candidate on the rows that it answered itself."""
        return self._ratio_limits(SERVED, SERVED_CLICKS, error)

    def bias_tests(self, bound: float, error: float, at_least: int, *, batched: bool = True) -> tuple[Test, Test]:
        """Tests that the candidate's bias lies below +bound and above -bound, each at `error`.

        `Z+ = sum(p - (1 + d) y)` must be below 0 and `Z- = sum(p - (1 - d) y)` above it, per block. OPEN before there is
        enough information. `batched`: with the variance of batches (`moments`); a short window has too few of them.
        """
        return self._bias_tests(CANDIDATE, CLICKS, bound, error, at_least, batched)

    def beyond(self, bound: float, error: float, at_least: int, *, served: bool = False, batched: bool = True) -> bool:
        """Whether the candidate's bias, on all rows or on those that it answered, is shown to be beyond plus or minus `bound`."""
        scores, clicks = (SERVED, SERVED_CLICKS) if served else (CANDIDATE, CLICKS)
        if abs(self.total(scores) - self.total(clicks)) <= bound * self.total(clicks):
            return False  # what the estimate does not say is not shown
        tests = self._bias_tests(scores, clicks, bound, error, at_least, batched)
        return any(test.verdict is evidence.Verdict.BREACHED for test in tests)

    def relative_tests(self, bound: float, error: float, at_least: int, *, batched: bool = True) -> tuple[Test, Test]:
        """As `bias_tests`, of the candidate's bias minus stable's: a change of both arms alike cancels."""
        return (
            self._bias_test(
                {CANDIDATE: 1.0, STABLE: -1.0, CLICKS: -bound}, CANDIDATE, CLICKS, error, at_least, batched
            ),
            self._bias_test(
                {CANDIDATE: -1.0, STABLE: 1.0, CLICKS: -bound}, CANDIDATE, CLICKS, error, at_least, batched
            ),
        )

    def loss_limits(self, error: float) -> Limits:
        """The candidate's LogLoss per row minus stable's, with limits each one-sided at `error`."""
        return self._per(LOSS_DELTA, ROWS, error, batched=False)

    def loss_test(self, most: float, error: float, at_least: int) -> Test:
        """Test that the candidate's LogLoss per row exceeds stable's by less than `most`."""
        return self._test({LOSS_DELTA: 1.0, ROWS: -most}, error, at_least, batched=False)

    def loss_mean(self) -> float:
        """The candidate's LogLoss per row minus stable's; NaN without rows."""
        rows = self.total(ROWS)
        return self.total(LOSS_DELTA) / rows if rows > 0 else float("nan")

    def auc_test(self, least: float, error: float, at_least: int) -> Test:
        """Test that the candidate's AUC minus stable's, averaged over blocks with both classes, is more than `least`."""
        vector, moments = _weights({AUC_BLOCKS: least, AUC_DELTA: -1.0}), self.moments
        values = round(float(moments.sums[_BOTH_CLASSES]))
        mean = float(vector @ moments.sums) / values if values else math.nan
        found = evidence.mean_limits(
            mean, moments.variance(vector, batched=False, count=values), values, round(self.total(AUC_BLOCKS)), error
        )
        return evidence.test_limits(found, values, error, at_least)

    def auc_mean(self) -> float:
        """The candidate's AUC minus stable's, averaged over blocks with both classes; NaN without one."""
        blocks = self.total(AUC_BLOCKS)
        return self.total(AUC_DELTA) / blocks if blocks > 0 else float("nan")

    def population_moved(self, error: float, at_least: int, least: float = 0.01) -> bool:
        """Whether the candidate's bias on rows that it served is shown to differ from that on the rest, by `least`."""
        clicks, served_clicks = self.total(CLICKS), self.total(SERVED_CLICKS)
        if clicks <= served_clicks or served_clicks < 100:
            return False
        ratio = (self.total(CANDIDATE) - self.total(SERVED)) / (clicks - served_clicks)
        above = self._bias_test(
            {SERVED: 1.0, SERVED_CLICKS: -ratio - least}, SERVED, SERVED_CLICKS, error, at_least, True
        )
        below = self._bias_test(
            {SERVED: -1.0, SERVED_CLICKS: ratio - least}, SERVED, SERVED_CLICKS, error, at_least, True
        )
        return evidence.Verdict.BREACHED in (above.verdict, below.verdict)

    def earns_less(self, fraction: float, error: float, at_least: int) -> bool:
        """Whether the clicks on rows that the candidate served are shown to be below a fraction of what each arm expects of them."""
        for scores in (SERVED, SERVED_STABLE):
            test = self._test({SERVED_CLICKS: 1.0, scores: -fraction}, error, at_least, batched=False)
            if test.verdict is not evidence.Verdict.HOLDS:
                return False
        return True

    def lacks_labels(self, bias: float, error: float, at_least: int) -> bool:
        """Whether stable's bias on rows that the candidate served is shown to be above `bias`."""
        weights = {SERVED_STABLE: 1.0, SERVED_CLICKS: -1.0 - bias}
        return (
            self._bias_test(weights, SERVED_STABLE, SERVED_CLICKS, error, at_least, True).verdict
            is evidence.Verdict.BREACHED
        )

    def coverage(self) -> float:
        """Fraction of exposed rows that both arms scored; NaN without rows."""
        exposed = self.total(EXPOSED)
        return self.total(ROWS) / exposed if exposed > 0 else float("nan")

    def left_out_fraction(self) -> float:
        """Fraction of all exposed rows that was left out, since their keys have too many of them; 0 without rows."""
        left_out = self.total(LEFT_OUT)
        return left_out / (left_out + self.total(EXPOSED)) if left_out > 0 else 0.0

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

    @staticmethod
    def no_moments() -> Moments:
        """Moments of no lines, to add to."""
        return Moments(_BOTH_CLASSES + 1)

    @staticmethod
    def tested(lines: F64) -> F64:
        """What moments are made of: the columns of lines `[t, COLUMNS]` that add up, and whether a line has both classes."""
        return np.column_stack([lines[:, EXTRA:], lines[:, AUC_BLOCKS] > 0])

    @property
    def moments(self) -> Moments:
        """Moments of what tests are made of."""
        if self._moments is None:
            self._moments = self.no_moments()
            self._moments.add(self.tested(self.lines))
        return self._moments

    def total(self, column: int) -> float:
        """Sum of a column."""
        if self._totals is None:
            sums = self.lines[:, EXTRA:].sum(axis=0) if self._moments is None else self._moments.sums
            self._totals = sums.tolist()
        return self._totals[column - EXTRA]

    def information(self, scores: int = CANDIDATE, clicks: int = CLICKS, *, batched: bool = True) -> float:
        """Number of equal and independent blocks that are worth as much as these for a bias: `(sum y)^2 / sum y^2` of their clicks,
        and with `batched` divided by how much wider batches of blocks spread than blocks alone."""
        key = (scores, clicks, batched)
        if key not in self._information:
            self._information[key] = self._find_information(*key)
        return self._information[key]

    def _find_information(self, scores: int, clicks: int, batched: bool) -> float:
        found = self.moments.information(clicks - EXTRA)
        if not batched or found <= 0:
            return found
        around = _weights({scores: 1.0, clicks: -self.total(scores) / self.total(clicks)})
        single = self.moments.variance(around, batched=False)
        return found * single / self.moments.variance(around, batched=True) if single > 0 else found

    def _bias_tests(
        self, scores: int, clicks: int, bound: float, error: float, at_least: int, batched: bool
    ) -> tuple[Test, Test]:
        return (
            self._bias_test({scores: 1.0, clicks: -1.0 - bound}, scores, clicks, error, at_least, batched),
            self._bias_test({scores: -1.0, clicks: 1.0 - bound}, scores, clicks, error, at_least, batched),
        )

    def _bias_test(
        self, weights: Mapping[int, float], scores: int, clicks: int, error: float, at_least: int, batched: bool
    ) -> Test:
        found = self._test(weights, error, at_least, batched)
        enough = self.information(scores, clicks, batched=batched) >= LEAST_INFORMATION_BLOCKS
        return found if enough else replace(found, verdict=evidence.Verdict.OPEN)

    def _test(self, weights: Mapping[int, float], error: float, at_least: int, batched: bool) -> Test:
        return evidence.test_limits(self._limits(weights, error, batched), len(self.lines), error, at_least)

    def _limits(self, weights: Mapping[int, float], error: float, batched: bool) -> Limits:
        """Limits of the mean of the weighted sums of columns, by line."""
        vector, moments = _weights(weights), self.moments
        return evidence.mean_limits(
            moments.mean(vector), moments.variance(vector, batched=batched), moments.count, self.blocks, error
        )

    def _ratio_limits(self, scores: int, clicks: int, error: float) -> Limits:
        found = self._per(scores, clicks, error, batched=True)
        if self.information(scores, clicks) < LEAST_INFORMATION_BLOCKS:
            return Limits(found.mean - 1.0, -math.inf, math.inf, found.blocks)
        return Limits(found.mean - 1.0, found.low - 1.0, found.high - 1.0, found.blocks)

    def _per(self, above: int, below: int, error: float, *, batched: bool) -> Limits:
        """Limits of the ratio of two columns' sums, by linearising it around its value."""
        total = self.total(below)
        if total <= 0:
            return Limits(math.nan, math.nan, math.nan, self.blocks)
        ratio = self.total(above) / total
        each = len(self.lines) / total
        around = self._limits({above: each, below: -ratio * each}, error, batched)
        return Limits(ratio, ratio + around.low, ratio + around.high, self.blocks)


def _weights(weights: Mapping[int, float]) -> F64:
    vector = np.zeros(_BOTH_CLASSES + 1)
    for column, weight in weights.items():
        vector[column - EXTRA] = weight
    return vector

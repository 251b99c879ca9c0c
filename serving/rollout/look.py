"""One look at the labels: the guard that is shown to be breached, the evidence still missing, and the figures seen.

`reconcile` makes one at each look, and `explain` makes it again to explain a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from pipeline.hashing import canonical, hash_value
from serving.rollout.spec import MIN_BLOCKS, MIN_WINDOW_BLOCKS, Rollout, SliceGuard
from serving.rollout.state import RolloutState
from serving.rollout.sums.blocks import BlockTable
from serving.rollout.sums.evidence import Test, Verdict, attempt_error, finite, shown
from serving.rollout.sums.selection import Selection
from serving.rollout.sums.view import EvidenceView

__all__ = ["Look"]

RELATIVE_BIAS_LIMIT_FRACTION = 0.10
"""With `relative_to_stable`: bias of stable from which on the difference of the arms proves nothing."""
_LEAST_SERVED_CLICKS = 100.0


class Look:
    """One look at the labels. `seen` collects the figures for the audit."""

    def __init__(self, spec: Rollout, state: RolloutState, table: BlockTable) -> None:
        self.spec, self.state, self._table = spec, state, table
        self._view = view = EvidenceView(table)
        self.silent = view.silent
        """The newest rows have no click at all where many were expected: they prove nothing."""
        self.rows = view.all()
        self._window_ms = (table.newest_ms or 0) - spec.analysis.breach_window * 1000
        self.window = view.since(self._window_ms)
        self._step_rows = view.since(state.entered_ms)
        rows, window = self.rows, self.window
        self.error = attempt_error(spec.analysis.confidence, state.attempt)
        self.missing: int | None = None
        interval = rows.bias_limits("candidate", self.error / 2)
        self.seen: dict[str, Any] = {
            "attempt": state.attempt,
            "error": self.error,
            "blocks": rows.blocks,
            "from_ms": state.evidence_from_ms,
            "until_ms": int(rows.last.max()) if rows.blocks else state.evidence_from_ms,
            "rows": float(rows.rows.sum()),
            "clicks": float(rows.clicks.sum()),
            "bias": finite(interval.mean),
            "bias_low": finite(interval.low),
            "bias_high": finite(interval.high),
            "stable_bias": finite(rows.bias("stable")),
            "window_bias": finite(window.bias()),
            "logloss_delta": finite(_mean(rows.loss_delta.sum(), rows.rows.sum())),
            "auc_delta": finite(rows.auc_mean()),
        }
        if spec.guards.outcome_delta_min is not None:
            self.seen["outcome_delta"] = finite(table.outcome.difference(self.error / 2).mean)
        for guard, label, part in self._slices("evidence"):
            self.seen[f"rows of {label}"] = float(part.rows.sum())
            if guard.logloss_delta_max is not None:
                self.seen[f"logloss_delta of {label}"] = finite(_mean(part.loss_delta.sum(), part.rows.sum()))
            if guard.bias_below is not None:
                self.seen[f"bias of {label}"] = finite(part.bias())

    def breach(self) -> tuple[str, str] | None:
        """(guard, message) of the first guard that is shown to be breached, in the window or in all evidence.

        Each guard has its own error. The k-th window length since the evidence began spends a fraction 1 / (k (k + 1))
        of it: a window that slides for weeks would otherwise raise a false alarm sooner or later.
        """
        guards = self.spec.guards
        spanned = self.rows.spanned_ms() / 1000
        k = 1 + int(spanned // self.spec.analysis.breach_window)
        if worse := self._clicked_less():
            return worse
        for name, chosen, least, error in (
            ("window", self.window, MIN_WINDOW_BLOCKS, self.error / (2 * k * (k + 1))),
            ("evidence", self.rows, MIN_BLOCKS, self.error / 2),
        ):
            if chosen.blocks < least:
                continue
            bound = self._bound_now()
            if not self._excused(chosen, bound, error, least):
                if _breached(chosen.bias_tests(bound, error, least)):
                    return "bias", f"bias {shown(chosen.bias())} over the {name} is shown to be beyond {bound:g}"
                enough = float(chosen.served_clicks.sum()) >= _LEAST_SERVED_CLICKS
                if enough and _breached(chosen.served_tests(bound, error, least)):
                    served = chosen.served_limits(error).mean
                    return (
                        "served_bias",
                        f"bias {shown(served)} on rows it served ({name}) is shown to be beyond {bound:g}",
                    )
            if guards.logloss_delta_max is not None and _breached(
                (chosen.loss_test(guards.logloss_delta_max, error, least),)
            ):
                delta = _mean(chosen.loss_delta.sum(), chosen.rows.sum())
                return (
                    "logloss_delta_max",
                    f"logloss_delta {shown(delta, 5)} over the {name}, at most {guards.logloss_delta_max:g}",
                )
            if guards.auc_delta_min is not None and _breached((chosen.auc_test(guards.auc_delta_min, error, least),)):
                return (
                    "auc_delta_min",
                    f"auc_delta {shown(chosen.auc_mean(), 5)} over the {name}, at least {guards.auc_delta_min:g}",
                )
            # All slices share one error: each of many would otherwise raise a false alarm of its own.
            for guard, label, part in self._slices(name):
                if part.blocks < least:
                    continue
                for seen, tests in self._slice_tests(guard, part, error / len(self.spec.named_slices), least):
                    if _breached(tests):
                        return "segments", f"segment {label}: {seen} over the {name} is shown to be worse"
        return None

    def not_yet(self) -> str:
        """Why the next step cannot be entered yet, empty if it can; sets `missing` to the number of missing clicks."""
        step, following = self.spec.steps[self.state.step], self.spec.steps[self.state.step + 1]
        clicks = float(self.rows.clicks.sum())
        if step.shadow and clicks < step.min_positives:
            self.missing = math.ceil(step.min_positives - clicks)
            return f"min_positives: {self.missing} more clicks of {step.min_positives}"
        if self.rows.blocks < MIN_BLOCKS:
            lacking = MIN_BLOCKS - self.rows.blocks
            self.missing = math.ceil(lacking * clicks / self.rows.blocks) if self.rows.blocks else None
            return f"{self.rows.blocks} of the {MIN_BLOCKS} blocks that any evidence needs"
        bound, what = following.bound, f"bias_below {following.bound:g} for weight {following.weight:g}"
        # With relative_to_stable there are two ways to show it, so each has half of the error.
        error = self.error / 4 if self.spec.relative_to_stable else self.error / 2
        tests = self.rows.bias_tests(bound, error, MIN_BLOCKS)
        relatively = False
        if self.spec.relative_to_stable and not _all_hold(tests):
            relative = self.rows.relative_tests(bound, error, MIN_BLOCKS)
            if _all_hold(relative) and abs(self.rows.bias("stable")) < RELATIVE_BIAS_LIMIT_FRACTION:
                tests, relatively = relative, True
        if not _all_hold(tests):
            return self._lacking(what, f"bias {shown(self.seen['bias'])}", tests)
        if self._step_rows.blocks < MIN_WINDOW_BLOCKS:
            return f"{self._step_rows.blocks} of the {MIN_WINDOW_BLOCKS} blocks that each step needs of its own"
        for name, chosen in (("the breach window", self.window), ("this step alone", self._step_rows)):
            recent = chosen.bias() - (chosen.bias("stable") if relatively else 0.0)
            if not abs(recent) < bound:  # unknown without a click, which proves nothing
                return f"{what}: shown over all evidence, but {name} is at {shown(recent)}"
        guards = self.spec.guards
        if guards.logloss_delta_max is not None:
            test = self.rows.loss_test(guards.logloss_delta_max, self.error, MIN_BLOCKS)
            delta = _mean(self.rows.loss_delta.sum(), self.rows.rows.sum())
            if test.verdict is not Verdict.HOLDS:
                return self._lacking(
                    f"logloss_delta_max {guards.logloss_delta_max:g}", f"difference {shown(delta, 5)}", (test,)
                )
        if guards.auc_delta_min is not None:
            test = self.rows.auc_test(guards.auc_delta_min, self.error, MIN_BLOCKS)
            delta = self.rows.auc_mean()
            if test.verdict is not Verdict.HOLDS:
                return self._lacking(
                    f"auc_delta_min {guards.auc_delta_min:g}", f"difference {shown(delta, 5)}", (test,)
                )
        for guard, label, part in self._slices("evidence"):
            if part.blocks < MIN_BLOCKS:
                return f"segment {label}: {part.blocks} of the {MIN_BLOCKS} blocks that any evidence needs"
            for seen, wanted in self._slice_tests(guard, part, self.error, MIN_BLOCKS):
                if not _all_hold(wanted):
                    return self._lacking(f"segment {label}", seen, wanted)
        return ""

    def _slices(self, name: str) -> Iterator[tuple[SliceGuard, str, Selection]]:
        """Named slices with their blocks in the breach window or in all evidence, without outages of labels."""
        for guard, value in self.spec.named_slices:
            part = (guard.field, hash_value(guard.field, value))
            found = self._view.since(self._window_ms, part) if name == "window" else self._view.all(part)
            yield guard, f"{guard.field}={canonical(value)}", found

    def _slice_tests(
        self, guard: SliceGuard, part: Selection, error: float, least: int
    ) -> Iterator[tuple[str, tuple[Test, ...]]]:
        """(message, tests that must hold) of one slice."""
        if guard.logloss_delta_max is not None:
            delta = _mean(part.loss_delta.sum(), part.rows.sum())
            yield (
                f"logloss_delta {shown(delta, 5)}, at most {guard.logloss_delta_max:g}",
                (part.loss_test(guard.logloss_delta_max, error, least),),
            )
        if guard.bias_below is not None:
            yield (
                f"bias {shown(part.bias())}, within {guard.bias_below:g}",
                part.bias_tests(guard.bias_below, error / 2, least),
            )

    def _clicked_less(self) -> tuple[str, str] | None:
        """As `breach`, of the outcome per request during the present stay; the stays of an attempt share one error."""
        least, sums = self.spec.guards.outcome_delta_min, self._table.outcome
        if least is None or sums.outcome("candidate") < _LEAST_SERVED_CLICKS:
            return None
        error = self.error / (2 * (len(self.spec.steps) - 1))
        effect, base = sums.difference(error), sums.limits("stable", error).mean
        if effect.high >= least * base:
            return None
        seen = f"outcome per request {shown(effect.mean / base)} against stable's at this weight, at least {least:g}"
        return "outcome_delta_min", seen

    def _bound_now(self) -> float:
        """Bias bound of the present step; in shadow, that of the first weight."""
        return self.spec.steps[max(1, self.state.step)].bound

    def _excused(self, chosen: Selection, bound: float, error: float, least: int) -> bool:
        """With `relative_to_stable`: a bias of both arms alike is no breach, up to a limit on stable's own bias."""
        if not self.spec.relative_to_stable or abs(chosen.bias("stable")) >= RELATIVE_BIAS_LIMIT_FRACTION:
            return False
        return not _breached(chosen.relative_tests(bound, error, least))

    def _lacking(self, what: str, estimate: str, tests: tuple[Test, ...]) -> str:
        open_tests = [test for test in tests if test.verdict is not Verdict.HOLDS]
        needs = [test.missing() for test in open_tests]
        if None in needs:
            return f"{what}: not shown; at the present estimate ({estimate}) no number of labels will show it"
        more = max(need or 0 for need in needs)
        self.missing = math.ceil(more * float(self.rows.clicks.sum()) / max(1, self.rows.blocks))
        return f"{what}: not yet shown ({estimate}); about {self.missing} more clicks at the present estimate"


def _breached(tests: tuple[Test, ...]) -> bool:
    return any(test.verdict is Verdict.BREACHED for test in tests)


def _all_hold(tests: tuple[Test, ...]) -> bool:
    return all(test.verdict is Verdict.HOLDS for test in tests)


def _mean(total: Any, count: Any) -> float:
    return float(total) / float(count) if count > 0 else math.nan

"""One look at the labels: the guard that is shown to be breached, the evidence still missing, and the figures seen.

`reconcile` makes one at each look, and `explain` makes it again to explain a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from pipeline.hashing import canonical, hash_value
from serving.rollout.loss_bound import VACUOUS_FRACTION, entropy, nats
from serving.rollout.routing import is_observed
from serving.rollout.spec import MIN_BLOCKS, MIN_WINDOW_BLOCKS, Rollout, SliceGuard
from serving.rollout.state import RolloutState
from serving.rollout.sums.blocks import BlockTable
from serving.rollout.sums.cap import MUCH_LEFT_OUT_FRACTION
from serving.rollout.sums.evidence import Test, Verdict, attempt_error, finite, shown
from serving.rollout.sums.sample_ratio import SampleRatio
from serving.rollout.sums.selection import (
    CLICKS,
    LEAST_INFORMATION_BLOCKS,
    REQUESTS,
    ROWS,
    SERVED,
    SERVED_CLICKS,
    SERVED_ROWS,
    SERVED_STABLE,
    STABLE,
    Selection,
)
from serving.rollout.sums.shown_fraction import ShownFraction
from serving.rollout.sums.view import EvidenceView

__all__ = ["Look"]

RELATIVE_BIAS_LIMIT_FRACTION = 0.10
"""With `relative_to_stable`: bias of stable from which on the difference of the arms proves nothing."""
SHORT_FRACTION = 0.5
"""Of the clicks that both arms expect on rows that the candidate answered: fewer are a breach."""
_LEAST_EXPECTED_CLICKS = 100.0
_LEAST_OWN_CLICKS = 20.0
_HOUR_MS = 3_600_000


class Look:
    """One look at the labels. `seen` collects the figures for the audit.

    `rows` are all evidence, and `whole` what a bias is judged by: all of it too, or with an evidence span the part that fills whole
    spans, so that what swings over the day is no bias.
    """

    def __init__(self, spec: Rollout, state: RolloutState, table: BlockTable) -> None:
        self.spec, self.state, self._table = spec, state, table
        self._view = view = EvidenceView(table)
        self.silent = view.silent
        """The newest rows have no click at all where many were expected: they prove nothing."""
        newest = table.newest_ms or 0
        self._spanned_ms = max(0, newest - table.origin * table.block_ms)
        self._cut_ms: int | None = None
        if span := spec.analysis.span_ms:
            self._cut_ms = table.origin * table.block_ms + self._spanned_ms // span * span
        self.rows = view.all()
        self.whole = self.rows if self._cut_ms is None else view.between(0, self._cut_ms)
        self._window_ms = newest - spec.analysis.window_ms
        self.window = view.since(self._window_ms)
        rows = self.rows
        self.error = attempt_error(spec.analysis.confidence, state.attempt)
        self.missing: int | None = None
        self.notes: list[str] = []
        """What an operator should know besides the reason to hold."""
        interval = self.whole.bias_limits("candidate", self.error / 2)
        self.seen: dict[str, Any] = {
            "attempt": state.attempt,
            "error": self.error,
            "blocks": rows.blocks,
            "from_ms": state.evidence_from_ms,
            "until_ms": int(rows.last.max()) if rows.blocks else state.evidence_from_ms,
            "rows": rows.total(ROWS),
            "clicks": rows.total(CLICKS),
            "bias": finite(rows.bias()),
            "bias_low": finite(interval.low),
            "bias_high": finite(interval.high),
            "stable_bias": finite(rows.bias("stable")),
            "window_bias": finite(self.window.bias()),
            "logloss_delta": finite(rows.loss_mean()),
            "auc_delta": finite(rows.auc_mean()),
            "left_out": rows.left_out_fraction(),
        }
        if self._cut_ms is not None:
            self.seen["spanned_ms"] = self._spanned_ms
        if spec.guards.outcome_delta_min is not None:
            self.seen["outcome_delta"] = finite(table.outcome.difference(self.error / 2).mean)
        most = spec.guards.logloss_delta_max
        if isinstance(most, float) and rows.blocks >= MIN_BLOCKS:
            base = entropy(rows.total(CLICKS), rows.total(ROWS))
            if most > VACUOUS_FRACTION * base > 0:
                self.notes.append(
                    f"logloss_delta_max {most:g} is {most / base:.0%} of the entropy of the click rate, which hardly any candidate "
                    'exceeds; write a percentage, for example "0.5%"'
                )
        if (left_out := self.seen["left_out"]) > MUCH_LEFT_OUT_FRACTION:
            self.notes.append(
                f"{left_out:.0%} of the rows are left out as evidence: single keys have more than their share (analysis.key_cap)"
            )
        for guard, label, part in self._slices("evidence"):
            self.seen[f"rows of {label}"] = part.total(ROWS)
            if guard.logloss_delta_max is not None:
                self.seen[f"logloss_delta of {label}"] = finite(part.loss_mean())
            if guard.bias_below is not None:
                self.seen[f"bias of {label}"] = finite(part.bias())

    def breaches(self) -> Iterator[tuple[str, str]]:
        """(guard, message) of every guard that is shown to be breached: LogLoss, AUC and slices in the window or in all evidence, a
        bias in all evidence.

        Each guard has its own error. The k-th window length since the evidence began spends a fraction 1 / (k (k + 1))
        of it: a window that slides for weeks would otherwise raise a false alarm sooner or later.
        """
        guards = self.spec.guards
        if worse := self._clicked_less():
            yield worse
        if short := self._earns_little():
            yield short
        if self.whole.blocks >= MIN_BLOCKS:
            yield from self._biased(self.whole, self._bound_now(), self.error / 2, MIN_BLOCKS, "evidence", batched=True)
        for name, chosen, least, error in (
            ("window", self.window, MIN_WINDOW_BLOCKS, self._window_error()),
            ("evidence", self.rows, MIN_BLOCKS, self.error / 2),
        ):
            if chosen.blocks < least:
                continue
            if guards.logloss_delta_max is not None:
                most = self._nats(guards.logloss_delta_max)
                if chosen.loss_mean() > most and _breached((chosen.loss_test(most, error, least),)):
                    delta = chosen.loss_mean()
                    yield "logloss_delta_max", f"logloss_delta {shown(delta, 5)} over the {name}, at most {most:.2g}"
            if guards.auc_delta_min is not None and _breached((chosen.auc_test(guards.auc_delta_min, error, least),)):
                yield (
                    "auc_delta_min",
                    f"auc_delta {shown(chosen.auc_mean(), 5)} over the {name}, at least {guards.auc_delta_min:g}",
                )
            # All slices share one error: each of many would otherwise raise a false alarm of its own.
            for guard, label, part in self._slices(name):
                if part.blocks < least:
                    continue
                for seen, tests in self._slice_tests(guard, part, error / len(self.spec.named_slices), least):
                    if _breached(tests):
                        yield "segments", f"segment {label}: {seen} over the {name} is shown to be worse"

    def holds(self) -> Iterator[tuple[str, str]]:
        """(alarm, reason) to hold and to look: a bias that only a window shows, which the hour of the day may be the cause of; labels that
        one arm's rows lack; an arm that answers far fewer rows than its weight says."""
        if self.window.blocks >= MIN_WINDOW_BLOCKS:
            bound = 2 * self._bound_now()
            for _, seen in self._biased(self.window, bound, self._window_error(), MIN_WINDOW_BLOCKS, "breach window"):
                yield "drift", f"drift: {seen}"
        day = self.spec.analysis.span_ms
        if day and self._spanned_ms >= day:
            end = self._table.origin * self._table.block_ms + self._spanned_ms // _HOUR_MS * _HOUR_MS
            recent = self._view.between(end - day, end)
            k = 1 + self._spanned_ms // day
            error = self.error / (2 * k * (k + 1))
            for _, seen in self._biased(recent, self._bound_now(), error, MIN_BLOCKS, "last evidence span"):
                yield "drift", f"drift: {seen}"
        if late := self._labels_lack(self.rows, self._bound_now(), shown_at=self.error / 2):
            yield "late_labels", late
        if unasked := self._answers_too_little():
            yield "answers", unasked
        elif ratio := self._sample_ratio():
            yield "sample_ratio", ratio

    def not_yet(self) -> str:
        """Why the next step cannot be entered yet, empty if it can; sets `missing` to the number of missing clicks."""
        step, following = self.spec.steps[self.state.step], self.spec.steps[self.state.step + 1]
        clicks = self.rows.total(CLICKS)
        if step.shadow and clicks < step.min_positives:
            self.missing = math.ceil(step.min_positives - clicks)
            return f"min_positives: {self.missing} more clicks of {step.min_positives}"
        if self.rows.blocks < MIN_BLOCKS:
            lacking = MIN_BLOCKS - self.rows.blocks
            self.missing = math.ceil(lacking * clicks / self.rows.blocks) if self.rows.blocks else None
            return f"{self.rows.blocks} of the {MIN_BLOCKS} blocks that any evidence needs"
        span = self.spec.analysis.span_ms
        if span and self._spanned_ms < span:
            return (
                f"evidence_span: evidence of {self._spanned_ms / _HOUR_MS:.1f} h, and it has to span {span / _HOUR_MS:g} h, since a "
                f"bias may swing over the day; {(span - self._spanned_ms) / _HOUR_MS:.1f} h left"
            )
        if (information := self.whole.information()) < LEAST_INFORMATION_BLOCKS:
            return (
                f"{self.whole.blocks} blocks, worth {information:.0f} of the {LEAST_INFORMATION_BLOCKS:g} equal and independent ones that "
                "evidence on a bias needs"
            )
        if unclicked := self._own_clicks_lack():
            return unclicked
        ratio = self._shown_requests
        if ratio is not None and ratio.doubtful:
            return f"sample ratio: {ratio}; this may be chance, and the next step waits until it looks right"
        if self._shown_fraction.doubtful:
            return f"shown fraction: {self._shown_fraction}; this may be chance, and the next step waits until they are alike"
        bound, what = following.bound, f"bias_below {following.bound:g} for weight {following.weight:g}"
        if lacking_bias := self._bias_lacks(bound, what):
            return lacking_bias
        guards = self.spec.guards
        if guards.logloss_delta_max is not None:
            most = self._nats(guards.logloss_delta_max)
            test = self.rows.loss_test(most, self.error, MIN_BLOCKS)
            if test.verdict is not Verdict.HOLDS:
                return self._lacking(
                    f"logloss_delta_max {most:.2g}", f"difference {shown(self.rows.loss_mean(), 5)}", (test,)
                )
        if guards.auc_delta_min is not None:
            test = self.rows.auc_test(guards.auc_delta_min, self.error, MIN_BLOCKS)
            if test.verdict is not Verdict.HOLDS:
                return self._lacking(
                    f"auc_delta_min {guards.auc_delta_min:g}", f"difference {shown(self.rows.auc_mean(), 5)}", (test,)
                )
        for guard, label, part in self._slices("evidence"):
            if part.blocks < MIN_BLOCKS:
                return f"segment {label}: {part.blocks} of the {MIN_BLOCKS} blocks that any evidence needs"
            for seen, wanted in self._slice_tests(guard, part, self.error, MIN_BLOCKS):
                if not _all_hold(wanted):
                    return self._lacking(f"segment {label}", seen, wanted)
        return ""

    def _bias_lacks(self, bound: float, what: str) -> str:
        """As `not_yet`, of the bias alone."""
        # Both sides have to hold, and the bias is beyond one bound at most: each side has the whole error (Berger 1982,
        # "Multiparameter hypothesis testing and acceptance sampling"). With relative_to_stable there are two ways to show it, so each
        # has half of it; without whole days there is one, since both arms' bias may swing alike and be low for an hour.
        relative, relatively = self.spec.relative_to_stable, False
        error = self.error / 2 if relative and self._cut_ms is not None else self.error
        tests = self.whole.bias_tests(bound, error, MIN_BLOCKS)
        if relative and (self._cut_ms is None or not _all_hold(tests)):
            found = self.whole.relative_tests(bound, error, MIN_BLOCKS)
            small = abs(self.whole.bias("stable")) < RELATIVE_BIAS_LIMIT_FRACTION
            if small and (self._cut_ms is None or _all_hold(found)):
                tests, relatively = found, True
        if not _all_hold(tests):
            return self._lacking(what, f"bias {shown(self.whole.bias())}", tests)
        if self._step_rows.blocks < MIN_WINDOW_BLOCKS:
            return f"{self._step_rows.blocks} of the {MIN_WINDOW_BLOCKS} blocks that each step needs of its own"
        newest = self._view.newest(self.state.candidate_version, MIN_BLOCKS)
        chosen = [
            ("the newest version alone" if newest.blocks > MIN_BLOCKS else f"its newest {MIN_BLOCKS} blocks", newest)
        ]
        if self._cut_ms is None:
            chosen += [("the breach window", self.window), ("this step alone", self._step_rows)]
        for name, recent in chosen:
            bias = recent.bias() - (recent.bias("stable") if relatively else 0.0)
            if not abs(bias) < bound:  # unknown without a click, which proves nothing
                return f"{what}: shown over all evidence, but {name} is at {shown(bias)}"
        return ""

    def _biased(
        self, chosen: Selection, bound: float, error: float, least: int, name: str, *, batched: bool = False
    ) -> Iterator[tuple[str, str]]:
        """(guard, message) of a bias beyond a bound on all rows, and on those that the candidate answered."""
        if self._excused(chosen, bound, error, least, batched) or self._labels_lack(chosen, bound):
            return
        if chosen.beyond(bound, error, least, batched=batched):
            yield "bias", f"bias {shown(chosen.bias())} over the {name} is shown to be beyond {bound:g}"
        expected = max(chosen.total(SERVED), chosen.total(SERVED_CLICKS))
        if expected >= _LEAST_EXPECTED_CLICKS and chosen.beyond(bound, error, least, served=True, batched=batched):
            served = chosen.served_limits(error).mean
            yield "served_bias", f"bias {shown(served)} on rows it served ({name}) is shown to be beyond {bound:g}"

    def _earns_little(self) -> tuple[str, str] | None:
        """As `breaches`, of clicks on rows that the candidate answered: far fewer than either arm expects of them, while the rows that
        stable answered earn what they should. Without any click a bias cannot be told, so this one counts what was expected."""
        chosen = self.window
        clicks, expected = chosen.total(SERVED_CLICKS), min(chosen.total(SERVED), chosen.total(SERVED_STABLE))
        if expected < _LEAST_EXPECTED_CLICKS or clicks >= SHORT_FRACTION * expected:
            return None
        rest = chosen.total(CLICKS) - clicks
        rest_expected = chosen.total(STABLE) - chosen.total(SERVED_STABLE)
        if rest < SHORT_FRACTION * rest_expected or rest <= 0:
            return None  # both are silent: the labels have failed
        if not chosen.earns_less(SHORT_FRACTION, self._window_error(), MIN_WINDOW_BLOCKS):
            return None
        return (
            "served_clicks",
            f"{clicks:.0f} clicks on {chosen.total(SERVED_ROWS):.0f} rows that the candidate answered, where both arms expect at least "
            f"{expected:.0f}; {rest:.0f} of {rest_expected:.0f} on the rows of stable",
        )

    def _own_clicks_lack(self) -> str:
        """As `not_yet`, of clicks on rows that the candidate answered in this stay. Both arms' scores of other rows say nothing of what its
        own answers earn; where they are few, the wait ends with the breach window."""
        if self.state.weight <= 0:
            return ""
        own = self._step_rows
        expected = min(own.total(SERVED), own.total(SERVED_STABLE))
        stayed = (self._table.newest_ms or 0) - self.state.entered_ms
        if expected < _LEAST_OWN_CLICKS:
            if stayed >= self.spec.analysis.window_ms:
                return ""
            return f"{expected:.0f} of the {_LEAST_OWN_CLICKS:g} clicks expected that the candidate's own answers at this step need"
        clicks = own.total(SERVED_CLICKS)
        if clicks >= SHORT_FRACTION * expected:
            return ""
        return f"{clicks:.0f} clicks on the candidate's own answers at this step, where both arms expect at least {expected:.0f}"

    def _labels_lack(self, chosen: Selection, bound: float, *, shown_at: float | None = None) -> str:
        """Reason to hold where rows that the candidate answered lack labels, empty if they do not: both arms are biased alike on them,
        and stable is not so on the rest. A candidate that is biased by itself is not, since stable scores the same rows.

        Args:
            shown_at: error at which it has to be shown; None: the estimate is enough, to doubt a breach.
        """
        clicks, rest = chosen.total(SERVED_CLICKS), chosen.total(CLICKS) - chosen.total(SERVED_CLICKS)
        if chosen.total(SERVED_STABLE) < _LEAST_EXPECTED_CLICKS or clicks <= 0 or rest < _LEAST_EXPECTED_CLICKS:
            return ""
        here = chosen.total(SERVED_STABLE) / clicks - 1.0
        there = (chosen.total(STABLE) - chosen.total(SERVED_STABLE)) / rest - 1.0
        apart = (chosen.total(SERVED) - chosen.total(SERVED_STABLE)) / clicks
        if here - there <= bound / 2 or abs(apart) >= bound or here < SHORT_FRACTION * bound:
            return ""
        if shown_at is not None and not chosen.lacks_labels(there + bound / 2, shown_at, MIN_BLOCKS):
            return ""
        lacking = chosen.total(SERVED_STABLE) / (1.0 + there) - clicks
        return (
            f"labels of the rows that the candidate answered seem to be late or lost: {clicks:.0f} clicks, about {lacking:.0f} fewer than "
            "stable's rows let expect; both arms are biased alike on them, so this is no reason to step back"
        )

    def _answers_too_little(self) -> str:
        """Reason to hold where the candidate answers far fewer requests than the weight gives it, empty if it does not."""
        requests, found = self._step_rows.total(REQUESTS), self._shown_requests
        if found is None or requests < _LEAST_EXPECTED_CLICKS or found.share <= 0:
            return ""
        if found.total < SHORT_FRACTION * requests:
            return (
                f"{found.total} of {requests:.0f} requests at this step carry a routing key, and the candidate answers none of the others: "
                f"its share of all is far below the {found.share:.1%} of this step's weight"
            )
        if found.doubtful and found.candidate < SHORT_FRACTION * found.share * found.total:
            return (
                f"the candidate answered {found.candidate} of {found.total} requests at this step, and the weight gives it a share of about "
                f"{found.share * found.total:.0f}: is it ready to answer in every lane?"
            )
        return ""

    def _sample_ratio(self) -> str:
        """Reason to hold where the arms' answers are not shown alike, or shown requests not split as the keys are; else empty."""
        if self._shown_fraction.mismatch:
            return (
                f"shown fraction: {self._shown_fraction}; reports of what was shown are lost for one arm's answers, so that labels "
                "of the arms do not compare"
            )
        found = self._shown_requests
        if found is None or not found.mismatch:
            return ""
        return f"sample ratio: {found}; exposures of one arm are lost, or its keys are not split as they should be"

    @cached_property
    def _shown_requests(self) -> SampleRatio | None:
        """Shown requests of this stay by arm; None where others deal the keys, or many of them are of the weight before."""
        outside = is_observed(self.spec.candidate.bundle)
        if outside or self._step_rows.blocks < MIN_WINDOW_BLOCKS:
            return None
        return SampleRatio.of(self._table.outcome, self._share())

    @cached_property
    def _shown_fraction(self) -> ShownFraction:
        """Answered against shown requests of this stay by arm."""
        return ShownFraction.of(self._table.outcome)

    def _share(self) -> float:
        """Share of the keys that the weight gives the candidate."""
        return self.state.weight / 100 * (1.0 - self.spec.holdout)

    @cached_property
    def _step_rows(self) -> Selection:
        """Evidence of the present stay."""
        return self._view.since(self.state.entered_ms)

    def _window_error(self) -> float:
        k = 1 + int(self.rows.spanned_ms() // self.spec.analysis.window_ms)
        return self.error / (2 * k * (k + 1))

    def _nats(self, bound: float | str) -> float:
        """A bound on LogLoss in nats per row of this traffic."""
        return nats(bound, self.rows.total(CLICKS), self.rows.total(ROWS))

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
            most = self._nats(guard.logloss_delta_max)
            seen = f"logloss_delta {shown(part.loss_mean(), 5)}, at most {most:.2g}"
            yield seen, (part.loss_test(most, error, least),)
        if guard.bias_below is not None:
            yield (
                f"bias {shown(part.bias())}, within {guard.bias_below:g}",
                part.bias_tests(guard.bias_below, error / 2, least),
            )

    def _clicked_less(self) -> tuple[str, str] | None:
        """As `breach`, of the outcome per request during the present stay; the stays of an attempt share one error."""
        least, sums = self.spec.guards.outcome_delta_min, self._table.outcome
        if least is None:
            return None
        error = self.error / (2 * (len(self.spec.steps) - 1))
        effect, base = sums.difference(error), sums.limits("stable", error).mean
        if not sums.requests("candidate") * base >= _LEAST_EXPECTED_CLICKS:
            return None
        if effect.high >= least * base:
            return None
        seen = f"outcome per request {shown(effect.mean / base)} against stable's at this weight, at least {least:g}"
        return "outcome_delta_min", seen

    def _bound_now(self) -> float:
        """Bias bound of the present step; in shadow, that of the first weight."""
        return self.spec.steps[max(1, self.state.step)].bound

    def _excused(self, chosen: Selection, bound: float, error: float, least: int, batched: bool) -> bool:
        """With `relative_to_stable`: a bias of both arms alike is no breach, up to a limit on stable's own bias."""
        if not self.spec.relative_to_stable or abs(chosen.bias("stable")) >= RELATIVE_BIAS_LIMIT_FRACTION:
            return False
        return not _breached(chosen.relative_tests(bound, error, least, batched=batched))

    def _lacking(self, what: str, estimate: str, tests: tuple[Test, ...]) -> str:
        open_tests = [test for test in tests if test.verdict is not Verdict.HOLDS]
        needs = [test.missing() for test in open_tests]
        if None in needs:
            return f"{what}: not shown; at the present estimate ({estimate}) no number of labels will show it"
        more = max(need or 0 for need in needs)
        self.missing = math.ceil(more * self.rows.total(CLICKS) / max(1, self.rows.blocks))
        return f"{what}: not yet shown ({estimate}); about {self.missing} more clicks at the present estimate"


def _breached(tests: tuple[Test, ...]) -> bool:
    return any(test.verdict is Verdict.BREACHED for test in tests)


def _all_hold(tests: tuple[Test, ...]) -> bool:
    return all(test.verdict is Verdict.HOLDS for test in tests)

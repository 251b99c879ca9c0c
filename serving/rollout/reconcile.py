"""One pass of a rollout: read what is desired and what is observed, decide on one thing, say why.

`reconcile` is a list of questions in order of urgency; the first that has an answer ends the pass. It changes nothing
itself and remembers nothing: asked twice with the same context it answers the same. What it may use:

- Evidence for moving on is gathered since the rollout (or the present attempt) began and carried over its steps: both
  arms score every exposed row at every weight, so a step up changes who answers and not what is measured. Whether it
  did change is looked at: where the candidate's bias on rows that it served itself is shown to differ from that on the
  rest, the next step begins with new evidence. Simulated figures for carrying and for not carrying: docs/rollout.md.
- Carried evidence would be slow to see a candidate that turns bad. So breaches are looked for in a sliding window too,
  and a window, or the present step alone, whose estimate lies beyond the next bound holds, whatever the carried
  evidence says.
- Silence (no rows, old rows, rows without a label) never moves anything, in either direction.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from serving.rollout.blocks import BlockTable, Selection
from serving.rollout.evidence import Test, Verdict, attempt_error, share_above
from serving.rollout.spec import MIN_BLOCKS, MIN_WINDOW_BLOCKS, Rollout
from serving.rollout.state import Abort, AdoptVersion, Advance, Complete, Event, Phase, Recover, RolloutState, StepBack

__all__ = ["Context", "Decision", "Observed", "reconcile"]

SHIFT = 0.01
"""A version that moves the mean score by more than this is another candidate: evidence starts anew."""
RELATIVE_LIMIT = 0.10
"""With `relative_to_stable`: how far stable's own bias may be off before nothing is concluded from the difference."""
_FEWEST_SCORED = 500
_FEWEST_TIMED = 1000
_FEWEST_SERVED_CLICKS = 100.0


@dataclass(frozen=True, slots=True)
class Observed:
    """What the processes report, over a recent window that starts at `since_ms`; labels are not in it.

    Args:
        since_ms: Unix milliseconds; figures from before the present step was entered are not judged.
        requests, errors, deadline_misses: of the candidate as answering arm.
        slow: how many of them took longer than the guard's p99_ms_max, where a histogram can say.
        p99_ms: their 99th percentile, None without requests.
        scored_rows, predicted_candidate, predicted_stable: rows that both arms scored and the sums of their scores.
        shadow_coverage: share of recent predictions that the shadow lane scored, None where unknown.
        versions: (version, relative shift of the mean score on the gate's rows) of the candidate bundle's versions that
            passed the gate, rising; those not newer than the present one are passed over.
        killed: reason of an engaged kill switch, None without.
    """

    since_ms: int = 0
    requests: int = 0
    errors: int = 0
    deadline_misses: int = 0
    slow: int | None = None
    p99_ms: float | None = None
    scored_rows: int = 0
    predicted_candidate: float = 0.0
    predicted_stable: float = 0.0
    shadow_coverage: float | None = None
    versions: tuple[tuple[int, float], ...] = ()
    killed: str | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """One pass's input. `table` is called for only when a look at the labels is due; None: the log is being read again."""

    spec: Rollout
    state: RolloutState
    observed: Observed
    now_ms: int
    next_look_ms: int
    table: Callable[[], BlockTable] | None
    carry: bool = True


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do (`event`, None: hold), why, when the labels are looked at next, and how many clicks are missing.

    `missing_clicks` is None where their number is unknown or no number would do; `evidence` is what was looked at.
    """

    event: Event | None
    reason: str
    next_look_ms: int
    missing_clicks: int | None = None
    evidence: dict[str, Any] = field(default_factory=dict)


def reconcile(context: Context) -> Decision:
    """Decide on the one thing that is due now."""
    spec, state, observed = context.spec, context.state, context.observed
    hold = Decision(None, "", context.next_look_ms)

    if not state.active:
        return replace(hold, reason=f"the rollout is {state.phase}")

    # The kill switch has already emptied the candidate in the lanes; the record has to follow.
    if observed.killed is not None:
        return replace(hold, event=Abort(), reason=f"killed: {observed.killed}")

    # A breach that needs no labels cannot wait for them.
    if breach := _breach_without_labels(spec, state, observed):
        return _back(context, hold, *breach)

    if newer := [(v, shift) for v, shift in observed.versions if v > state.candidate_version]:
        return _adopt(context, hold, newer)

    # A look further away than one interval was set by a clock that has since gone back.
    if 0 < context.next_look_ms - context.now_ms <= spec.analysis.interval * 1000:
        return replace(hold, reason="waiting for the next look")
    hold = replace(hold, next_look_ms=context.now_ms + round(spec.analysis.interval * 1000))
    if context.now_ms < state.entered_ms:
        return replace(hold, reason="the clock went back behind the entry of this step; waiting for it to catch up")
    if context.table is None:
        return replace(hold, reason="reading the labelled log again after a restart")
    table = context.table()

    # Old data neither promotes nor rolls back.
    age = _age(context, table)
    limit = spec.analysis.attribution_window + 5 * max(spec.analysis.block, spec.analysis.interval) + 5.0
    if age is None:
        return _idle(context, replace(hold, reason="no mature labelled rows yet"))
    if age > limit:
        return _idle(context, replace(hold, reason=f"labels are stale: the newest mature rows are {age:.0f} s old"))

    all_rows = table.select(state.evidence_from_ms, state.evidence_version)
    silent = all_rows.silent()
    if silent.any() and bool(silent[all_rows.time.argmax()]):
        return _idle(context, replace(hold, reason="the newest rows have no click at all: labels seem to be missing"))
    rows = all_rows.where(~silent) if silent.any() else all_rows
    newest = (table.newest_ms or 0) - spec.analysis.breach_window * 1000
    window = rows.where(rows.time >= newest)

    looked = _Look(spec, state, rows, window)
    if breach := looked.breach():
        return _back(context, replace(hold, evidence=looked.seen), *breach)
    hold = replace(hold, evidence=looked.seen)

    if state.phase in (Phase.DEGRADED, Phase.WATCHING, Phase.PAUSED):
        return _idle(context, hold)

    coverage = min(_known(window.coverage()), _known(observed.shadow_coverage))
    if spec.guards.shadow_coverage_min is not None and coverage < spec.guards.shadow_coverage_min:
        wanted = spec.guards.shadow_coverage_min
        return replace(
            hold, reason=f"shadow_coverage {coverage:.3f} is below {wanted:g}: too few rows have both scores"
        )

    stayed = (context.now_ms - state.entered_ms) / 1000
    if stayed < spec.analysis.min_step_time:
        left = spec.analysis.min_step_time - stayed
        return replace(hold, reason=f"min_step_time: {left:.0f} s left at this step")

    if reason := looked.not_yet():
        return replace(hold, reason=reason, missing_clicks=looked.missing)

    anew = not context.carry or rows.population_moved(looked.error / 2, MIN_BLOCKS)
    weight = spec.steps[state.step + 1].weight
    return replace(
        hold, event=Advance(anew=anew), reason=f"the evidence for weight {weight:g} is there", missing_clicks=0
    )


class _Look:
    """One look at the labels: what is breached, what is not yet shown, and a record of what was seen."""

    def __init__(self, spec: Rollout, state: RolloutState, rows: Selection, window: Selection) -> None:
        self.spec, self.state, self.rows, self.window = spec, state, rows, window
        self.here = rows.where(rows.time >= state.entered_ms)
        self.error = attempt_error(spec.analysis.confidence, state.attempt)
        self.missing: int | None = None
        interval = rows.bias_limits("candidate", self.error / 2)
        self.seen: dict[str, Any] = {
            "attempt": state.attempt,
            "error": self.error,
            "blocks": rows.blocks,
            "from_ms": state.evidence_from_ms,
            "until_ms": int(rows.time.max()) if rows.blocks else state.evidence_from_ms,
            "rows": float(rows.rows.sum()),
            "clicks": float(rows.clicks.sum()),
            "bias": _number(interval.mean),
            "bias_low": _number(interval.low),
            "bias_high": _number(interval.high),
            "stable_bias": _number(rows.bias("stable")),
            "window_bias": _number(window.bias()),
        }

    def breach(self) -> tuple[str, str] | None:
        """(guard, what was seen) of the first guard that is shown to be broken, in the window or in all evidence.

        Each guard has its own error. The k-th window length since the evidence began spends a share 1 / (k (k + 1)) of
        it: a window that slides for weeks would otherwise raise a false alarm sooner or later.
        """
        guards = self.spec.guards
        spanned = float(np.ptp(self.rows.time)) / 1000 if self.rows.blocks else 0.0
        k = 1 + int(spanned // self.spec.analysis.breach_window)
        for name, chosen, least, error in (
            ("window", self.window, MIN_WINDOW_BLOCKS, self.error / (2 * k * (k + 1))),
            ("evidence", self.rows, MIN_BLOCKS, self.error / 2),
        ):
            if chosen.blocks < least:
                continue
            bound = self._bound_now()
            if not self._excused(chosen, bound, error, least):
                if _breached(chosen.bias_tests(bound, error, least)):
                    return "bias", f"bias {chosen.bias():+.4f} over the {name} is shown to be beyond {bound:g}"
                enough = float(chosen.served_clicks.sum()) >= _FEWEST_SERVED_CLICKS
                if enough and _breached(chosen.served_tests(bound, error, least)):
                    served = chosen.served_limits(error).mean
                    return (
                        "served_bias",
                        f"bias {served:+.4f} on rows it served ({name}) is shown to be beyond {bound:g}",
                    )
            if guards.logloss_delta_max is not None and _breached(
                (chosen.loss_test(guards.logloss_delta_max, error, least),)
            ):
                delta = float(chosen.loss_delta.sum() / chosen.rows.sum())
                return (
                    "logloss_delta_max",
                    f"logloss_delta {delta:+.5f} over the {name}, at most {guards.logloss_delta_max:g}",
                )
            if guards.auc_delta_min is not None:
                test = chosen.auc_test(guards.auc_delta_min, error, least)
                if _breached((test,)):
                    delta = guards.auc_delta_min - test.limits.mean
                    return "auc_delta_min", f"auc_delta {delta:+.5f} over the {name}, at least {guards.auc_delta_min:g}"
        return None

    def not_yet(self) -> str:
        """Why the next step cannot be entered yet, empty if it can; sets `missing` to the clicks that are lacking."""
        here, there = self.spec.steps[self.state.step], self.spec.steps[self.state.step + 1]
        clicks = float(self.rows.clicks.sum())
        if here.shadow and clicks < here.min_positives:
            self.missing = math.ceil(here.min_positives - clicks)
            return f"min_positives: {self.missing} more clicks of {here.min_positives}"
        if self.rows.blocks < MIN_BLOCKS:
            lacking = MIN_BLOCKS - self.rows.blocks
            self.missing = math.ceil(lacking * clicks / self.rows.blocks) if self.rows.blocks else None
            return f"{self.rows.blocks} of the {MIN_BLOCKS} blocks that any evidence needs"
        bound, what = there.bound, f"bias_below {there.bound:g} for weight {there.weight:g}"
        # With relative_to_stable there are two ways to show it, so each has half of the error.
        error = self.error / 4 if self.spec.relative_to_stable else self.error / 2
        tests = self.rows.bias_tests(bound, error, MIN_BLOCKS)
        relatively = False
        if self.spec.relative_to_stable and not _all_hold(tests):
            relative = self.rows.relative_tests(bound, error, MIN_BLOCKS)
            if _all_hold(relative) and abs(self.rows.bias("stable")) < RELATIVE_LIMIT:
                tests, relatively = relative, True
        if not _all_hold(tests):
            return self._lacking(what, f"bias {self.seen['bias']:+.4f}", tests)
        if self.here.blocks < MIN_WINDOW_BLOCKS:
            return f"{self.here.blocks} of the {MIN_WINDOW_BLOCKS} blocks that each step needs of its own"
        for name, chosen in (("the breach window", self.window), ("this step alone", self.here)):
            recent = chosen.bias() - (chosen.bias("stable") if relatively else 0.0)
            if abs(recent) >= bound:
                return f"{what}: shown over all evidence, but {name} is at {recent:+.4f}"
        guards = self.spec.guards
        if guards.logloss_delta_max is not None:
            test = self.rows.loss_test(guards.logloss_delta_max, self.error, MIN_BLOCKS)
            delta = float(self.rows.loss_delta.sum() / self.rows.rows.sum())
            self.seen["logloss_delta"] = _number(delta)
            if test.verdict is not Verdict.HOLDS:
                return self._lacking(
                    f"logloss_delta_max {guards.logloss_delta_max:g}", f"difference {delta:+.5f}", (test,)
                )
        if guards.auc_delta_min is not None:
            test = self.rows.auc_test(guards.auc_delta_min, self.error, MIN_BLOCKS)
            delta = guards.auc_delta_min - test.limits.mean
            self.seen["auc_delta"] = _number(delta)
            if test.verdict is not Verdict.HOLDS:
                return self._lacking(f"auc_delta_min {guards.auc_delta_min:g}", f"difference {delta:+.5f}", (test,))
        return ""

    def _bound_now(self) -> float:
        """The bound that the present step was entered by; in shadow, that of the first weight."""
        return self.spec.steps[max(1, self.state.step)].bound

    def _excused(self, chosen: Selection, bound: float, error: float, least: int) -> bool:
        """With `relative_to_stable`: what biases both arms alike is no breach, up to a limit on stable's own bias."""
        if not self.spec.relative_to_stable or abs(chosen.bias("stable")) >= RELATIVE_LIMIT:
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


def _breach_without_labels(spec: Rollout, state: RolloutState, observed: Observed) -> tuple[str, str] | None:
    """(guard, what was seen) of a guard that lanes' counters show to be broken since the step was entered."""
    if observed.since_ms < state.entered_ms or state.phase == Phase.DEGRADED:
        return None  # a window that reaches back before the step back would step back twice for one fault
    guards, error = spec.guards, (1.0 - spec.analysis.confidence) / 2
    if guards.score_ratio is not None and observed.scored_rows >= _FEWEST_SCORED and observed.predicted_stable > 0:
        ratio = observed.predicted_candidate / observed.predicted_stable
        if not guards.score_ratio[0] <= ratio <= guards.score_ratio[1]:
            return "score_ratio", f"score_ratio {ratio:.3f} is outside {list(guards.score_ratio)}"
    if state.weight <= 0:
        return None
    for name, hits, most in (
        ("error_rate_max", observed.errors, guards.error_rate_max),
        ("deadline_miss_max", observed.deadline_misses, guards.deadline_miss_max),
    ):
        if most is not None and share_above(hits, observed.requests, most, error) is Verdict.BREACHED:
            return name, f"{name}: {hits} of {observed.requests} requests, at most {most:g}"
    if guards.p99_ms_max is not None and observed.p99_ms is not None and observed.p99_ms > guards.p99_ms_max:
        slow = observed.slow
        certain = observed.requests >= _FEWEST_TIMED if slow is None else (
            share_above(slow, observed.requests, 0.01, error) is Verdict.BREACHED
        )  # fmt: skip
        if certain:
            return "p99_ms_max", f"p99_ms_max: {observed.p99_ms:.1f} ms over {observed.requests} requests"
    return None


def _back(context: Context, hold: Decision, guard: str, seen: str) -> Decision:
    spec, state = context.spec, context.state
    evidence = {**hold.evidence, "guard": guard, "seen": seen}
    if spec.on_breach == "abort":
        return replace(hold, event=Abort(), reason=seen, evidence=evidence)
    if state.step == 0 and state.phase == Phase.PAUSED:
        return replace(hold, reason=f"paused in shadow; {seen}", evidence=evidence)
    return replace(hold, event=StepBack(), reason=seen, evidence=evidence)


def _adopt(context: Context, hold: Decision, newer: list[tuple[int, float]]) -> Decision:
    """Take the newest version; the shifts of those passed over count too."""
    version = max(v for v, _ in newer)
    shift = math.prod(1.0 + s for _, s in newer) - 1.0
    anew = abs(shift) > SHIFT and context.state.candidate_version > 0  # from 0 on: whatever was newest has been scoring
    table = context.table() if context.table is not None else None
    blocks = (
        table.select(context.state.evidence_from_ms, context.state.evidence_version).blocks if table else MIN_BLOCKS
    )
    reason = f"version {version} passed the gate; it moves the mean score by {shift:+.4f}"
    event = AdoptVersion(version, anew=anew, spent=blocks >= MIN_BLOCKS)
    return replace(
        hold, event=event, reason=reason + (", evidence starts anew" if anew else ""), evidence={"score_shift": shift}
    )


def _idle(context: Context, hold: Decision) -> Decision:
    """Phases that time alone ends."""
    spec, state = context.spec, context.state
    if state.phase == Phase.DEGRADED:
        if context.now_ms >= state.rest_until_ms:
            return replace(hold, event=Recover(), reason="the rest after the step back is over")
        return replace(
            hold, reason=f"resting after a step back for {(state.rest_until_ms - context.now_ms) / 1000:.0f} s"
        )
    if (
        state.phase == Phase.WATCHING and not hold.reason
    ):  # a reason here means no fresh labels: silence completes nothing
        left = state.entered_ms / 1000 + spec.after_full.watch - context.now_ms / 1000
        if left <= 0:
            return replace(hold, event=Complete(), reason="the watch after the last step is over")
        return replace(hold, reason=f"watching for another {left:.0f} s")
    if state.phase == Phase.PAUSED:
        return replace(hold, reason="paused by an operator" + (f"; {hold.reason}" if hold.reason else ""))
    return hold


def _age(context: Context, table: BlockTable) -> float | None:
    return None if table.newest_ms is None else (context.now_ms - table.newest_ms) / 1000


def _breached(tests: tuple[Test, ...]) -> bool:
    return any(test.verdict is Verdict.BREACHED for test in tests)


def _all_hold(tests: tuple[Test, ...]) -> bool:
    return all(test.verdict is Verdict.HOLDS for test in tests)


def _known(value: float | None) -> float:
    return 1.0 if value is None or math.isnan(value) else value


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None

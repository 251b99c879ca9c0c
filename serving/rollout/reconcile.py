"""One reconcile pass of a rollout: compare the desired with the observed state, decide on one event, give the reason.

`reconcile` is a list of checks in order of urgency; the first that decides ends the pass. It is a pure function: the same
context gives the same decision. Its rules for evidence:

- Evidence for the next step is gathered since the rollout (or the present attempt) began and carried over its steps:
  both arms score every exposed row at every weight, so a step up changes which arm answers and not what is measured.
  This is checked: where the candidate's bias on rows that it served is shown to differ from that on the rest, the next
  step begins with new evidence. Simulated figures with and without carried evidence: docs/rollout.md.
- Carried evidence is slow to show a candidate that turns bad. So breaches are searched in a sliding window too, and the
  rollout holds where the estimate of the window, or of the present step alone, lies beyond the next bound.
- Silence (no rows, old rows, rows without a label) never moves anything, in either direction.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from serving.rollout.look import Look
from serving.rollout.spec import MIN_BLOCKS, Rollout
from serving.rollout.state import Abort, AdoptVersion, Advance, Complete, Event, Phase, Recover, RolloutState, StepBack
from serving.rollout.sums.blocks import BlockTable
from serving.rollout.sums.evidence import Verdict, fraction_above
from serving.rollout.sums.view import EvidenceView

__all__ = ["Context", "Decision", "Observed", "reconcile"]

SHIFT_FRACTION = 0.01
"""A version that moves the mean score by more than this counts as another candidate: its evidence starts again."""
_LEAST_SCORED_ROWS = 500
_LEAST_TIMED_REQUESTS = 1000


@dataclass(frozen=True, slots=True)
class Observed:
    """Reports of the processes over a recent window that starts at `since_ms`; no labels.

    Args:
        since_ms: Unix milliseconds; figures from before the present step was entered are not judged.
        requests, errors, deadline_misses: of the candidate as answering arm.
        slow: how many of them took longer than the guard's p99_ms_max, None without a histogram.
        p99_ms: their 99th percentile, None without requests.
        scored_rows, predicted_candidate, predicted_stable: rows that both arms scored and the sums of their scores.
        shadow_coverage: fraction of recent predictions that the shadow lane scored, None where unknown.
        versions: (version, relative shift of the mean score on the gate's rows) of the candidate bundle's versions that
            passed the gate, rising; versions not newer than the present one are skipped.
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
    """Input of one pass. `table` is called only when a look at the labels is due; None: the log is being read again.
    `log_window`: attribution window of the traffic log, seconds; None: the rollout's own (a simulation)."""

    spec: Rollout
    state: RolloutState
    observed: Observed
    now_ms: int
    next_look_ms: int
    table: Callable[[], BlockTable] | None
    carry: bool = True
    log_window: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """Decision of one pass: the event (None: hold), the reason, the time of the next look, and the missing clicks.

    `missing_clicks` is None where their number is unknown or no number is enough; `evidence`: the figures behind it.
    """

    event: Event | None
    reason: str
    next_look_ms: int
    missing_clicks: int | None = None
    evidence: dict[str, Any] = field(default_factory=dict)


def reconcile(context: Context) -> Decision:
    """Decide on the one event that is due now. Where the log has got another attribution window than the rollout began with,
    its rows are others than those of the evidence so far: nothing is entered, breaches still step back."""
    decision = _due(context)
    problem = "" if context.log_window is None else context.spec.analysis.other_window(context.log_window)
    if not problem or not context.state.active or not isinstance(decision.event, Advance | Complete | None):
        return decision
    remedy = "set it back and restart, or abort and start the rollout again"
    waits = f"; {decision.reason}" if decision.event is None and decision.reason else ""
    return replace(decision, event=None, reason=f"{problem}: {remedy}{waits}", missing_clicks=None)


def _due(context: Context) -> Decision:
    spec, state, observed = context.spec, context.state, context.observed
    hold = Decision(None, "", context.next_look_ms)

    if not state.active:
        return replace(hold, reason=f"the rollout is {state.phase}")

    # The lanes have already taken all traffic from the candidate; the record has to follow.
    if observed.killed is not None:
        return replace(hold, event=Abort(), reason=f"killed: {observed.killed}")

    # A breach that needs no labels cannot wait for them.
    if breach := _breach_without_labels(spec, state, observed):
        return _back(context, replace(hold, evidence={"observed": _counters(observed)}), *breach)

    if newer := [(v, shift) for v, shift in observed.versions if v > state.candidate_version]:
        return _adopt(context, hold, newer)

    # A look further away than one interval was set before the clock went back.
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
    window = context.log_window or spec.analysis.attribution_window or 0.0
    limit = window + 5 * max(spec.analysis.block, spec.analysis.interval) + 5.0
    if age is None:
        return _idle(context, replace(hold, reason="no mature labelled rows yet"))
    if age > limit:
        return _idle(context, replace(hold, reason=f"labels are stale: the newest mature rows are {age:.0f} s old"))

    looked = Look(spec, state, table)
    if looked.silent:
        return _idle(context, replace(hold, reason="the newest rows have no click at all: labels seem to be missing"))
    if breach := looked.breach():
        return _back(context, replace(hold, evidence=looked.seen), *breach)
    hold = replace(hold, evidence=looked.seen)

    if state.phase in (Phase.DEGRADED, Phase.WATCHING, Phase.PAUSED):
        return _idle(context, hold)

    coverage = min(_known(looked.window.coverage()), _known(observed.shadow_coverage))
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

    reset_evidence = not context.carry or looked.rows.population_moved(looked.error / 2, MIN_BLOCKS)
    weight = spec.steps[state.step + 1].weight
    return replace(
        hold,
        event=Advance(reset_evidence=reset_evidence),
        reason=f"the evidence for weight {weight:g} is there",
        missing_clicks=0,
    )


def _breach_without_labels(spec: Rollout, state: RolloutState, observed: Observed) -> tuple[str, str] | None:
    """(guard, message) of a guard that the lanes' counters show to be breached since the step was entered."""
    if observed.since_ms < state.entered_ms or state.phase == Phase.DEGRADED:
        return None  # a window that begins before the step back would step back twice for one fault
    guards, error = spec.guards, (1.0 - spec.analysis.confidence) / 2
    if guards.score_ratio is not None and observed.scored_rows >= _LEAST_SCORED_ROWS and observed.predicted_stable > 0:
        ratio = observed.predicted_candidate / observed.predicted_stable
        if ratio < guards.score_ratio[0] or ratio > guards.score_ratio[1]:
            return "score_ratio", f"score_ratio {ratio:.3f} is outside {list(guards.score_ratio)}"
    if state.weight <= 0:
        return None
    for name, hits, most in (
        ("error_rate_max", observed.errors, guards.error_rate_max),
        ("deadline_miss_max", observed.deadline_misses, guards.deadline_miss_max),
    ):
        if most is not None and fraction_above(hits, observed.requests, most, error) is Verdict.BREACHED:
            return name, f"{name}: {hits} of {observed.requests} requests, at most {most:g}"
    if guards.p99_ms_max is not None and observed.p99_ms is not None and observed.p99_ms > guards.p99_ms_max:
        slow = observed.slow
        certain = observed.requests >= _LEAST_TIMED_REQUESTS if slow is None else (
            fraction_above(slow, observed.requests, 0.01, error) is Verdict.BREACHED
        )  # fmt: skip
        if certain:
            return "p99_ms_max", f"p99_ms_max: {observed.p99_ms:.1f} ms over {observed.requests} requests"
    return None


def _counters(observed: Observed) -> dict[str, Any]:
    counters = asdict(observed)
    del counters["versions"], counters["killed"]
    return counters


def _back(context: Context, hold: Decision, guard: str, seen: str) -> Decision:
    spec, state = context.spec, context.state
    evidence = {**hold.evidence, "guard": guard, "seen": seen}
    if spec.on_breach == "abort":
        return replace(hold, event=Abort(), reason=seen, evidence=evidence)
    if state.step == 0 and state.phase == Phase.PAUSED:
        return replace(hold, reason=f"paused in shadow; {seen}", evidence=evidence)
    return replace(hold, event=StepBack(), reason=seen, evidence=evidence)


def _adopt(context: Context, hold: Decision, newer: list[tuple[int, float]]) -> Decision:
    """Adopt the newest version; the shifts of the skipped versions count too."""
    version = max(v for v, _ in newer)
    shift = math.prod(1.0 + s for _, s in newer) - 1.0
    reset_evidence = (
        abs(shift) > SHIFT_FRACTION and context.state.candidate_version > 0
    )  # at 0 the newest version was scoring already
    table = context.table() if context.table is not None else None
    blocks = EvidenceView(table).all().blocks if table else MIN_BLOCKS
    reason = f"version {version} passed the gate; it moves the mean score by {shift:+.4f}"
    event = AdoptVersion(version, reset_evidence=reset_evidence, new_attempt=blocks >= MIN_BLOCKS)
    return replace(
        hold,
        event=event,
        reason=reason + (", evidence starts again" if reset_evidence else ""),
        evidence={"score_shift": shift},
    )


def _idle(context: Context, hold: Decision) -> Decision:
    """Decide in the phases that only time ends."""
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
    return None if table.newest_ms is None else max(0.0, (context.now_ms - table.newest_ms) / 1000)


def _known(value: float | None) -> float:
    return 1.0 if value is None or math.isnan(value) else value

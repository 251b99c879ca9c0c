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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from serving.rollout.adoption import SHIFT_BOUND_FRACTION, moves, newest_passed, waiting
from serving.rollout.guards import Finding, PastScores, counters, judge_without_labels
from serving.rollout.look import Look
from serving.rollout.observed import NewVersion, Observed
from serving.rollout.spec import MIN_BLOCKS, Rollout
from serving.rollout.state import (
    Abort,
    AdoptVersion,
    Advance,
    AskApproval,
    Complete,
    Event,
    Phase,
    Recover,
    ReturnVersion,
    RolloutState,
    StepBack,
)
from serving.rollout.status.codes import ALARMS, Code
from serving.rollout.status.freeze import Freeze
from serving.rollout.sums.blocks import BlockTable
from serving.rollout.sums.view import EvidenceView

__all__ = ["Context", "Decision", "Observed", "reconcile"]

_DONE: dict[type[Any], Code] = {
    Advance: Code.ADVANCED,
    StepBack: Code.STEPPED_BACK,
    ReturnVersion: Code.VERSION_RETURNED,
    Recover: Code.RECOVERED,
    AdoptVersion: Code.VERSION_ADOPTED,
    Complete: Code.COMPLETED,
    Abort: Code.ABORTED,
}
"""Code of what was just done."""
SHIFT_FRACTION = 0.01
"""A version that moves the mean score by more than this has evidence of its own."""


@dataclass(frozen=True, slots=True)
class Context:
    """Input of one pass. `table` is called only when a look at the labels is due; None: the log is being read again.
    `log_window`: attribution window of the traffic log, seconds; None: the rollout's own (a simulation). `past`: scores that
    those of the last seconds are held against; None: they are taken from the table."""

    spec: Rollout
    state: RolloutState
    observed: Observed
    now_ms: int
    next_look_ms: int
    table: Callable[[], BlockTable] | None
    carry: bool = True
    log_window: float | None = None
    past: Callable[[], PastScores | None] | None = None
    frozen: Freeze | None = None

    def past_scores(self) -> PastScores | None:
        """Both arms' scores on mature rows, None where there are none yet."""
        if self.past is not None:
            found = self.past()
        else:
            found = None if self.table is None else PastScores.of(self.table(), self.spec.analysis.breach_window)
        if found is None and self.state.score_ratio > 0:
            return PastScores(self.state.score_ratio)
        return found


@dataclass(frozen=True, slots=True)
class Decision:
    """Decision of one pass: the event (None: hold), the reason, the time of the next look, and the missing clicks.

    `missing_clicks` is None where their number is unknown or no number is enough; `evidence`: the figures behind it; `alarm`:
    the guard that holds the rollout for an operator to look at, "" where none does; `notes`: what an operator should know beside
    the reason, of which they become a part; `code`: of what it says; `overdue`: it has not moved for the time of
    `progress_deadline`.
    """

    event: Event | None
    reason: str
    next_look_ms: int
    missing_clicks: int | None = None
    evidence: dict[str, Any] = field(default_factory=dict)
    alarm: str = ""
    notes: tuple[str, ...] = ()
    code: Code = Code.HOLDS
    overdue: bool = False


def reconcile(context: Context) -> Decision:
    """Decide on the one event that is due now. Where the log has got another attribution window than the rollout began with,
    its rows are others than those of the evidence so far: nothing is entered, breaches still step back."""
    found = _without_labels(context)
    decision = _within_deadline(context, _thawed(context, _held(context, _due(context, found), found)))
    notes = decision.notes
    if decision.event is not None:
        decision = replace(decision, code=_DONE.get(type(decision.event), decision.code))
    elif context.state.active:
        notes = (*notes, waiting(context.state, context.observed.versions, context.observed.stable_versions))
    decision = replace(decision, reason="; ".join(filter(None, (decision.reason, *notes))))
    problem = "" if context.log_window is None else context.spec.analysis.other_window(context.log_window)
    if (
        not problem
        or not context.state.active
        or not isinstance(decision.event, Advance | AskApproval | Complete | None)
    ):
        return decision
    remedy = "set it back and restart, or abort and start the rollout again"
    waits = f"; {decision.reason}" if decision.event is None and decision.reason else ""
    return replace(
        decision, event=None, reason=f"{problem}: {remedy}{waits}", missing_clicks=None, code=Code.WINDOW_CHANGED
    )


def _thawed(context: Context, decision: Decision) -> Decision:
    """The decision, or a hold where a freeze lets nothing but a way back happen."""
    if (
        context.frozen is None
        or not context.state.active
        or isinstance(decision.event, StepBack | ReturnVersion | Abort)
    ):
        return decision
    waits = f"; {decision.reason}" if decision.event is None and decision.reason else ""
    return replace(decision, event=None, reason=f"{context.frozen}{waits}", code=Code.FROZEN)


def _within_deadline(context: Context, decision: Decision) -> Decision:
    """The decision of a rollout that has not moved for too long: it says so, or ends."""
    spec, state = context.spec, context.state
    deadline, waits = spec.progress_deadline, state.phase in (Phase.PROGRESSING, Phase.DEGRADED, Phase.PAUSED)
    moves = isinstance(decision.event, Advance | StepBack | Abort)
    if deadline is None or not waits or moves or context.now_ms - state.entered_ms <= 1000 * deadline:
        return decision
    late = f"at this step for more than {deadline / 3600:g} h (progress_deadline)"
    if spec.on_deadline == "abort" and state.phase != Phase.PAUSED and context.frozen is None:
        return replace(decision, event=Abort(), reason=f"{late}; {decision.reason}", overdue=True)
    return replace(decision, reason=f"{decision.reason}; {late}" if decision.reason else late, overdue=True)


def _without_labels(context: Context) -> list[Finding]:
    """What guards find that need no labels."""
    if not context.state.active:
        return []
    return judge_without_labels(context.spec, context.state, context.observed, context.now_ms, context.past_scores)


def _held(context: Context, decision: Decision, found: Sequence[Finding]) -> Decision:
    """The decision, without a step that guards or the state of serving do not allow now."""
    if not context.state.active or not isinstance(decision.event, Advance | AskApproval | Complete | None):
        return decision
    holding = [each for each in found if not each.breached]
    reasons = [each.seen for each in holding]
    alarm = next((each.guard for each in holding if each.alarm), decision.alarm)
    if context.observed.ill:
        reasons, alarm = [*reasons, f"serving is ill: {context.observed.ill}"], alarm or "serving"
    if not reasons:
        return decision
    waits = [decision.reason] if decision.event is None and decision.reason else []
    code = Code.HELD_BY_GUARD if holding else Code.HELD_BY_SERVING
    return replace(decision, event=None, reason="; ".join([*reasons, *waits]), alarm=alarm, code=code)


def _due(context: Context, found: Sequence[Finding]) -> Decision:
    spec, state, observed = context.spec, context.state, context.observed
    hold = Decision(None, "", context.next_look_ms)

    if not state.active:
        ended = replace(hold, reason=f"{state.phase} {state.cause}" if state.cause else f"the rollout is {state.phase}")
        return _watched(context, ended)

    # The lanes have already taken all traffic from the candidate; the record has to follow.
    if observed.killed is not None:
        return replace(hold, event=Abort(), reason=f"killed: {observed.killed}")

    # A breach that needs no labels cannot wait for them.
    acting, held = _sorted(spec, state, ((each.guard, each.seen) for each in found if each.breached))
    if acting is not None:
        return _back(context, replace(hold, evidence={"observed": counters(observed)}), *acting)

    # While nothing moves, a version that waits must not keep the labels from being looked at.
    if context.frozen is None and (version := newest_passed(state, observed.versions)) is not None:
        return _adopt(context, hold, version)

    # A look further away than one interval was set before the clock went back.
    if 0 < context.next_look_ms - context.now_ms <= spec.analysis.interval * 1000:
        return replace(hold, reason="waiting for the next look", code=Code.NEXT_LOOK)
    hold = replace(hold, next_look_ms=context.now_ms + round(spec.analysis.interval * 1000))
    if context.now_ms < state.entered_ms:
        why = "the clock went back behind the entry of this step; waiting for it to catch up"
        return replace(hold, reason=why, code=Code.CLOCK_WENT_BACK)
    if context.table is None:
        return replace(hold, reason="reading the labelled log again after a restart", code=Code.READING_LOG)
    table = context.table()

    # Old data neither promotes nor rolls back.
    age = _age(context, table)
    window = context.log_window or spec.analysis.attribution_window or 0.0
    limit = window + 5 * max(spec.analysis.block, spec.analysis.interval) + 5.0
    if age is None or age > limit:
        code, why = _unlabelled(context, age, window, limit)
        return _idle(context, replace(hold, reason=why, code=code))

    looked = Look(spec, state, table)
    if looked.silent:
        why = "the newest rows have no click at all: labels seem to be missing"
        late = observed.labels.late(window)
        code = Code.LABELS_AFTER_WINDOW if late else Code.LABELS_SILENT
        return _idle(context, replace(hold, reason="; ".join(filter(None, (why, late))), code=code))
    acting, more = _sorted(spec, state, looked.breaches())
    if acting is not None:
        return _back(context, replace(hold, evidence=looked.seen), *acting)
    late = observed.labels.note(window)
    hold = replace(hold, evidence=looked.seen, notes=(*looked.notes, *filter(None, (late,))))

    # A breach that only holds: nothing is entered or completed while it lasts, and what else is due goes on.
    if held := [*held, *more, *looked.holds()]:
        alarm = next((guard for guard, _ in held if guard in ALARMS or spec.action(guard) == "hold"), "")
        code = ALARMS.get(alarm, Code.HELD_BY_GUARD) if alarm else Code.WAITS_FOR_VERSION
        return _idle(context, replace(hold, reason="; ".join(seen for _, seen in held), alarm=alarm, code=code))
    if state.phase in (Phase.DEGRADED, Phase.WATCHING, Phase.PAUSED):
        return _idle(context, hold)

    coverage = min(_known(looked.window.coverage()), _known(observed.shadow_coverage))
    if spec.guards.shadow_coverage_min is not None and coverage < spec.guards.shadow_coverage_min:
        wanted = spec.guards.shadow_coverage_min
        why = f"shadow_coverage {coverage:.3f} is below {wanted:g}: too few rows have both scores"
        return replace(hold, reason=why, code=Code.LOW_COVERAGE)

    stayed = (context.now_ms - state.entered_ms) / 1000
    if stayed < spec.analysis.min_step_time:
        left = spec.analysis.min_step_time - stayed
        return replace(hold, reason=f"min_step_time: {left:.0f} s left at this step", code=Code.MIN_STEP_TIME)

    if reason := looked.not_yet():
        return replace(hold, reason=reason, missing_clicks=looked.missing, code=Code.EVIDENCE_MISSING)

    following = spec.steps[state.step + 1]
    if following.approve and state.approved_step != state.step + 1:
        waits = f"waits for approval of weight {following.weight:g}: all its evidence is there (baton rollout approve)"
        event = None if state.asked_step == state.step + 1 else AskApproval()
        return replace(hold, event=event, reason=waits, missing_clicks=0, code=Code.WAITS_FOR_APPROVAL)

    reset_evidence = not context.carry or looked.rows.population_moved(looked.error / 2, MIN_BLOCKS)
    return replace(
        hold,
        event=Advance(reset_evidence=reset_evidence),
        reason=f"the evidence for weight {following.weight:g} is there",
        missing_clicks=0,
    )


def _unlabelled(context: Context, age: float | None, window: float, limit: float) -> tuple[Code, str]:
    """Code and reason of a hold for want of new rows with labels. The lanes' reports tell causes apart; a rollout that is too young
    for rows waits for them, unless its labels already come too late."""
    young = age is None and context.now_ms - context.state.entered_ms <= 1000 * limit
    said = "no mature labelled rows yet" if age is None else f"the newest rows with labels are {age:.0f} s old"
    found = context.observed.labels.why(context.now_ms, window, limit)
    if found is not None and not (young and found[0] is not Code.LABELS_AFTER_WINDOW):
        return found[0], f"{said}: {found[1]}"
    if age is None:
        return Code.NO_LABELS, said
    return Code.LABELS_STALE, f"labels are stale: the newest mature rows are {age:.0f} s old"


def _watched(context: Context, ended: Decision) -> Decision:
    """The decision on an ended rollout: none. A completed one says where its candidate drifts away."""
    spec, state = context.spec, context.state
    ahead = context.next_look_ms - context.now_ms
    if state.phase != Phase.COMPLETED or context.table is None or 0 < ahead <= spec.analysis.interval * 1000:
        return ended
    ended = replace(ended, next_look_ms=context.now_ms + round(spec.analysis.interval * 1000))
    looked = Look(spec, state, context.table())
    drifts = [seen for alarm, seen in looked.holds() if alarm == "drift"]
    if looked.silent or not drifts:
        return ended
    return replace(
        ended, reason="; ".join([ended.reason, *drifts]), evidence=looked.seen, alarm="drift", code=Code.DRIFT
    )


def _sorted(
    spec: Rollout, state: RolloutState, breaches: Iterable[tuple[str, str]]
) -> tuple[tuple[str, str] | None, list[tuple[str, str]]]:
    """The breach that acts, an abort before a step back, and those that only hold, each with what it says."""
    acting: tuple[str, str] | None = None
    held: list[tuple[str, str]] = []
    for guard, seen in breaches:
        action = spec.action(guard)
        if action == "abort":
            return (guard, seen), held
        if action == "hold":
            held.append((guard, f"held by {guard}: {seen}"))
        elif state.step == 0:
            # There is no step below, and what was shown of this version stays shown: only another one can do better.
            held.append((guard, f"waits for the next version, this one cannot pass {guard}: {seen}"))
        else:
            acting = acting or (guard, seen)
    return acting, held


def _back(context: Context, hold: Decision, guard: str, seen: str) -> Decision:
    spec, state = context.spec, context.state
    evidence = {**hold.evidence, "guard": guard, "seen": seen}
    if state.previous_version:
        served, before = state.candidate_version, state.previous_version
        said = f"{seen}; version {served} came at this step, so version {before} serves again before the step goes back"
        return replace(hold, event=ReturnVersion(before, guard), reason=said, evidence=evidence)
    if spec.action(guard) == "abort":
        return replace(hold, event=Abort(), reason=seen, evidence=evidence)
    times = state.step_backs.get(guard, 0) + 1
    if times >= spec.step_backs_max and state.phase != Phase.PAUSED:
        seen += f"; step back {times} for {guard}: it pauses until an operator resumes it (step_backs_max)"
    return replace(hold, event=StepBack(guard), reason=seen, evidence=evidence)


def _adopt(context: Context, hold: Decision, version: NewVersion) -> Decision:
    """Adopt a version that passed the gate: with the weight where it scores like what serves, else from the shadow step on."""
    known = context.state.candidate_version > 0  # at 0 the newest version was scoring already
    restart = known and moves(version)
    # With an evidence span, evidence is of the scores as they were served, version after version of one lineage: a worker that
    # publishes every few minutes would never have a day of one version.
    same = SHIFT_BOUND_FRACTION if context.spec.analysis.span_ms else SHIFT_FRACTION
    reset_evidence = known and (version.shift is None or abs(version.shift) > same)
    table = context.table() if context.table is not None else None
    blocks = EvidenceView(table).all().blocks if table else MIN_BLOCKS
    past = context.past_scores()
    shift = "by nobody knows how much" if version.shift is None else f"by {version.shift:+.4f}"
    by = f", published by {version.publisher}," if version.publisher else ""
    reason = f"version {version.number}{by} passed the gate; it moves the mean score of what serves {shift}"
    if restart:
        reason += ", so it begins in shadow"
    event = AdoptVersion(
        version.number,
        reset_evidence=reset_evidence,
        new_attempt=blocks >= MIN_BLOCKS,
        restart=restart,
        score_ratio=0.0 if past is None else past.ratio,
    )
    return replace(
        hold,
        event=event,
        reason=reason + (", evidence starts again" if reset_evidence else ""),
        evidence={"score_shift": version.shift, "publisher": version.publisher},
    )


def _idle(context: Context, hold: Decision) -> Decision:
    """Decide in the phases that only time ends."""
    spec, state = context.spec, context.state
    if state.phase == Phase.DEGRADED:
        if context.now_ms >= state.rest_until_ms:
            return replace(hold, event=Recover(), reason="the rest after the step back is over")
        left = (state.rest_until_ms - context.now_ms) / 1000
        return replace(hold, reason=f"resting after a step back for {left:.0f} s", code=Code.RESTING)
    if (
        state.phase == Phase.WATCHING and not hold.reason
    ):  # a reason here means no fresh labels: silence completes nothing
        left = state.entered_ms / 1000 + spec.after_full.watch - context.now_ms / 1000
        if left <= 0:
            return replace(hold, event=Complete(), reason="the watch after the last step is over")
        return replace(hold, reason=f"watching for another {left:.0f} s", code=Code.WATCHING)
    if state.phase == Phase.PAUSED:
        paused = f"paused {state.cause}" if state.cause else "paused; the audit says by whom"
        by_step_backs = state.cause is not None and state.cause.verb == StepBack.verb
        code = Code.PAUSED_BY_STEP_BACKS if by_step_backs else Code.PAUSED
        return replace(hold, reason=paused + (f"; {hold.reason}" if hold.reason else ""), code=code)
    return hold


def _age(context: Context, table: BlockTable) -> float | None:
    return None if table.newest_ms is None else max(0.0, (context.now_ms - table.newest_ms) / 1000)


def _known(value: float | None) -> float:
    return 1.0 if value is None or math.isnan(value) else value

"""State machine of a rollout: pure functions. Nothing else sets a weight.

    progressing ──evidence──► progressing (next step) ──last step──► watching ──watch over──► completed
         │  ▲                       │ breach                            │ breach                  │
       pause resume                 ▼                                   ▼                         │
         ▼  │                  degraded (a step lower, rests, tries again with new evidence)      │
       paused ──── abort, from any of these ────► aborted      undo, from watching or completed ──┴──► undone

A breach after a version was adopted at this step returns to the version before it first, at the same weight.
Read next: `reconcile` decides which change is due, `store` keeps state and audit together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from pipeline.errors import Conflict, InvalidInput
from serving.rollout.spec import Rollout

__all__ = [
    "ACTIVE",
    "Abort",
    "AdoptVersion",
    "Advance",
    "Approve",
    "AskApproval",
    "Cause",
    "Complete",
    "Event",
    "Pause",
    "Phase",
    "PhaseMark",
    "Promote",
    "Recover",
    "Resume",
    "ReturnVersion",
    "RolloutState",
    "SetWeight",
    "StepBack",
    "Undo",
    "after",
    "apply",
    "begin",
]


class Phase:
    """Names of the phases."""

    PROGRESSING = "progressing"
    PAUSED = "paused"
    DEGRADED = "degraded"
    WATCHING = "watching"
    COMPLETED = "completed"
    ABORTED = "aborted"
    UNDONE = "undone"


ACTIVE = frozenset({Phase.PROGRESSING, Phase.PAUSED, Phase.DEGRADED, Phase.WATCHING})
"""Phases in which a rollout owns its endpoint's weight; at most one such rollout per endpoint."""
_KEPT_MARKS = 256
_MOST_DOUBLINGS_COUNT, _LONGEST_REST_S = 10, 86400.0


@dataclass(frozen=True, slots=True)
class PhaseMark:
    """A stay at a step: its entry time, its first place in the labelled log, and whether it was entered on evidence.

    `figures` is filled when the stay is over and its rows have matured, so that reports outlive the log's retention.
    """

    step: int
    weight: float
    entered_ms: int
    seq: int
    on_evidence: bool
    figures: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Cause:
    """Who brought a rollout into its phase, by which verb, why and when (Unix milliseconds), and what was not met then."""

    verb: str
    actor: str
    reason: str
    time_ms: int
    unmet: tuple[str, ...] = ()

    def __str__(self) -> str:
        when = datetime.fromtimestamp(self.time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"by {self.actor} at {when}" + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True, slots=True)
class RolloutState:
    """State of a rollout; everything that must survive a restart.

    Args:
        phase, step, weight: now; step counts the steps of the rollout file, the shadow step is 0.
        entered_ms: Unix milliseconds at which this step was entered.
        attempt: number of the attempt whose evidence is being gathered, from 1.
        evidence_from_ms, evidence_seq, evidence_version: evidence counts blocks that start at this time or later, found
            in the labelled log after this place, scored by this candidate version or a newer one.
        rest_until_ms: end of the rest after a step back.
        stepped_back: number of steps back.
        candidate_version: version of the candidate that this rollout last adopted.
        previous_version: the one that served before it at this step, 0 where none did: a breach returns to it first.
        returns: how often one has at this step; after `step_backs_max` of them the step goes back.
        refused_version: version that a breach was returned from, or that was passed over at the start; only newer ones are
            adopted.
        changed_ms: time of the last change of the version; figures of before are of another one.
        score_ratio: of the evidence that a new version ended, until its own mature rows say what it is; 0: unknown.
        marks: the stays so far, oldest first (at most 256).
        cause: of the phase; None in states that an older version wrote.
        step_backs: number of steps back by guard, since an operator resumed or promoted last.
        asked_step, approved_step: step for which an operator's approval was asked for and given, since this step or this
            evidence began; 0: none.
    """

    phase: str
    step: int
    weight: float
    entered_ms: int
    attempt: int
    evidence_from_ms: int
    evidence_seq: int
    evidence_version: int
    candidate_version: int
    rest_until_ms: int = 0
    stepped_back: int = 0
    marks: tuple[PhaseMark, ...] = field(default=())
    previous_version: int = 0
    returns: int = 0
    refused_version: int = 0
    changed_ms: int = 0
    score_ratio: float = 0.0
    cause: Cause | None = None
    step_backs: Mapping[str, int] = field(default_factory=dict)
    asked_step: int = 0
    approved_step: int = 0

    @property
    def judged_from_ms(self) -> int:
        """Time from which reports of the processes are of this step and this version."""
        return max(self.entered_ms, self.changed_ms)

    @property
    def newest_known(self) -> int:
        """Version that only newer ones are adopted after."""
        return max(self.candidate_version, self.refused_version)

    @property
    def refused_versions(self) -> range:
        """Versions whose rows are no evidence, though they are newer than that of the evidence."""
        return range(self.evidence_version + 1, self.refused_version + 1)

    @property
    def active(self) -> bool:
        """Whether the rollout can still change by itself."""
        return self.phase in ACTIVE

    def steps_on_evidence(self) -> frozenset[int]:
        """Steps that were entered on evidence at least once."""
        return frozenset(mark.step for mark in self.marks if mark.on_evidence)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RolloutState:
        """The inverse of `to_json`."""
        cause = data.get("cause")
        return cls(
            **{
                **data,
                "marks": tuple(PhaseMark(**mark) for mark in data["marks"]),
                "cause": Cause(**{**cause, "unmet": tuple(cause.get("unmet", ()))}) if cause else None,
            }
        )


@dataclass(frozen=True, slots=True)
class Advance:
    """The next step's evidence is there. `reset_evidence`: the population changed, so evidence does not carry over."""

    reset_evidence: bool = False
    verb = "advance"


@dataclass(frozen=True, slots=True)
class StepBack:
    """A guard was breached: one step lower, a new attempt with new evidence after a rest."""

    guard: str = ""
    verb = "step_back"


@dataclass(frozen=True, slots=True)
class Recover:
    """The rest after a step back is over."""

    verb = "recover"


@dataclass(frozen=True, slots=True)
class Complete:
    """The watch after the last step is over."""

    verb = "complete"


@dataclass(frozen=True, slots=True)
class AdoptVersion:
    """The candidate serves a newer version. `reset_evidence`: its scores differ, so evidence on the old one does not count.

    `new_attempt`: the old evidence was tested already, so the new one is another attempt. `restart`: it scores like another
    model, so it goes back to the shadow step instead of taking the weight. `score_ratio`: of the evidence so far.
    """

    version: int
    reset_evidence: bool = False
    new_attempt: bool = False
    restart: bool = False
    score_ratio: float = 0.0
    verb = "adopt_version"


@dataclass(frozen=True, slots=True)
class AskApproval:
    """The next step's evidence is there, and an operator has to approve the step."""

    verb = "ask_approval"


@dataclass(frozen=True, slots=True)
class Approve:
    """Operator: the next step may be entered on its evidence. Approving twice is approving once."""

    verb = "approve"


@dataclass(frozen=True, slots=True)
class ReturnVersion:
    """A guard was breached after a version was adopted at this step: the version before it serves again, at the same weight,
    and is judged anew. The other one is not adopted again."""

    version: int
    guard: str = ""
    verb = "return_version"


@dataclass(frozen=True, slots=True)
class Pause:
    """Operator: stay at this step even when the evidence allows the next; breaches still step back."""

    verb = "pause"


@dataclass(frozen=True, slots=True)
class Resume:
    """Operator: go on by evidence."""

    verb = "resume"


@dataclass(frozen=True, slots=True)
class Promote:
    """Operator: enter the next step (`full`: the last one) without its evidence."""

    full: bool = False
    verb = "promote"


@dataclass(frozen=True, slots=True)
class Abort:
    """All traffic to stable and the end of this rollout; by an operator, a breach or the kill switch."""

    verb = "abort"


@dataclass(frozen=True, slots=True)
class Undo:
    """Operator: take a finished hand-over back; stable answers all traffic again."""

    verb = "undo"


@dataclass(frozen=True, slots=True)
class SetWeight:
    """Operator: this weight, by hand; the rollout pauses there."""

    weight: float
    verb = "set_weight"


Event = (
    Advance
    | StepBack
    | Recover
    | Complete
    | AdoptVersion
    | ReturnVersion
    | AskApproval
    | Approve
    | Pause
    | Resume
    | Promote
    | Abort
    | Undo
    | SetWeight
)

_FROM: dict[type[Any], frozenset[str]] = {
    Advance: frozenset({Phase.PROGRESSING}),
    StepBack: ACTIVE,
    ReturnVersion: ACTIVE,
    Recover: frozenset({Phase.DEGRADED}),
    Complete: frozenset({Phase.WATCHING}),
    AdoptVersion: ACTIVE,
    AskApproval: frozenset({Phase.PROGRESSING}),
    Approve: frozenset({Phase.PROGRESSING}),
    Pause: frozenset({Phase.PROGRESSING, Phase.DEGRADED, Phase.WATCHING}),
    Resume: frozenset({Phase.PAUSED}),
    Promote: frozenset({Phase.PROGRESSING, Phase.PAUSED, Phase.DEGRADED}),
    Abort: ACTIVE,
    Undo: frozenset({Phase.WATCHING, Phase.COMPLETED}),
    SetWeight: ACTIVE,
}


def begin(spec: Rollout, version: int, now_ms: int, seq: int, known: int = 0) -> RolloutState:
    """A rollout at its start: the shadow step, weight 0. `seq` is the end of the labelled log; `known`: the newest version of
    the candidate's bundle, where it begins with an older one."""
    mark = PhaseMark(0, spec.steps[0].weight, now_ms, seq, on_evidence=True)
    return RolloutState(
        phase=Phase.PROGRESSING,
        step=0,
        weight=0.0,
        entered_ms=now_ms,
        attempt=1,
        evidence_from_ms=now_ms,
        evidence_seq=seq,
        evidence_version=version,
        candidate_version=version,
        marks=(mark,),
        refused_version=known if known > version > 0 else 0,
    )


def apply(spec: Rollout, state: RolloutState, event: Event, now_ms: int, seq: int) -> RolloutState:
    """The state after an event at `now_ms` (Unix milliseconds) with the labelled log read up to `seq`.

    Raises:
        Conflict: the phase does not allow it.
        InvalidInput: a weight outside 0..100.
    """
    if state.phase not in _FROM[type(event)]:
        allowed = ", ".join(sorted(_FROM[type(event)]))
        raise Conflict(f"{event.verb} is not possible in phase {state.phase}; it is in: {allowed}")
    last = len(spec.steps) - 1
    match event:
        case Advance(reset_evidence=reset_evidence):
            moved = _enter(spec, state, state.step + 1, now_ms, seq, on_evidence=True)
            return _new_evidence(moved, now_ms, seq) if reset_evidence else moved
        case StepBack(guard=guard):
            moved = _enter(spec, state, max(0, state.step - 1), now_ms, seq)
            times = state.step_backs.get(guard, 0) + 1
            pauses = state.phase == Phase.PAUSED or times >= spec.step_backs_max
            return replace(
                _new_evidence(moved, now_ms, seq),
                phase=Phase.PAUSED if pauses else Phase.DEGRADED,
                rest_until_ms=now_ms + _rest_ms(spec, state),
                stepped_back=state.stepped_back + 1,
                step_backs={**state.step_backs, guard: times},
            )
        case Recover():
            return replace(state, phase=Phase.PROGRESSING)
        case Complete():
            return replace(state, phase=Phase.COMPLETED)
        case AdoptVersion(version=version):
            if version <= state.newest_known:
                raise Conflict(f"candidate version {version} is not newer than {state.newest_known}")
            return _adopt(spec, state, event, now_ms, seq)
        case ReturnVersion(version=version):
            if not version or version != state.previous_version:
                raise Conflict(f"version {version} did not serve before {state.candidate_version} at this step")
            kept = _new_evidence(state, now_ms, seq)
            return replace(
                kept,
                candidate_version=version,
                evidence_version=version,
                previous_version=0,
                returns=state.returns + 1,
                refused_version=state.newest_known,
                changed_ms=now_ms,
                score_ratio=state.score_ratio,
            )
        case AskApproval():
            return replace(state, asked_step=state.step + 1)
        case Approve():
            if state.asked_step != state.step + 1:
                raise Conflict(
                    "nothing waits for approval; a step with `approve: true` does once its evidence is there"
                )
            return replace(state, approved_step=state.asked_step)
        case Pause():
            return replace(state, phase=Phase.PAUSED)
        case Resume():
            phase = (
                Phase.WATCHING if state.step == last and state.weight == spec.steps[last].weight else Phase.PROGRESSING
            )
            return replace(state, phase=phase, step_backs={})
        case Promote(full=full):
            if state.step == last and state.weight == spec.steps[last].weight:
                raise Conflict(f"already at the last step, weight {state.weight:g}; resume to go on watching")
            target = last if full else min(state.step + 1, last)
            return replace(_enter(spec, state, target, now_ms, seq), step_backs={})
        case Abort():
            return replace(_weigh(state, 0, 0.0, now_ms, seq), phase=Phase.ABORTED)
        case Undo():
            return replace(_weigh(state, 0, 0.0, now_ms, seq), phase=Phase.UNDONE)
        case SetWeight(weight=weight):
            if not 0 <= weight <= 100:
                raise InvalidInput(f"weight {weight:g} is not a percentage from 0 to 100", "weight")
            step = max(at for at, each in enumerate(spec.steps) if each.weight <= weight)
            return replace(_weigh(state, step, weight, now_ms, seq), phase=Phase.PAUSED)


def after(before: RolloutState, state: RolloutState, event: Event, cause: Cause) -> RolloutState:
    """`state`, the one after an event, with the cause of its phase: a change within a pause leaves the pause's own."""
    if state.phase == before.phase and not isinstance(event, SetWeight | Promote):
        return state
    return replace(state, cause=cause)


def _adopt(spec: Rollout, state: RolloutState, event: AdoptVersion, now_ms: int, seq: int) -> RolloutState:
    version = event.version
    before = state.candidate_version if state.returns < spec.step_backs_max else 0
    adopted = replace(
        state,
        candidate_version=version,
        previous_version=before,
        changed_ms=now_ms,
        score_ratio=event.score_ratio,
    )
    if event.restart and state.weight > 0:
        moved = _enter(spec, adopted, 0, now_ms, seq)
        adopted = replace(moved, phase=Phase.PROGRESSING if state.phase == Phase.WATCHING else state.phase)
    if not event.reset_evidence:
        return adopted
    anew = _new_evidence(adopted, now_ms, seq, new_attempt=event.new_attempt)
    return replace(anew, evidence_version=version, score_ratio=0.0 if event.restart else event.score_ratio)


def _enter(
    spec: Rollout, state: RolloutState, step: int, now_ms: int, seq: int, *, on_evidence: bool = False
) -> RolloutState:
    if step >= len(spec.steps):
        raise Conflict(f"there is no step after the last one, weight {state.weight:g}")
    moved = _weigh(state, step, spec.steps[step].weight, now_ms, seq, on_evidence=on_evidence)
    return replace(moved, phase=Phase.WATCHING if step == len(spec.steps) - 1 else Phase.PROGRESSING)


def _weigh(
    state: RolloutState, step: int, weight: float, now_ms: int, seq: int, *, on_evidence: bool = False
) -> RolloutState:
    mark = PhaseMark(step, weight, now_ms, seq, on_evidence)
    marks = (*state.marks, mark)[-_KEPT_MARKS:]
    return replace(
        _unapproved(state), step=step, weight=weight, entered_ms=now_ms, previous_version=0, returns=0, marks=marks
    )


def _unapproved(state: RolloutState) -> RolloutState:
    """An approval is of one step on one evidence."""
    return replace(state, asked_step=0, approved_step=0)


def _rest_ms(spec: Rollout, state: RolloutState) -> int:
    """Rest after the next step back: it doubles with each one since an operator looked, up to a day."""
    first = spec.analysis.min_step_time
    times = min(sum(state.step_backs.values()), _MOST_DOUBLINGS_COUNT)
    return round(1000 * max(first, min(first * 2.0**times, _LONGEST_REST_S)))


def _new_evidence(state: RolloutState, now_ms: int, seq: int, *, new_attempt: bool = True) -> RolloutState:
    return replace(
        _unapproved(state),
        attempt=state.attempt + (1 if new_attempt else 0),
        evidence_from_ms=now_ms,
        evidence_seq=seq,
        score_ratio=0.0,
    )

"""State machine of a rollout: pure functions. Nothing else sets a weight.

    progressing ──evidence──► progressing (next step) ──last step──► watching ──watch over──► completed
         │  ▲                       │ breach                            │ breach                  │
       pause resume                 ▼                                   ▼                         │
         ▼  │                  degraded (a step lower, rests, tries again with new evidence)      │
       paused ──── abort, from any of these ────► aborted      undo, from watching or completed ──┴──► undone

Read next: `reconcile` decides which change is due, `store` keeps state and audit together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pipeline.errors import Conflict, InvalidInput
from serving.rollout.spec import Rollout

__all__ = [
    "ACTIVE",
    "Abort",
    "AdoptVersion",
    "Advance",
    "Complete",
    "Event",
    "Pause",
    "Phase",
    "PhaseMark",
    "Promote",
    "Recover",
    "Resume",
    "RolloutState",
    "SetWeight",
    "StepBack",
    "Undo",
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
        marks: the stays so far, oldest first (at most 256).
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
        return cls(**{**data, "marks": tuple(PhaseMark(**mark) for mark in data["marks"])})


@dataclass(frozen=True, slots=True)
class Advance:
    """The next step's evidence is there. `reset_evidence`: the population changed, so evidence does not carry over."""

    reset_evidence: bool = False
    verb = "advance"


@dataclass(frozen=True, slots=True)
class StepBack:
    """A guard was breached: one step lower, a new attempt with new evidence after a rest."""

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

    `new_attempt`: the old evidence was tested already, so the new one is another attempt.
    """

    version: int
    reset_evidence: bool = False
    new_attempt: bool = False
    verb = "adopt_version"


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


Event = Advance | StepBack | Recover | Complete | AdoptVersion | Pause | Resume | Promote | Abort | Undo | SetWeight

_FROM: dict[type[Any], frozenset[str]] = {
    Advance: frozenset({Phase.PROGRESSING}),
    StepBack: ACTIVE,
    Recover: frozenset({Phase.DEGRADED}),
    Complete: frozenset({Phase.WATCHING}),
    AdoptVersion: ACTIVE,
    Pause: frozenset({Phase.PROGRESSING, Phase.DEGRADED}),
    Resume: frozenset({Phase.PAUSED}),
    Promote: frozenset({Phase.PROGRESSING, Phase.PAUSED, Phase.DEGRADED}),
    Abort: ACTIVE,
    Undo: frozenset({Phase.WATCHING, Phase.COMPLETED}),
    SetWeight: frozenset({Phase.PROGRESSING, Phase.PAUSED, Phase.DEGRADED}),
}


def begin(spec: Rollout, version: int, now_ms: int, seq: int) -> RolloutState:
    """A rollout at its start: the shadow step, weight 0. `seq` is the end of the labelled log."""
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
        case StepBack():
            moved = _enter(spec, state, max(0, state.step - 1), now_ms, seq)
            return replace(
                _new_evidence(moved, now_ms, seq),
                phase=Phase.PAUSED if state.phase == Phase.PAUSED else Phase.DEGRADED,
                rest_until_ms=now_ms + round(spec.analysis.min_step_time * 1000),
                stepped_back=state.stepped_back + 1,
            )
        case Recover():
            return replace(state, phase=Phase.PROGRESSING)
        case Complete():
            return replace(state, phase=Phase.COMPLETED)
        case AdoptVersion(version=version, reset_evidence=reset_evidence, new_attempt=new_attempt):
            if version <= state.candidate_version:
                raise Conflict(f"candidate version {version} is not newer than {state.candidate_version}")
            adopted = replace(state, candidate_version=version)
            if not reset_evidence:
                return adopted
            return replace(_new_evidence(adopted, now_ms, seq, new_attempt=new_attempt), evidence_version=version)
        case Pause():
            return replace(state, phase=Phase.PAUSED)
        case Resume():
            phase = (
                Phase.WATCHING if state.step == last and state.weight == spec.steps[last].weight else Phase.PROGRESSING
            )
            return replace(state, phase=phase)
        case Promote(full=full):
            if state.step == last and state.weight == spec.steps[last].weight:
                raise Conflict(f"already at the last step, weight {state.weight:g}; resume to go on watching")
            target = last if full else min(state.step + 1, last)
            return _enter(spec, state, target, now_ms, seq)
        case Abort():
            return replace(_weigh(state, 0, 0.0, now_ms, seq), phase=Phase.ABORTED)
        case Undo():
            return replace(_weigh(state, 0, 0.0, now_ms, seq), phase=Phase.UNDONE)
        case SetWeight(weight=weight):
            if not 0 <= weight <= 100:
                raise InvalidInput(f"weight {weight:g} is not a percentage from 0 to 100", "weight")
            step = max(at for at, each in enumerate(spec.steps) if each.weight <= weight)
            return replace(_weigh(state, step, weight, now_ms, seq), phase=Phase.PAUSED)


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
    return replace(state, step=step, weight=weight, entered_ms=now_ms, marks=(*state.marks, mark)[-_KEPT_MARKS:])


def _new_evidence(state: RolloutState, now_ms: int, seq: int, *, new_attempt: bool = True) -> RolloutState:
    return replace(
        state, attempt=state.attempt + (1 if new_attempt else 0), evidence_from_ms=now_ms, evidence_seq=seq,
    )  # fmt: skip

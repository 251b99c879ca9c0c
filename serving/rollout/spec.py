"""The rollout file: an operator's conditions for moving traffic. This file reads and checks it; `reconcile` acts on it.

A wrong file is refused with the line, the step and the field. A guard that is not named has its default; a guard set to
null is off. The section `guards` itself is required, so that nobody moves traffic without thinking of what should stop it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline.documents import parse_yaml
from pipeline.errors import InvalidInput
from pipeline.faults import fault_text, refuse
from serving.config import Seconds
from serving.rollout.loss_bound import LossBound

__all__ = [
    "MIN_BLOCKS",
    "MIN_WINDOW_BLOCKS",
    "AfterFull",
    "Analysis",
    "CandidateRef",
    "Guards",
    "Rollout",
    "SliceGuard",
    "Step",
    "place",
]

MIN_BLOCKS = 50
"""Fewest blocks before evidence counts: the confidence sequence is asymptotic."""
MIN_WINDOW_BLOCKS = 20
"""Fewest blocks before a breach window counts."""
WINDOW_BLOCKS = 80
"""Fewest blocks of a breach window, however short the file makes it: fewer are too little information about a bias."""


_NO_ACTION = frozenset({"actions", "absolute", "shadow_coverage_min"})
"""Keys of the section `guards` that no breach is of; a low coverage always holds."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class CandidateRef(_Section):
    bundle: str = Field(min_length=1)
    """The version is the last one that passed the gate."""


class Step(_Section):
    shadow: bool = False
    """First step only: the candidate scores all requests and answers none."""
    min_positives: int = Field(0, ge=0)
    """Shadow only: clicks on paired rows before the first weight."""
    weight: float = Field(0.0, ge=0, le=100)
    """Percent of routing keys that the candidate answers."""
    bias_below: float | None = Field(None, gt=0, lt=1)
    """The step is entered when the relative bias is shown to lie within plus and minus this."""
    approve: bool = False
    """Not for shadow: with all its evidence met the step waits until an operator approves it."""

    @model_validator(mode="after")
    def _one_kind(self) -> Step:
        if self.shadow:
            if self.weight or self.bias_below is not None:
                raise ValueError("a shadow step takes min_positives only; remove weight and bias_below")
            if self.approve:
                raise ValueError(
                    "a shadow step is entered by `rollout start`; remove approve, or put it on a step with a weight"
                )
            return self
        faults = []
        if not self.weight:
            faults.append("a step needs a weight above 0 (percent of keys), or shadow: true")
        elif self.bias_below is None:
            faults.append("a step with a weight needs bias_below, for example bias_below: 0.05")
        if self.min_positives:
            faults.append("min_positives belongs to the shadow step; bias_below decides how many clicks a weight needs")
        refuse(faults)
        return self

    @property
    def bound(self) -> float:
        """The bias bound of a step with a weight."""
        assert self.bias_below is not None
        return self.bias_below


class SliceGuard(_Section):
    """Guard on named slices of the traffic: evidence before each step, and a step back where it is shown to be breached."""

    field: str = Field(min_length=1)
    """An id field of the arms' inputs."""
    values: tuple[str | int | float | bool | None, ...] = Field(min_length=1, max_length=16)
    """Raw values; each is a slice by itself. null: missing."""
    logloss_delta_max: LossBound | None = "1%"
    """Candidate's LogLoss minus stable's on the slice's rows, at most; see `Guards`."""
    bias_below: float | None = Field(None, gt=0, lt=1)
    """The candidate's relative bias on the slice's rows lies within plus and minus this."""

    @model_validator(mode="after")
    def _asks_something(self) -> SliceGuard:
        if self.logloss_delta_max is None and self.bias_below is None:
            raise ValueError("asks for nothing; set logloss_delta_max or bias_below")
        return self


class Guards(_Section):
    auc_delta_min: float | None = Field(-0.002, ge=-1, le=1)
    """Candidate's AUC minus stable's, on the same rows, at least."""
    logloss_delta_max: LossBound | None = "0.5%"
    """Candidate's LogLoss minus stable's, on the same rows, at most: "0.5%" of the entropy of the click rate, or a number of nats per
    row. What a number allows depends on the click rate: 0.002 is 0.5 % of the entropy at 16 % clicks, and 25 % at 0.1 %."""
    score_ratio: tuple[float, float] | None = (0.8, 1.25)
    """Sum of the candidate's scores over the sum of stable's on the same rows of the last seconds, as a multiple of the same
    ratio over all mature rows of the attempt. Before there are any it is held against 1, and holds the rollout only."""
    p99_ms_max: float | None = Field(50.0, gt=0)
    """Latency of the candidate's answers, 99th percentile."""
    deadline_miss_max: float | None = Field(0.01, ge=0, le=1)
    """Fraction of the candidate's requests that miss their deadline."""
    error_rate_max: float | None = Field(0.01, ge=0, le=1)
    """Fraction of the candidate's requests that fail."""
    degraded_max: float | None = Field(0.05, ge=0, le=1)
    """Fraction of the candidate's answers for which a tier could not give rows, so that default rows stand in for them. Where
    stable's, or those that the shadow lane scores, are over it, no step is entered either."""
    absolute: bool = False
    """False: latency, deadlines, errors and degraded answers are a breach where the candidate is over the limit and shown to
    be worse than stable at the same time; where both are over it, the rollout holds. True: the limit alone counts."""
    shadow_coverage_min: float | None = Field(0.95, ge=0, le=1)
    """Fraction of exposed rows that both arms scored; below it nothing moves."""
    outcome_delta_min: float | None = Field(None, ge=-1, le=1)
    """Candidate's outcome per request minus stable's, relative to stable's, at least, on the requests that each answered
    during the present stay. Keys are split, not requests, so this needs thousands of keys; off unless set."""
    segments: tuple[SliceGuard, ...] = ()
    actions: dict[str, Literal["hold", "step_back", "abort"]] = {}
    """What a breach of a guard does, by the guard's name; `on_breach` for those not named. `hold`: nothing is entered while it
    lasts, and the rollout says so. The two bounds on bias are called `bias` and `served_bias`."""

    @field_validator("actions")
    @classmethod
    def _known(cls, actions: dict[str, str]) -> dict[str, str]:
        guards = {"bias", "served_bias", "served_clicks", *cls.model_fields} - _NO_ACTION
        if unknown := sorted(set(actions) - guards):
            raise ValueError(
                f"{', '.join(unknown)}: no guard that has an action; those that have: {', '.join(sorted(guards))}"
            )
        return actions

    @model_validator(mode="after")
    def _ordered(self) -> Guards:
        if self.score_ratio is not None and not 0 < self.score_ratio[0] < 1 < self.score_ratio[1]:
            raise ValueError(f"score_ratio {list(self.score_ratio)} must be [low, high] with 0 < low < 1 < high")
        return self


class Analysis(_Section):
    attribution_window: Seconds | None = None
    """A row without a final outcome is mature this long after its exposure. The traffic log decides that: unset, it is its
    `traffic.attribution_window`, and another value is refused."""
    confidence: float = Field(0.95, ge=0.5, lt=1)
    """1 minus the error that a whole rollout may spend on bias, and each guard for itself."""
    block: Seconds = 30.0
    """Length of a block of prediction time, the unit of evidence; longer where users come back."""
    interval: Seconds = 30.0
    """Time between two looks at the evidence."""
    min_step_time: Seconds = 600.0
    """Shortest stay at a step, and the rest after a step back."""
    breach_window: Seconds = 3600.0
    """Sliding window in which a candidate that turns bad is detected. A bias there holds the rollout, a LogLoss or AUC steps back."""
    evidence_span: Seconds = 86400.0
    """Shortest time that evidence on a bias spans before a weight is entered, or left for it, counted in whole ones from where the evidence
    began: what swings over the day is no bias. 0s: blocks of any hours will do, for demos, tests and replayed logs."""
    key_cap: float = Field(0.01, ge=0, le=1)
    """Fraction of an hour's rows that count as evidence of one routing key at most, or 20 times the rows of the average key
    where there are few keys; 0: no cap."""
    segments: tuple[str, ...] = Field((), max_length=16)
    """Fields whose slices have figures of their own: an id by value, a number by power of two."""

    @model_validator(mode="after")
    def _lengths(self) -> Analysis:
        faults = []
        if self.block < 0.001 or self.interval <= 0:
            faults.append("block must be at least 1ms and interval above 0")
        if self.breach_window < MIN_WINDOW_BLOCKS * self.block:
            faults.append(
                f"breach_window ({self.breach_window:g} s) must hold at least {MIN_WINDOW_BLOCKS} blocks of "
                f"{self.block:g} s; lengthen it to {MIN_WINDOW_BLOCKS * self.block:g}s or shorten block"
            )
        if self.interval > self.breach_window:
            faults.append(
                f"interval ({self.interval:g} s) is longer than breach_window ({self.breach_window:g} s): what happens "
                "between two looks would never be seen; shorten interval"
            )
        refuse(faults)
        return self

    def other_window(self, log_window: float) -> str:
        """What is wrong where this window is not that of the log (seconds), both named; empty: they agree."""
        if self.attribution_window in (None, log_window):
            return ""
        return (
            f"analysis.attribution_window of the rollout is {self.attribution_window:g} s, traffic.attribution_window of the "
            f"log is {log_window:g} s"
        )

    @property
    def window_ms(self) -> int:
        """Length of the breach window in milliseconds: at least so many blocks that a bias in it can be shown."""
        return max(round(self.breach_window * 1000), WINDOW_BLOCKS * self.block_ms)

    @property
    def span_ms(self) -> int:
        """Length of the evidence span in milliseconds, in whole blocks."""
        return -(-round(self.evidence_span * 1000) // self.block_ms) * self.block_ms

    @property
    def block_ms(self) -> int:
        """Length of a block in milliseconds."""
        return max(1, round(self.block * 1000))


class AfterFull(_Section):
    watch: Seconds = 86400.0
    """After the last step, the guards still step back for this long."""


class Rollout(_Section):
    """One rollout file. A file without a shadow step gets one, since the first weight is entered on evidence too."""

    endpoint: str = Field(min_length=1)
    candidate: CandidateRef
    steps: tuple[Step, ...] = Field(min_length=1)
    guards: Guards
    relative_to_stable: bool = False
    """True: a base-rate jump that biases both arms alike (up to 0.10) does not hold the candidate back."""
    analysis: Analysis = Analysis()
    holdout: float = Field(0.01, ge=0, le=0.5)
    """Fraction of keys that stays on stable to measure the long-run effect."""
    on_breach: Literal["step_back", "abort"] = "step_back"
    """What a breach does, where the guard's own action (`guards.actions`) says nothing else."""
    step_backs_max: int = Field(2, ge=1, le=100)
    """After this many step backs for one guard the rollout pauses, until an operator resumes it."""
    progress_deadline: Seconds | None = Field(None, gt=0)
    """A rollout that has not entered another step for so long says so and raises `baton_rollout_overdue`."""
    on_deadline: Literal["hold", "abort"] = "hold"
    """What it does then: go on waiting, or abort. One that an operator has paused, or that is frozen, is not aborted for it."""
    after_full: AfterFull = AfterFull()

    @model_validator(mode="before")
    @classmethod
    def _shadow_first(cls, data: Any) -> Any:
        steps = data.get("steps") if isinstance(data, dict) else None
        if isinstance(steps, list) and steps and isinstance(steps[0], dict) and not steps[0].get("shadow"):
            return {**data, "steps": [*steps, _IMPLIED]}
        return data

    def action(self, guard: str) -> str:
        """What a breach of a guard does: hold, step_back or abort."""
        return self.guards.actions.get(guard, self.on_breach)

    def on_log(self, log_window: float) -> Self:
        """The rollout on a log with this attribution window (seconds).

        Raises:
            InvalidInput: the file has another one.
        """
        if problem := self.analysis.other_window(log_window):
            raise InvalidInput(
                f"{problem}; remove it from the rollout file, or make it {log_window:g}s", "analysis.attribution_window"
            )
        analysis = self.analysis.model_copy(update={"attribution_window": log_window})
        return self.model_copy(update={"analysis": analysis})

    @property
    def named_slices(self) -> tuple[tuple[SliceGuard, str | int | float | bool | None], ...]:
        """Every slice that a guard names: (guard, raw value)."""
        return tuple((guard, value) for guard in self.guards.segments for value in guard.values)

    @model_validator(mode="after")
    def _rises(self) -> Rollout:
        steps = self.steps
        if steps[-1] is not steps[0] and steps[-1].shadow and not steps[0].shadow:
            steps = (steps[-1], *steps[:-1])  # the implied one was put last so that errors count the file's own steps
            object.__setattr__(self, "steps", steps)
            first = 1
        else:
            first = 0
        faults = []
        if len(steps) < 2:
            faults.append("steps: after the shadow step at least one step with a weight is needed")
        for at in range(1, len(steps)):
            step, before, number = steps[at], steps[at - 1], at - first
            if step.shadow:
                faults.append(f"steps[{number}].shadow: only the first step can be a shadow step")
                continue
            if step.weight <= before.weight:
                faults.append(
                    f"steps[{number}].weight: {step.weight:g} does not rise above {before.weight:g} of the step before"
                )
            if before.bias_below is not None and step.bound > before.bias_below:
                faults.append(
                    f"steps[{number}].bias_below: {step.bound:g} is looser than {before.bias_below:g} of the step before; "
                    "more traffic must not ask for less"
                )
        refuse(faults)
        return self

    @classmethod
    def load(cls, path: Path) -> Rollout:
        """Read a rollout file.

        Raises:
            InvalidInput: it cannot be read, is no YAML or breaks a rule; the message has file, line, field and reason.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"{path}: cannot be read: {error}") from None
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, name: str = "rollout") -> Rollout:
        """As `load`, from text; `name` of the file in messages."""
        try:
            data = parse_yaml(text)
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError as error:
            raise InvalidInput(f"{name}: not YAML: {error}") from None
        if not isinstance(data, dict):
            raise InvalidInput(f"{name}: a rollout file is a mapping with endpoint, candidate and steps")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            problems = [
                _place(name, root, problem, text)
                for problem in error.errors()
                for text in fault_text(problem).split("\n")
            ]
            raise InvalidInput("\n".join(problems), _dotted(error.errors()[0]["loc"])) from None


def place(name: str, text: str, *loc: str | int) -> str:
    """`file:line: key` of a place in a rollout file, for errors that are found later, with the bundles open.

    Args:
        name: of the file; text: its content; loc: keys and indices down to the place.
    """
    return f"{name}:{_line(yaml.compose(text, Loader=yaml.SafeLoader), loc)}: {_dotted(loc)}"


_IMPLIED = {"shadow": True}


def _place(name: str, root: yaml.Node | None, problem: Any, text: str) -> str:
    loc: Sequence[str | int] = problem["loc"]
    if not loc and text.startswith("steps["):  # a rule between steps names its place itself
        head, _, _ = text.partition(":")
        number, _, key = head.removeprefix("steps[").partition("].")
        return f"{name}:{_line(root, ('steps', int(number), key))}: {text}"
    if problem["type"] == "missing" and tuple(loc) == ("guards",):
        text = "missing; name what must not get worse, or write `guards: {}` for the defaults"
    where = _dotted(loc)
    return f"{name}:{_line(root, loc)}: {where + ': ' if where else ''}{text}"


def _dotted(loc: Sequence[str | int]) -> str:
    out = ""
    for part in loc:
        out += f"[{part}]" if isinstance(part, int) else f".{part}" if out else str(part)
    return out


def _line(node: yaml.Node | None, loc: Sequence[str | int]) -> int:
    """Line (from 1) of the deepest node on the way to `loc`; a key that is missing gets its parent's line."""
    line = 1
    for part in loc:
        below: yaml.Node | None = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    below, line = value, key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            below = node.value[part]
            line = below.start_mark.line + 1
        if below is None:
            return line
        node = below
    return line

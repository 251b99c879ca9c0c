"""The rollout file: an operator's conditions for moving traffic. This file reads and checks it; `reconcile` acts on it.

A wrong file is refused with the line, the step and the field. A guard that is not named has its default; a guard set to
null is off. The section `guards` itself is required, so that nobody moves traffic without thinking of what should stop it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.documents import parse_yaml
from pipeline.errors import InvalidInput
from serving.config import Seconds

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

    @model_validator(mode="after")
    def _one_kind(self) -> Step:
        if self.shadow:
            if self.weight or self.bias_below is not None:
                raise ValueError("a shadow step takes min_positives only; remove weight and bias_below")
            return self
        if not self.weight:
            raise ValueError("a step needs a weight above 0 (percent of keys), or shadow: true")
        if self.bias_below is None:
            raise ValueError("a step with a weight needs bias_below, for example bias_below: 0.05")
        if self.min_positives:
            raise ValueError(
                "min_positives belongs to the shadow step; bias_below decides how many clicks a weight needs"
            )
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
    logloss_delta_max: float | None = 0.005
    """Candidate's LogLoss minus stable's (nats per row) on the slice's rows, at most."""
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
    logloss_delta_max: float | None = 0.002
    """Candidate's LogLoss minus stable's (nats per row), on the same rows, at most."""
    score_ratio: tuple[float, float] | None = (0.8, 1.25)
    """Sum of the candidate's scores over the sum of stable's on the same rows; needs no labels."""
    p99_ms_max: float | None = Field(50.0, gt=0)
    """Latency of the candidate's answers, 99th percentile."""
    deadline_miss_max: float | None = Field(0.01, ge=0, le=1)
    """Fraction of the candidate's requests that miss their deadline."""
    error_rate_max: float | None = Field(0.01, ge=0, le=1)
    """Fraction of the candidate's requests that fail."""
    shadow_coverage_min: float | None = Field(0.95, ge=0, le=1)
    """Fraction of exposed rows that both arms scored; below it nothing moves."""
    outcome_delta_min: float | None = Field(None, ge=-1, le=1)
    """Candidate's outcome per request minus stable's, relative to stable's, at least, on the requests that each answered
    during the present stay. Keys are split, not requests, so this needs thousands of keys; off unless set."""
    segments: tuple[SliceGuard, ...] = ()

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
    """Sliding window in which a candidate that turns bad is detected."""
    segments: tuple[str, ...] = Field((), max_length=16)
    """Fields whose slices have figures of their own: an id by value, a number by power of two."""

    @model_validator(mode="after")
    def _lengths(self) -> Analysis:
        if self.block < 0.001 or self.interval <= 0:
            raise ValueError("block must be at least 1ms and interval above 0")
        if self.breach_window < MIN_WINDOW_BLOCKS * self.block:
            raise ValueError(
                f"breach_window ({self.breach_window:g} s) must hold at least {MIN_WINDOW_BLOCKS} blocks of "
                f"{self.block:g} s; lengthen it to {MIN_WINDOW_BLOCKS * self.block:g}s or shorten block"
            )
        if self.interval > self.breach_window:
            raise ValueError(
                f"interval ({self.interval:g} s) is longer than breach_window ({self.breach_window:g} s): what happens "
                "between two looks would never be seen; shorten interval"
            )
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
    after_full: AfterFull = AfterFull()

    @model_validator(mode="before")
    @classmethod
    def _shadow_first(cls, data: Any) -> Any:
        steps = data.get("steps") if isinstance(data, dict) else None
        if isinstance(steps, list) and steps and isinstance(steps[0], dict) and not steps[0].get("shadow"):
            return {**data, "steps": [*steps, _IMPLIED]}
        return data

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
        if len(steps) < 2:
            raise ValueError("steps: after the shadow step at least one step with a weight is needed")
        for at in range(1, len(steps)):
            step, before, number = steps[at], steps[at - 1], at - first
            if step.shadow:
                raise ValueError(f"steps[{number}].shadow: only the first step can be a shadow step")
            if step.weight <= before.weight:
                raise ValueError(
                    f"steps[{number}].weight: {step.weight:g} does not rise above {before.weight:g} of the step before"
                )
            if before.bias_below is not None and step.bound > before.bias_below:
                raise ValueError(
                    f"steps[{number}].bias_below: {step.bound:g} is looser than {before.bias_below:g} of the step before; "
                    "more traffic must not ask for less"
                )
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
            problems = [_place(name, root, problem) for problem in error.errors()]
            raise InvalidInput("\n".join(problems), _dotted(error.errors()[0]["loc"])) from None


def place(name: str, text: str, *loc: str | int) -> str:
    """`file:line: key` of a place in a rollout file, for errors that are found later, with the bundles open.

    Args:
        name: of the file; text: its content; loc: keys and indices down to the place.
    """
    return f"{name}:{_line(yaml.compose(text, Loader=yaml.SafeLoader), loc)}: {_dotted(loc)}"


_IMPLIED = {"shadow": True}


def _place(name: str, root: yaml.Node | None, problem: Any) -> str:
    loc: Sequence[str | int] = problem["loc"]
    text = str(problem["msg"]).removeprefix("Value error, ")
    if not loc and text.startswith("steps["):  # a rule between steps names its place itself
        head, _, _ = text.partition(":")
        number, _, key = head.removeprefix("steps[").partition("].")
        return f"{name}:{_line(root, ('steps', int(number), key))}: {text}"
    if problem["type"] == "extra_forbidden":
        text = "unknown key; remove it or correct its spelling"
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

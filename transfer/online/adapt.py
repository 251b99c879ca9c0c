"""Adaptation of the online stage to drift: the teacher weight (a), the replay ratio (r) and the teacher's period (K).

All signals are taken on rows before either model trains on them:

    paired loss of student and teacher on the stream     -> a        (transfer.quality.trust)
    surprise: loss above what the scores themselves say   \\
    level: clicks above or below the sum of scores         > drift    -> r down, K down, a leans to the labels
    stability of score and id histograms                  /
    paired loss of student and teacher on replay rows     -> forgetting -> r up

Every batch gives one `Adapted` record: the signals and the weights that followed. Constants (`adapt=False`) give the
same records, so that both can be drawn into one plot. Next stop: `transfer.online.codistill`, which uses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pipeline.arrays import F32, F64, I64
from pipeline.calibration import sigmoid
from pipeline.errors import InvalidInput
from transfer.quality.drift import Cusum, Stability
from transfer.quality.levels import relative
from transfer.quality.trust import Trust, label_losses

__all__ = ["AdaptSettings", "Adaptation", "Adapted", "Seen"]


DRIFTS = ("surprise", "rise", "fall")
SCORE_BINS = 20
MAX_TEACHER_WEIGHT = 0.9
UNSTABLE_INDEX, VERY_UNSTABLE_INDEX = 0.1, 0.25
"""Stability indices between which drift heats from 0 to 1."""


@dataclass(frozen=True, slots=True)
class AdaptSettings:
    """Start values of a, r and K, which they keep without drift, and their bounds.

    Args:
        teacher_weight: a, weight of the teacher's term of the student's loss while both models are equally good. Also the
            upper bound: a teacher that is better gets no more.
        replay: r, rows of the retained window per row of the stream.
        every: K, how seldom the teacher learns: batches per step of the teacher, which uses their mean gradient.
        adapt: False keeps all three constant.
        least_replay, most_replay, least_every: bounds.
        lean: how far drift alone moves the log-odds of a towards the labels, since the teacher's scores are as old as its
            last publication.
        kept: fraction of the paired evidence that still counts when a drift begins.
    """

    teacher_weight: float = 0.7
    replay: float = 0.1
    every: int = 10
    adapt: bool = True
    least_replay: float = 0.02
    most_replay: float = 0.3
    least_every: int = 2
    lean: float = 2.0
    kept: float = 0.1

    def __post_init__(self) -> None:
        for good, name, value, wanted in (
            (
                0 <= self.teacher_weight <= MAX_TEACHER_WEIGHT,
                "teacher_weight",
                self.teacher_weight,
                f"between 0 and {MAX_TEACHER_WEIGHT}",
            ),
            (0 <= self.replay <= self.most_replay, "replay", self.replay, f"between 0 and {self.most_replay}"),
            (1 <= self.every <= 1000, "every", self.every, "between 1 and 1000"),
        ):
            if not good:
                raise InvalidInput(f"{name} is {value}; it must lie {wanted}", name)


@dataclass(frozen=True, slots=True)
class Seen:
    """Scores of a batch from before training on it. Logits are calibrated, float32, of n rows of the stream.

    Args:
        student, teacher: logits `[n]`; the teacher's are of the version that serves, NaN where it has not scored.
        labels: float32 `[n]`.
        ids: int64 `[n, F]`, hashed.
        replay_student, replay_teacher, replay_labels: the same of the replay rows of this batch, `[m]`, m may be 0. They were
            drawn as often as they stand for others.
        stands_for: float32 `[n]`, rows of the traffic that each row of the stream stands for; empty: itself.
    """

    student: F32
    teacher: F32
    labels: F32
    ids: I64
    replay_student: F32
    replay_teacher: F32
    replay_labels: F32
    stands_for: F32 = field(default_factory=lambda: np.empty(0, np.float32))


@dataclass(frozen=True, slots=True)
class Adapted:
    """Record of one batch: the signals, and the weights that the *next* batch is trained with. A figure that does not
    exist is None.

    Args:
        batch: its number, from 1.
        rows: of the stream up to this batch, with it.
        teacher_weight, replay, every: a, r and K from now on.
        student_loss, teacher_loss: mean LogLoss on the same rows, those that the teacher has scored; these and all that
            follows are of the traffic that the rows stand for.
        z: paired z-score of the two, discounted over batches; above 0 the student is worse.
        stream_loss, replay_loss: of the student, on the rows of the stream and of the retained window.
        surprise: LogLoss above the entropy of the scores, in standard errors; about 0 for a model that is right.
        level: labels above the sum of scores, in standard errors.
        stability: population stability index, the larger of scores and id fields.
        drift, forgetting: heat of both, 0 calm to 1 alarm.
        alarms: of drift so far.
    """

    batch: int
    rows: int
    teacher_weight: float
    replay: float
    every: int
    student_loss: float | None
    teacher_loss: float | None
    z: float
    stream_loss: float
    replay_loss: float | None
    surprise: float
    level: float
    stability: float
    drift: float
    forgetting: float
    alarms: int

    def as_json(self) -> dict[str, Any]:
        """The record by the names of its file; the teacher weight is `a` there."""
        return {"a" if key == "teacher_weight" else key: value for key, value in asdict(self).items()}


class Adaptation:
    """The three weights in use. `update` takes every batch in order and sets `teacher_weight`, `replay` and `every` for the
    next one.

    Args:
        settings: start and bounds.
        fields: number of id fields.
    """

    def __init__(self, settings: AdaptSettings, fields: int) -> None:
        self.settings = settings
        self.teacher_weight, self.replay, self.every = settings.teacher_weight, settings.replay, settings.every
        self._trust = Trust(settings.teacher_weight, highest=settings.teacher_weight)
        self._watches = {name: Cusum() for name in (*DRIFTS, "forgetting")}
        self._stability = Stability(1 + fields, SCORE_BINS)
        self._retired = False
        self._rows = self._alarms = 0
        self._alarmed = False

    @property
    def retired(self) -> bool:
        """Whether the teacher has retired: its weight is 0 then."""
        return self._retired

    @retired.setter
    def retired(self, retired: bool) -> None:
        if retired != self._retired:
            self.teacher_weight = 0.0 if retired else self.settings.teacher_weight
        self._retired = retired

    def update(self, batch: int, seen: Seen) -> Adapted:
        """Add batch number `batch`; its record, with the weights for the next."""
        self._rows += len(seen.labels)
        scored = np.isfinite(seen.teacher)
        counts = relative(seen.stands_for if len(seen.stands_for) else np.ones_like(seen.labels))
        losses = label_losses(seen.student, seen.labels)
        # Both of a pair as often as the row counts, so that the mean of the pairs is that of the traffic.
        counted = relative(counts[scored])
        student_losses = counted * losses[scored]
        teacher_losses = counted * label_losses(seen.teacher[scored], seen.labels[scored])
        surprise, level = _surprise(seen.student, seen.labels, losses, counts)
        watches = self._watches
        for name, x in zip(DRIFTS, (surprise, level, -level), strict=True):
            watches[name].update(x)
        stability = self._stability.update(_histograms(seen, counts))
        moved = float(np.clip((stability - UNSTABLE_INDEX) / (VERY_UNSTABLE_INDEX - UNSTABLE_INDEX), 0.0, 1.0))
        drift = max(moved, *(watches[name].heat for name in DRIFTS))
        replay_losses = label_losses(seen.replay_student, seen.replay_labels)
        known = np.isfinite(seen.replay_teacher)
        if known.any():
            paired = replay_losses[known] - label_losses(seen.replay_teacher[known], seen.replay_labels[known])
            watches["forgetting"].update(float(paired.mean()))
        forgetting = watches["forgetting"].heat
        s = self.settings
        alarmed = any(watches[name].alarmed for name in DRIFTS)
        if alarmed and not self._alarmed:
            self._alarms += 1
            self._trust.forget(s.kept)
        self._alarmed = alarmed
        if len(student_losses):
            self._trust.update(student_losses, teacher_losses, lean=-s.lean * drift)
        if s.adapt:
            self.teacher_weight = 0.0 if self._retired else self._trust.teacher_weight
            # What the retained window holds is of the past: a drift weighs more than forgetting.
            more = (1 - drift) * forgetting * (s.most_replay - s.replay)
            less = drift * max(0.0, s.replay - s.least_replay)
            self.replay = s.replay + more - less if s.replay else 0.0
            faster = (min(s.least_every, s.every) / s.every) ** drift
            self.every = max(1, round(s.every * faster))
        return Adapted(
            batch,
            self._rows,
            self.teacher_weight,
            self.replay,
            self.every,
            float(student_losses.mean()) if len(student_losses) else None,
            float(teacher_losses.mean()) if len(teacher_losses) else None,
            self._trust.z,
            float((counts * losses).mean()),
            float(replay_losses.mean()) if len(replay_losses) else None,
            surprise,
            level,
            stability,
            drift,
            forgetting,
            self._alarms,
        )

    def _began(self) -> list[float]:
        """The weights that adaptation begins with."""
        return [self.settings.teacher_weight, self.settings.replay, self.settings.every]

    def state(self) -> dict[str, Any]:
        """The state that `restore` takes, as JSON values."""
        return {
            "began": self._began(),
            "weights": [self.teacher_weight, self.replay, self.every],
            "seen": [self._rows, self._alarms, self._alarmed],
            "trust": self._trust.state(),
            "watches": {name: watch.state() for name, watch in self._watches.items()},
            "stability": self._stability.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; where the settings have changed since, they count and not the weights of the state."""
        if state.get("began", self._began()) == self._began():
            self.teacher_weight, self.replay, self.every = state["weights"]
            self._trust.restore(state["trust"])
        self._rows, self._alarms, self._alarmed = state["seen"]
        for name, watch in self._watches.items():
            watch.restore(state["watches"][name])
        self._stability.restore(state["stability"])


def _histograms(seen: Seen, counts: F64) -> F64:
    """Rows of the traffic by score and by id of each field, `[1 + F, SCORE_BINS]`. They add up to as many rows as tell as much:
    `Stability` allows for the chance of that many."""
    bins = np.clip(SCORE_BINS // 2 + np.round(2 * seen.student), 0, SCORE_BINS - 1).astype(np.int64)
    columns = [(bins, counts)]
    for ids in seen.ids.T:
        # Once per request where the field is of the context. Ids are hashes already, so bins are
        # random sets of ids and a change of the mix shows.
        fresh = np.concatenate([[True], ids[1:] != ids[:-1]])[: len(ids)]
        columns.append((ids[fresh] % SCORE_BINS, counts[fresh]))
    found: F64 = np.stack(
        [
            np.bincount(bins, own * (own.sum() / np.square(own).sum()) if len(own) else own, SCORE_BINS)
            for bins, own in columns
        ]
    )
    return found


def _surprise(logits: F32, labels: F32, losses: F64, counts: F64) -> tuple[float, float]:
    """LogLoss above the entropy of the scores, and labels above their sum, each in standard errors of their own."""
    z = logits.astype(np.float64)
    p = sigmoid(z)
    variance = p * (1 - p)
    above = counts * (losses - (np.logaddexp(0.0, z) - p * z))
    higher = counts * (labels - p)
    if (counts == 1).all():
        noises = (variance * z * z).sum(), variance.sum()
    else:  # which rows were kept is chance as well: their own differences tell how much
        noises = np.square(above).sum(), np.square(higher).sum()
    surprise, level = (x.sum() / np.sqrt(noise + 1e-12) for x, noise in zip((above, higher), noises, strict=True))
    return float(surprise), float(level)

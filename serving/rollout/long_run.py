"""Long-run effect of a finished hand-over: outcome per request of the candidate's keys against the keys on stable.

At a weight of 100 the keys on stable are the holdout. The outcome is summed from the entry of the last step for as long as
the endpoint keeps the routing of the rollout, through the watch and long after it. Sums and their place in the labelled
log are stored together, so that the effect outlives processes and the log's retention.

`controller` drives it and stores it with the rollout's status; it decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.traffic.log import Labelled
from pipeline.traffic.record import PredictionRecord
from serving.rollout.figures import LongRunFigures, outcome_figures
from serving.rollout.routing import Endpoint
from serving.rollout.state import Phase
from serving.rollout.store import StoredRollout
from serving.rollout.sums.outcome import ARMS, OutcomeSums, count_outcome

__all__ = ["FOLLOWED", "LongRun"]

FOLLOWED = frozenset({Phase.WATCHING, Phase.COMPLETED})
"""Phases in which the keys are split by the last step's weight."""


class LongRun:
    """Outcome sums over the last stay of one rollout.

    Args:
        rollout: whose effect it is, as it was when it was begun; weight: of the stay; since_ms: its entry; seq: place in the labelled log to start after.
        until_ms: its end, None while it lasts; sums: so far, as in `OutcomeSums`.

    Attributes:
        saved: last result of `save`.
    """

    def __init__(
        self,
        rollout: StoredRollout,
        weight: float,
        since_ms: int,
        seq: int,
        until_ms: int | None = None,
        sums: OutcomeSums | None = None,
    ) -> None:
        self.rollout, self._spec, self._weight = rollout, rollout.spec, weight
        self.endpoint = rollout.spec.endpoint
        self.since_ms, self.until_ms, self.seq = since_ms, until_ms, seq
        self.sums = OutcomeSums() if sums is None else sums
        self.saved: dict[str, Any] = {}

    @classmethod
    def begin(cls, stored: StoredRollout) -> LongRun:
        """Start with the present stay of a rollout."""
        last = stored.state.marks[-1]
        return cls(stored, last.weight, last.entered_ms, last.seq)

    @classmethod
    def from_json(cls, rollout: StoredRollout, kept: Mapping[str, Any]) -> LongRun:
        """Continue from the result of `save`."""
        numbers = {name: kept[name] for name in ("weight", "since_ms", "seq", "until_ms")}
        exact = kept.get("exact")  # version 0.1 stored rounded numbers alone
        sums = OutcomeSums.of(kept["sums"]) if exact is None else OutcomeSums(np.array(exact, np.int64))
        made = cls(rollout, **numbers, sums=sums)
        made.saved = dict(kept)
        return made

    def check(self, endpoint: Endpoint, now_ms: int, killed: bool) -> None:
        """End where the split of the keys has changed: another candidate or weight, the kill switch.

        It does not wait for rows that were predicted before and are not mature yet: they cannot be distinguished from rows
        predicted after.
        """
        if self.until_ms is None and (killed or not self._as_left(endpoint)):
            self.until_ms = now_ms

    def add(self, entries: Sequence[Labelled], records: Sequence[PredictionRecord]) -> None:
        """Count entries of the endpoint in the order of the log; see `reader.Counted`."""
        for entry, record in zip(entries, records, strict=True):
            if entry.seq <= self.seq:
                continue
            self.seq = entry.seq
            if entry.time_ms >= self.since_ms:
                count_outcome(self.sums, record, entry)

    def passed(self, seq: int) -> None:
        """There are no other entries up to this place."""
        self.seq = max(self.seq, seq)

    def figures(self) -> LongRunFigures:
        """The effect so far, with limits of the rollout's confidence."""
        error = (1.0 - self._spec.analysis.confidence) / 2.0
        return LongRunFigures(
            since_ms=self.since_ms,
            until_ms=self.until_ms,
            weight=self._weight,
            holdout=self._spec.holdout,
            requests={arm: self.sums.requests(arm) for arm in ARMS},
            outcome=outcome_figures(self.sums, error),
        )

    def save(self) -> dict[str, Any]:
        """Data that a restart continues from."""
        self.saved = {
            "weight": self._weight,
            "since_ms": self.since_ms,
            "seq": self.seq,
            "until_ms": self.until_ms,
            "exact": self.sums.sums.tolist(),
        }
        return self.saved

    def _as_left(self, endpoint: Endpoint) -> bool:
        candidate = endpoint.candidate
        return (
            candidate is not None
            and candidate.bundle == self._spec.candidate.bundle
            and (endpoint.weight, endpoint.holdout) == (self._weight, self._spec.holdout)
            and not endpoint.killed
        )

"""Homes, predictions and labels for the cases: written through whatever log an installation has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.features import Features, IdPart
from pipeline.traffic.log import FeedbackEntry, Outcome, Scores, TrafficLog
from pipeline.traffic.prediction import PredictionIds
from pipeline.traffic.record import PredictionRecord, pack
from serving.config import Config
from serving.wiring.state import installation_secret
from serving.wiring.traffic import open_traffic_log

__all__ = ["WINDOW_S", "Traffic", "config_of", "opened"]

WINDOW_S = 0.2
"""Attribution window of every log here: labels are there at once, so a prediction is due soon."""
FIELDS, CONTEXT_FIELDS = 39, 23
DISTINCT = 64
"""Predictions that are drawn; a log repeats them under other names and times, which no store can tell."""
BATCH = 256


def config_of(home: Path) -> Config:
    """Configuration of an installation with nothing but a log."""
    return Config.model_validate({"home": home, "traffic": {"attribution_window": WINDOW_S}})


@contextmanager
def opened(home: Path) -> Iterator[tuple[TrafficLog, PredictionIds]]:
    """The log of a home, and ids that it takes for its own."""
    config = config_of(home)
    with closing(open_traffic_log(config)) as log:
        yield log, PredictionIds(installation_secret(config), 1)


class Traffic:
    """Predictions of `rows` candidates, answered by stable and scored by the candidate, with a fifth of the rows clicked.

    Args:
        ids: of the log that they are for.
        fields, context: ids of a row, and how many of them are the same in all rows; each field of the context has one value.
    """

    def __init__(self, ids: PredictionIds, rows: int, fields: int = FIELDS, context: int = CONTEXT_FIELDS) -> None:
        self._ids = ids
        rng = np.random.default_rng(1)
        columns = np.arange(fields, dtype=np.int32)
        common = rng.integers(1, 1 << 62, (1, context))
        self._made: list[tuple[PredictionRecord, Scores, Sequence[Outcome]]] = []
        for _ in range(DISTINCT):
            parts = [IdPart(columns[:context], common)]
            if context < fields:
                parts.append(IdPart(columns[context:], rng.integers(1, 1 << 62, (rows, fields - context))))
            truth = rng.uniform(0.05, 0.35, rows).astype(np.float32)
            record = PredictionRecord("", 0, "", "stable", "old", 1, Features(rows, tuple(parts)), truth)
            clicks = np.flatnonzero(rng.random(rows) < truth).tolist() or [0]
            outcomes = [Outcome(index, 1.0, final=True) for index in clicks]
            self._made.append((record, Scores("candidate", "new", 1, truth), outcomes))
        self._hashes = np.random.default_rng(2)

    def record(self, number: int, time_ms: int, endpoint: str = "ranker", routing_hash: int = 0) -> tuple[str, bytes]:
        """Id and record of a prediction; of a user of its own, unless `routing_hash` names one."""
        made = self._ids.new(time_ms)
        user = routing_hash or int(self._hashes.integers(1, 1 << 62))
        record, _, _ = self._made[number % DISTINCT]
        return made, pack(replace(record, prediction_id=made, time_ms=time_ms, endpoint=endpoint, routing_hash=user))

    def feedback(self, number: int, prediction_id: str) -> FeedbackEntry:
        """All rows shown, the clicks of prediction `number`."""
        return FeedbackEntry(prediction_id, (), self._made[number % DISTINCT][2], exposed_all=True)

    def predictions(self, log: TrafficLog, count: int, time_ms: int) -> None:
        """Write predictions of one time, without labels."""
        for first in range(0, count, BATCH):
            batch = range(first, min(first + BATCH, count))
            log.append_predictions([self.record(number, time_ms)[1] for number in batch])

    def labelled(self, log: TrafficLog, times: Sequence[int], endpoints: Sequence[str]) -> None:
        """Write predictions of these times (Unix milliseconds, rising), in turns for each endpoint, with scores and labels of
        every row, and join them."""
        window_ms = round(1000 * WINDOW_S)
        for first in range(0, len(times), BATCH):
            numbers = range(first, min(first + BATCH, len(times)))
            made = [self.record(n, times[n], endpoints[n % len(endpoints)]) for n in numbers]
            now = times[numbers[-1]]
            log.append_scores([(i, self._made[n % DISTINCT][1]) for n, (i, _) in zip(numbers, made, strict=True)])
            log.append_predictions([blob for _, blob in made])
            log.append_feedback([self.feedback(n, i) for n, (i, _) in zip(numbers, made, strict=True)], now)
            while log.join(now + window_ms + 1):
                pass

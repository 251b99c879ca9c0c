"""Import of labelled rows into a traffic log, exactly once however often it is repeated.

Each prediction takes the usual way: its record, then feedback that shows the rows and labels them as final, from which
the join makes labelled rows. A second import changes nothing: ids follow from the rows, and repeated feedback is a
duplicate. Restored predictions are marked `overridden`: the worker learns from them, but no rollout is judged by them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from pipeline.arrays import F32, I32, Mask
from pipeline.errors import InvalidInput
from pipeline.traffic.log import ACCEPTED, INVALID, Exposure, FeedbackEntry, Outcome, Scores, TrafficLog
from pipeline.traffic.prediction import PredictionIds
from pipeline.traffic.record import PredictionRecord, pack, unpack

__all__ = ["RestoreReport", "Restored", "restore"]

_BATCH_PREDICTIONS = 64


@dataclass(frozen=True, slots=True)
class Restored:
    """One prediction with labels.

    Args:
        record: an id that is not genuine is replaced by one derived from it.
        indices: int32 `[m]`, exposed candidates; labels, positions: float32 and int32 `[m]`, -1 where unknown.
        other: other arms' scores.
    """

    record: PredictionRecord
    indices: I32
    labels: F32
    positions: I32
    other: tuple[Scores, ...] = ()


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """Result of an import: predictions read, and of these new in the log; rows read, of these new, and of these left out,
    because an earlier import wrote their prediction without them. `newest_ms`: time of the last prediction."""

    predictions: int = 0
    new: int = 0
    rows: int = 0
    new_rows: int = 0
    left_out: int = 0
    newest_ms: int = 0


def restore(
    log: TrafficLog,
    ids: PredictionIds,
    predictions: Iterable[Restored],
    progress: Callable[[RestoreReport], None] = lambda _: None,
) -> RestoreReport:
    """Write predictions with labels to `log`; the join has to run afterwards, or at the same time."""
    report = RestoreReport()
    left = iter(predictions)
    while raw := list(islice(left, _BATCH_PREDICTIONS)):
        batch = [replace(p, record=replace(p.record, prediction_id=_genuine(ids, p.record))) for p in raw]
        stored_records = log.records([p.record.prediction_id for p in batch])
        fresh = [p for p in batch if p.record.prediction_id not in stored_records]
        log.append_scores([(p.record.prediction_id, scores) for p in fresh for scores in p.other])
        log.append_predictions([pack(p.record) for p in fresh])
        entries, left_out = [], 0
        for p in batch:
            stored = stored_records.get(p.record.prediction_id)
            present = np.ones(len(p.indices), np.bool_) if stored is None else _has(unpack(stored), p.indices)
            left_out += int((~present).sum())
            entries.append(_entry(p, present))
        # With this time no row is too late, whatever the late limit.
        replies = log.append_feedback(entries, min(p.record.time_ms for p in batch))
        refused = next((r.reason for r in replies if INVALID in r.exposed + r.outcomes), "")
        if refused:
            raise InvalidInput(f"a row does not fit the prediction that the log has: {refused}")
        report = RestoreReport(
            report.predictions + len(batch),
            report.new + len(fresh),
            report.rows + sum(len(p.indices) for p in batch),
            report.new_rows + sum(reply.exposed.count(ACCEPTED) for reply in replies),
            report.left_out + left_out,
            max(report.newest_ms, *(p.record.time_ms for p in batch)),
        )
        progress(report)
    return report


def _genuine(ids: PredictionIds, record: PredictionRecord) -> str:
    try:
        ids.parse(record.prediction_id)
    except InvalidInput:
        return ids.derive(record.time_ms, record.prediction_id)
    return record.prediction_id


def _has(record: PredictionRecord, index: I32) -> Mask:
    """Which rows the stored record has: an import fills rows that it does not know with padding."""
    ids = record.features.rows(None, index).ids
    return np.asarray(ids.any(axis=1)) if ids.shape[1] else np.ones(len(index), np.bool_)


def _entry(p: Restored, present: Mask) -> FeedbackEntry:
    rows = list(
        zip(p.indices[present].tolist(), p.labels[present].tolist(), p.positions[present].tolist(), strict=True)
    )
    shown = [Exposure(index, None, position, p.record.time_ms) for index, _, position in rows]
    labelled = [Outcome(index, label, None, p.record.time_ms, True) for index, label, _ in rows]
    return FeedbackEntry(p.record.prediction_id, shown, labelled)

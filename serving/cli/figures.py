"""Figures of both arms on replayed rows, from the traffic log alone: scores that went through gRPC, labels that came back
through Feedback. The arm that did not answer is judged by its predictions on the same exposed rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.arrays import F32
from pipeline.metrics import auc, bias, logloss
from pipeline.traffic.log import Labelled, TrafficLog
from pipeline.traffic.record import unpack

__all__ = ["ReplayFigures", "figures_of"]

_PAGE_ENTRIES = 512


@dataclass(frozen=True, slots=True)
class ReplayFigures:
    """Figures of one arm on all rows of the predictions that both arms scored; None where the rows have one class."""

    predictions: int
    rows: int
    positives: int
    auc: float | None
    logloss: float | None
    bias: float | None


def figures_of(log: TrafficLog, endpoint: str) -> dict[str, ReplayFigures]:
    """Figures of `stable` and `candidate` over the whole log; a revised label counts with its last value."""
    labels: dict[tuple[str, int], float] = {}
    parts: dict[str, list[F32]] = {"label": [], "stable": [], "candidate": []}
    for entry in _entries(log):
        if entry.revision:
            labels |= {
                (entry.prediction_id, int(i)): float(y) for i, y in zip(entry.indices, entry.labels, strict=True)
            }
    for entry in _entries(log):
        record = unpack(entry.record)
        known = {record.arm: record.scores} | {other.arm: other.scores for other in entry.other}
        first = np.isnan(entry.previous)
        if (
            record.endpoint != endpoint
            or record.overridden
            or not {"stable", "candidate"} <= known.keys()
            or not first.any()
        ):
            continue
        index = entry.indices[first]
        latest = [labels.get((entry.prediction_id, int(i)), y) for i, y in zip(index, entry.labels[first], strict=True)]
        parts["label"].append(np.array(latest, np.float32))
        for arm in ("stable", "candidate"):
            parts[arm].append(known[arm][index])
    joined = {name: np.concatenate(chunks) if chunks else np.empty(0, np.float32) for name, chunks in parts.items()}
    predictions = len(parts["label"])
    return {arm: _figures(predictions, joined["label"], joined[arm]) for arm in ("stable", "candidate")}


def _entries(log: TrafficLog) -> Iterator[Labelled]:
    after = 0
    while page := log.labelled(after, _PAGE_ENTRIES):
        yield from page
        after = page[-1].seq


def _figures(predictions: int, labels: F32, scores: F32) -> ReplayFigures:
    positives = int(labels.sum())
    if not 0 < positives < len(labels):
        return ReplayFigures(predictions, len(labels), positives, None, None, None)
    return ReplayFigures(
        predictions,
        len(labels),
        positives,
        float(auc(labels, scores)),
        float(logloss(labels, scores)),
        float(bias(labels, scores)),
    )

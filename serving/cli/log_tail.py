"""The newest entries of the traffic log, for `baton log tail`: as values for programs, as a table for people."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import numpy as np

from pipeline.traffic.log import Labelled, TrafficLog
from pipeline.traffic.record import PredictionRecord, unpack
from serving.cli.output import show_table

__all__ = ["What", "labelled", "predictions", "show"]

PAGE_ENTRIES = 256
_PASSED_PAGES = 64
SHOWN_ROWS = 3


class What(StrEnum):
    """Value of `--what`."""

    labelled = "labelled"
    predictions = "predictions"


def labelled(log: TrafficLog, number: int) -> Iterator[list[dict[str, Any]]]:
    """Pages of the labelled log from its `number` newest entries with rows on; an empty one where it ends by now. They are looked
    for among the newest 16,384 entries."""
    after = last = log.stats(log.now_ms()).last_seq
    first: deque[Labelled] = deque(maxlen=number)
    start = max(0, last - max(number, _PASSED_PAGES * PAGE_ENTRIES))
    while start < last and (page := log.labelled(start, PAGE_ENTRIES)):
        start = after = page[-1].seq
        first.extend(e for e in page if len(e.indices))
    yield [_of_entry(e) for e in first]
    while True:
        page = log.labelled(after, PAGE_ENTRIES)
        after = page[-1].seq if page else after
        yield [_of_entry(e) for e in page if len(e.indices)]


def _of_entry(entry: Labelled) -> dict[str, Any]:
    return {"seq": entry.seq} | _shown(unpack(entry.record), entry)


def predictions(log: TrafficLog, number: int) -> Iterator[list[dict[str, Any]]]:
    """Pages of predictions from the `number` newest on; an empty one where there are no more by now."""
    after = log.near_end(number)
    newest: deque[bytes] = deque(maxlen=number)
    while page := log.predictions(after, PAGE_ENTRIES):
        after = page[-1][0]
        newest.extend(blob for _, blob in page)
    yield [_shown(unpack(blob), None) for blob in newest]
    while True:
        page = log.predictions(after, PAGE_ENTRIES)
        after = page[-1][0] if page else after
        yield [_shown(unpack(blob), None) for _, blob in page]


def _shown(record: PredictionRecord, entry: Labelled | None) -> dict[str, Any]:
    made_ms = record.time_ms if entry is None else entry.time_ms
    shown: dict[str, Any] = {
        "time": datetime.fromtimestamp(made_ms / 1000, UTC).isoformat(timespec="milliseconds"),
        "prediction_id": record.prediction_id,
        "endpoint": record.endpoint,
        "arm": record.arm,
        "bundle": record.bundle,
        "version": str(record.version),
        "overridden": record.overridden,
        "candidates": record.features.n,
        "inclusion_probability": record.inclusion_probability,
        "routing_hash": record.routing_hash,
    }
    if record.request_id:
        shown["request_id"] = record.request_id
    if texts := list(record.candidate_texts):
        shown["candidate_ids"] = texts if entry is None else [texts[at] for at in entry.indices.tolist()]
    if entry is None:
        return shown | {"scores": _numbers(record.scores)}
    arms = {record.arm: record.scores} | {other.arm: other.scores for other in entry.other}
    return shown | {
        "revision": entry.revision,
        "indices": entry.indices.tolist(),
        "labels": _numbers(entry.labels),
        "previous": _numbers(entry.previous),
        "positions": entry.positions.tolist(),
        "scores": {arm: _numbers(scores[entry.indices]) for arm, scores in arms.items()},
    }


def _numbers(values: Any) -> list[float | None]:
    return [round(float(v), 6) if np.isfinite(v) else None for v in values]


def show(what: What, shown: list[dict[str, Any]]) -> None:
    """Print entries as a table."""
    head = ("time", "endpoint", "arm", "bundle", "version", "candidates")
    said = ("request", "candidate ids") if any("request_id" in t or "candidate_ids" in t for t in shown) else ()
    if what is What.predictions:
        show_table(
            "", (*head, "scores", *said), [(*(t[c] for c in head), _few(t["scores"]), *_texts(t, said)) for t in shown]
        )
        return
    rows = [
        (
            t["seq"],
            *(t[c] for c in head),
            t["revision"],
            len(t["labels"]),
            sum(t["labels"]),
            " ".join(sorted(t["scores"])),
            *_texts(t, said),
        )
        for t in shown
    ]
    show_table("", ("seq", *head, "revision", "rows", "positives", "scored by", *said), rows)


def _texts(entry: dict[str, Any], said: Sequence[str]) -> list[str]:
    """What the caller wrote, where any entry of the table has it (`traffic.keep_text`)."""
    texts = entry.get("candidate_ids", [])
    shown = " ".join(texts[:SHOWN_ROWS]) + (" ..." if len(texts) > SHOWN_ROWS else "")
    return [entry.get("request_id", ""), shown] if said else []


def _few(scores: list[float | None]) -> str:
    return " ".join("-" if s is None else f"{s:.3f}" for s in scores[:SHOWN_ROWS]) + (
        " ..." if len(scores) > SHOWN_ROWS else ""
    )

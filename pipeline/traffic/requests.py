"""Predictions by the request ids of their callers: the key under which a log finds one, and what feedback by it is about.

Click events carry the caller's own request id, seldom a prediction id. Ids of requests are unique within an endpoint as far as
their callers make them so; where two predictions that can still be labelled share one, nobody can say which is meant.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import xxhash

from pipeline.traffic.feedback import refusal
from pipeline.traffic.log import EXPIRED, INVALID, FeedbackEntry, FeedbackReply, Requested
from pipeline.traffic.prediction import PredictionIds

__all__ = ["can_be_labelled", "is_waiting", "keys_of", "name_of", "request_key", "waiting_key", "waiting_name"]

_WAITING = "~"
"""Comes after all letters of prediction ids, so names that wait are never among ids below a time."""


def request_key(endpoint: str, request_id: str) -> int:
    """Key of a request id at an endpoint, 1..2^64-1; 0 for no id.

    >>> request_key("ranker", "")
    0
    """
    return (xxhash.xxh3_64_intdigest(f"{endpoint}\0{request_id}".encode()) or 1) if request_id else 0


def waiting_name(key: int) -> str:
    """Name, in place of a prediction id, of feedback whose prediction is not written yet and is known by its key alone."""
    return f"{_WAITING}{key:016x}"


def is_waiting(name: str) -> bool:
    """Whether a name is one that `waiting_name` made."""
    return name.startswith(_WAITING)


def waiting_key(name: str) -> int:
    """The key of a name that `waiting_name` made."""
    return int(name[1:], 16)


def keys_of(entries: Iterable[FeedbackEntry]) -> list[int]:
    """Keys of the request ids that entries name, each once."""
    return list(dict.fromkeys(request_key(e.endpoint, e.request_id) for e in entries if e.request_id and e.endpoint))


def can_be_labelled(found: Sequence[Requested], now_ms: int, late_limit_ms: int) -> list[Requested]:
    """Those predictions that are young enough for labels."""
    return [one for one in found if now_ms - one.time_ms <= late_limit_ms]


def name_of(
    entry: FeedbackEntry,
    requested: Mapping[int, Sequence[Requested]],
    ids: PredictionIds,
    now_ms: int,
    late_limit_ms: int,
) -> str | FeedbackReply:
    """The prediction that an entry is about, or the reply that refuses it.

    Args:
        requested: predictions by the keys of request ids (`TrafficLog.requested`).

    Returns:
        A prediction id in small letters (an id is genuine in capitals too); `waiting_name` where the request id is of a
        prediction that is not written yet.
    """
    if not entry.request_id:
        return refusal(entry, ids, now_ms, late_limit_ms) or entry.prediction_id.lower()
    if entry.prediction_id:
        return _refused(entry, INVALID, "send prediction_id or request_id, not both")
    if not entry.endpoint:
        return _refused(entry, INVALID, "endpoint is empty: name the one that request_id was sent to")
    key = request_key(entry.endpoint, entry.request_id)
    found = requested.get(key, ())
    young = can_be_labelled(found, now_ms, late_limit_ms)
    if len(young) > 1:
        named = " and ".join(one.prediction_id for one in young)
        return _refused(
            entry, INVALID, f"request_id {entry.request_id!r} is that of two predictions, {named}: send prediction_id"
        )
    if young:
        return young[0].prediction_id
    if found:
        return _refused(entry, EXPIRED, "the prediction is too old to be labelled")
    return waiting_name(key)


def _refused(entry: FeedbackEntry, status: str, reason: str) -> FeedbackReply:
    return FeedbackReply((status,) * len(entry.exposed), (status,) * len(entry.outcomes), reason)

"""Predictions that were answered elsewhere, on their way into the log: each once, whoever tells it and however often.

It knows the `TrafficLog` protocol only. A prediction is known by the key of its request id; its own id is made of that and of
its time, so that two who tell it at the same moment make one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.traffic.log import ACCEPTED, DUPLICATE, EXPIRED, INVALID, FeedbackEntry, Requested, Scores, TrafficLog
from pipeline.traffic.record import PredictionRecord, pack
from pipeline.traffic.requests import can_be_labelled

__all__ = ["Observed", "ObservedReply", "append_observed"]


@dataclass(frozen=True, slots=True)
class Observed:
    """What a caller says of one prediction.

    Args:
        request_key: of its request id at its endpoint (`requests.request_key`).
        record: with the scores of the arm that answered; None: only `others` are told, of a prediction that is known.
        others: scores of the arm that did not answer.
        exposed_all: whether all candidates were shown, in request order.
    """

    request_key: int
    record: PredictionRecord | None
    others: tuple[Scores, ...] = ()
    exposed_all: bool = False


@dataclass(frozen=True, slots=True)
class ObservedReply:
    """ACCEPTED, DUPLICATE (nothing was new), EXPIRED or INVALID, with the reason of the last two; and the prediction's id."""

    prediction_id: str
    status: str
    reason: str = ""


def append_observed(log: TrafficLog, told: Sequence[Observed], now_ms: int) -> list[ObservedReply]:
    """Commit predictions that were answered elsewhere; a reply to each, in order. What is ACCEPTED survives `kill -9`.

    Raises:
        NotReady: the store fails; part of it may be written, and telling it again does the rest.
    """
    found = log.requested([one.request_key for one in told])
    known = {
        key: young[0] for key, some in found.items() if (young := can_be_labelled(some, now_ms, log.late_limit_ms))
    }
    replies: list[ObservedReply] = []
    records: list[bytes] = []
    scores: list[tuple[str, Scores]] = []
    exposed: list[FeedbackEntry] = []
    for one in told:
        reply = _judge(one, known.get(one.request_key), now_ms - log.late_limit_ms)
        replies.append(reply)
        if reply.status in (EXPIRED, INVALID):
            continue
        if one.record is not None and one.request_key not in known:
            records.append(pack(one.record))
            known[one.request_key] = Requested(reply.prediction_id, one.record.time_ms, one.record.features.n)
        scores += [(reply.prediction_id, other) for other in one.others]
        if one.exposed_all:
            exposed.append(FeedbackEntry(reply.prediction_id, exposed_all=True))
    if records:
        log.append_predictions(records)
    if scores:
        log.append_scores(scores)
    if exposed:
        log.append_feedback(exposed, now_ms)
    return replies


def _judge(one: Observed, known: Requested | None, oldest_ms: int) -> ObservedReply:
    if known is not None:
        wrong = next((other for other in one.others if len(other.scores) != known.n), None)
        if wrong is not None:
            reason = f"{len(wrong.scores)} scores of {wrong.arm} for {known.n} candidates; send one each"
            return ObservedReply(known.prediction_id, INVALID, reason)
        # Scores of a version are kept once; whether these are new makes no difference to who sends them.
        return ObservedReply(known.prediction_id, DUPLICATE if one.record is not None else ACCEPTED)
    if one.record is None:
        return ObservedReply("", INVALID, "the prediction is not known yet: send the scores of the arm that answered")
    if one.record.time_ms < oldest_ms:
        return ObservedReply("", EXPIRED, "the prediction is too old to be labelled")
    return ObservedReply(one.record.prediction_id, ACCEPTED)

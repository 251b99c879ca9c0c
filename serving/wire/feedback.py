"""Conversion of FeedbackRequest to entries of the traffic log, and of replies to FeedbackResponse."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.errors import InvalidInput
from pipeline.traffic.log import ACCEPTED, DUPLICATE, EXPIRED, INVALID, Exposure, FeedbackEntry, FeedbackReply, Outcome
from protos.baton.ranking.v1 import ranking_pb2 as pb
from serving.wire.ranking import candidate_hash

__all__ = ["entries_of", "response_of"]

_STATUS = {ACCEPTED: pb.ACCEPTED, DUPLICATE: pb.DUPLICATE, EXPIRED: pb.EXPIRED, INVALID: pb.INVALID}


def entries_of(request: pb.FeedbackRequest) -> list[FeedbackEntry]:
    """One entry per prediction, in order.

    Raises:
        InvalidInput: an exposure or outcome names no candidate. The log checks the rest.
    """
    return [
        FeedbackEntry(
            prediction.prediction_id,
            [
                Exposure(
                    *_candidate(exposed, "exposed"),
                    position=exposed.position if exposed.HasField("position") else -1,
                    time_ms=exposed.time_ms,
                )
                for exposed in prediction.exposed
            ],
            [
                Outcome(index, outcome.label, candidate_id, outcome.time_ms, outcome.final)
                for outcome in prediction.outcomes
                for index, candidate_id in [_candidate(outcome, "outcomes")]
            ],
            prediction.exposed_all,
            prediction.request_id,
            prediction.endpoint,
        )
        for prediction in request.predictions
    ]


def response_of(request: pb.FeedbackRequest, replies: Sequence[FeedbackReply]) -> pb.FeedbackResponse:
    """The response to a request, entry by entry."""
    response = pb.FeedbackResponse(request_id=request.request_id)
    for prediction, reply in zip(request.predictions, replies, strict=True):
        response.results.add(
            prediction_id=prediction.prediction_id,
            exposed=[_STATUS[s] for s in reply.exposed],
            outcomes=[_STATUS[s] for s in reply.outcomes],
            reason=reply.reason,
            request_id=prediction.request_id,
        )
    return response


def _candidate(message: pb.Exposure | pb.Outcome, where: str) -> tuple[int | None, int | None]:
    which = message.WhichOneof("candidate")
    if which is None:
        raise InvalidInput("name the candidate by index or candidate_id", where)
    if which == "index":
        return message.index, None
    return None, candidate_hash(message.candidate_id)

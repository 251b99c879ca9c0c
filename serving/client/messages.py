"""Messages of the ranking service from features and labels, and results from its responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.arrays import F32, I64
from pipeline.features import Features, IdPart, NumberPart
from pipeline.schema import FieldSpec, Schema
from pipeline.traffic.log import Exposure, FeedbackEntry, FeedbackReply, Outcome
from protos.baton.ranking.v1 import ranking_pb2 as pb
from serving.wire.packed import PackedRankRequest, original

__all__ = ["RankResult", "feedback_request", "rank_request", "rank_result", "replies_of"]


@dataclass(frozen=True, slots=True)
class RankResult:
    """Answer to a request: `scores` float32 `[n]` in request order (empty with `top_k`), or `indices` and `scores` best first."""

    prediction_id: str
    scores: F32
    arm: str
    bundle: str
    version: str
    degraded: tuple[str, ...] = ()
    indices: I64 | None = None


def rank_request(
    endpoint: str,
    schema: Schema,
    features: Features,
    *,
    routing_key: str = "",
    request_id: str = "",
    top_k: int = 0,
    arm: str = "",
    sheddable: bool = False,
) -> pb.RankRequest:
    """The message for features whose parts hold fields of one role each, as `Features.from_context` makes them.

    Args:
        sheddable: whether the server may refuse it under load.
    """
    request = PackedRankRequest(
        endpoint=endpoint,
        routing_key=routing_key,
        request_id=request_id,
        top_k=top_k,
        arm=arm,
        criticality=pb.SHEDDABLE if sheddable else pb.CRITICALITY_UNSPECIFIED,
    )
    sides = {"context": request.context, "candidate": request.candidates}
    parts: list[tuple[IdPart | NumberPart, Sequence[FieldSpec], str, str]] = [
        *((part, schema.ids, "ids", "<i8") for part in features.ids),
        *((part, schema.numbers, "numbers", "<f4") for part in features.numbers),
    ]
    for part, specs, name, dtype in parts:
        fields = [specs[c] for c in part.columns]
        matrix = getattr(sides[fields[0].role], name)
        matrix.fields.extend(f.name for f in fields)
        matrix.values += part.values.astype(dtype, copy=False).tobytes()
    for bag in features.bags:
        field = schema.bags[bag.column]
        column = sides[field.role].columns.add(field=field.name)
        column.bags.offsets = bag.offsets.astype("<u4").tobytes()
        column.bags.values = bag.values.astype("<i8", copy=False).tobytes()
    return original(request.SerializeToString())


def feedback_request(entries: Sequence[FeedbackEntry]) -> pb.FeedbackRequest:
    """The message for labels; candidates are named by index, or by the caller's own ids (`name`)."""
    request = pb.FeedbackRequest()
    for entry in entries:
        prediction = request.predictions.add(
            prediction_id=entry.prediction_id,
            exposed_all=entry.exposed_all,
            request_id=entry.request_id,
            endpoint=entry.endpoint,
        )
        for shown in entry.exposed:
            exposure = prediction.exposed.add(time_ms=shown.time_ms)
            _name(exposure, shown)
            if shown.position >= 0:
                exposure.position = shown.position
        for outcome in entry.outcomes:
            labelled = prediction.outcomes.add(label=outcome.label, time_ms=outcome.time_ms, final=outcome.final)
            _name(labelled, outcome)
    return request


def _name(message: pb.Exposure | pb.Outcome, part: Exposure | Outcome) -> None:
    if part.name:
        message.candidate_id = part.name
    elif part.index is not None:
        message.index = part.index


def rank_result(response: pb.RankResponse) -> RankResult:
    """The result in a response."""
    ranked = len(response.ranking.indices) > 0
    return RankResult(
        prediction_id=response.prediction_id,
        scores=np.array(response.ranking.scores if ranked else response.scores, np.float32),
        arm=response.arm,
        bundle=response.bundle,
        version=response.version,
        degraded=tuple(response.degraded),
        indices=np.array(response.ranking.indices, np.int64) if ranked else None,
    )


def replies_of(response: pb.FeedbackResponse) -> list[FeedbackReply]:
    """The reply to each entry, in order."""

    def names(statuses: Any) -> tuple[str, ...]:
        return tuple(pb.Status.Name(status).lower() for status in statuses)

    return [FeedbackReply(names(r.exposed), names(r.outcomes), r.reason) for r in response.results]

"""Messages of `Observe` and `Assign`, for callers whose rankings another server answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.arrays import F32
from pipeline.features import Features
from pipeline.schema import Schema
from protos.baton.ranking.v1 import ranking_pb2 as pb
from serving.client.messages import rank_request

__all__ = ["Assignment", "ObservedAnswer", "ObservedResult", "assignment_of", "observe_request", "observed_results"]


@dataclass(frozen=True, slots=True)
class ObservedAnswer:
    """A ranking that another server answered.

    Args:
        request_id: the caller's own, unique at the endpoint; told again it changes nothing.
        arm: that answered, `stable` or `candidate`; "": none, only `other` scores are told of a prediction known already.
        scores: float32 `[n]`, its probabilities in request order.
        other: float32 `[n]`, those of the other arm, now or in a later call; None: not told.
        bundle, version, other_bundle, other_version: of the two; "": those of the endpoint's arms.
        candidate_ids: `[n]` ids of the caller, or none.
        time_ms: Unix milliseconds of the answer; 0: when it arrives.
        inclusion_probability: with which such an answer is told.
        exposed_all: all candidates were shown, in request order.
        schema, features: what was ranked, as for `rank`; None: not told.
    """

    request_id: str
    arm: str = "stable"
    scores: Sequence[float] | F32 = ()
    other: Sequence[float] | F32 | None = None
    routing_key: str = ""
    bundle: str = ""
    version: str = ""
    other_bundle: str = ""
    other_version: str = ""
    candidate_ids: Sequence[str] = ()
    time_ms: int = 0
    inclusion_probability: float = 1.0
    exposed_all: bool = False
    overridden: bool = False
    schema: Schema | None = None
    features: Features | None = None
    other_arm: str = ""
    """Of `other`; "": the one that did not answer."""


@dataclass(frozen=True, slots=True)
class ObservedResult:
    """Reply: `accepted`, `duplicate`, `expired` or `invalid`, with the reason of the last two; and the prediction's id."""

    prediction_id: str
    status: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Assignment:
    """Arms of routing keys, in order, with what they follow from at that moment: see docs/observe.md."""

    arms: tuple[str, ...]
    resource_version: int
    weight: float
    salt: str
    holdout: float
    killed: bool


def observe_request(endpoint: str, answers: Sequence[ObservedAnswer]) -> pb.ObserveRequest:
    """The message for rankings that were answered elsewhere."""
    request = pb.ObserveRequest(endpoint=endpoint)
    for one in answers:
        told = request.predictions.add(
            request_id=one.request_id,
            time_ms=one.time_ms,
            routing_key=one.routing_key,
            candidate_ids=one.candidate_ids,
            inclusion_probability=one.inclusion_probability,
            overridden=one.overridden,
            exposed_all=one.exposed_all,
        )
        if one.arm:
            _fill(told.answered, one.arm, one.bundle, one.version, one.scores)
        if one.other is not None:
            arm = one.other_arm or ("stable" if one.arm == "candidate" else "candidate")
            _fill(told.other, arm, one.other_bundle, one.other_version, one.other)
        if one.schema is not None and one.features is not None:
            ranked = rank_request(endpoint, one.schema, one.features)
            told.context.CopyFrom(ranked.context)
            told.candidates.CopyFrom(ranked.candidates)
    return request


def observed_results(response: pb.ObserveResponse) -> list[ObservedResult]:
    """The reply to each ranking, in order."""
    return [
        ObservedResult(result.prediction_id, pb.Status.Name(result.status).lower(), result.reason)
        for result in response.results
    ]


def assignment_of(response: pb.AssignResponse) -> Assignment:
    """The arms in a response."""
    return Assignment(
        tuple(response.arms),
        response.resource_version,
        response.weight,
        response.salt,
        response.holdout,
        response.killed,
    )


def _fill(message: pb.ArmScores, arm: str, bundle: str, version: str, scores: Sequence[float] | F32) -> None:
    message.arm, message.bundle, message.version = arm, bundle, version
    message.scores.extend(np.asarray(scores, np.float32).tolist())

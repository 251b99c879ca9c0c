"""Conversion of ObserveRequest to what the traffic log takes, and of its replies to ObserveResponse.

What cannot be taken of one prediction is its reply alone; the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipeline.arrays import F32
from pipeline.context import context_once
from pipeline.errors import InvalidInput
from pipeline.features import Features
from pipeline.traffic.log import ACCEPTED, DUPLICATE, EXPIRED, INVALID, Scores
from pipeline.traffic.observing import Observed, ObservedReply
from pipeline.traffic.prediction import PredictionIds
from pipeline.traffic.record import PredictionRecord
from pipeline.traffic.requests import request_key
from protos.baton.ranking.v1 import ranking_pb2 as pb
from serving.wire.ranking import RankCodec, candidate_hashes

__all__ = ["ObserveCodec", "TellableArm", "observe_response"]

_STATUS = {ACCEPTED: pb.ACCEPTED, DUPLICATE: pb.DUPLICATE, EXPIRED: pb.EXPIRED, INVALID: pb.INVALID}
_LARGEST_VERSION = (1 << 63) - 1
_LONGEST_LETTERS = 1024
"""Characters of a request id or a bundle's name."""


class TellableArm(NamedTuple):
    """An arm of an endpoint: its bundle, its version (0: the newest), and whether predictions may be told for it."""

    bundle: str
    version: int
    tellable: bool


class _Arm(NamedTuple):
    """One arm's scores as read, float32 `[n]`, with the version that they come from."""

    arm: str
    bundle: str
    version: int
    scores: F32


class ObserveCodec:
    """Reader of observed predictions.

    Args:
        ids: makes prediction ids.
        routing_hash: hashes routing keys.
        max_candidates: most candidates of one prediction.
        keep_text: whether records have the caller's request id and candidate ids as texts.
    """

    def __init__(
        self, ids: PredictionIds, routing_hash: Callable[[str], int], max_candidates: int, *, keep_text: bool = False
    ) -> None:
        self._ids = ids
        self._routing_hash = routing_hash
        self._max_candidates = max_candidates
        self._keep_text = keep_text

    def read(
        self,
        told: pb.ObservedPrediction,
        endpoint: str,
        arms: Mapping[str, TellableArm],
        codec: RankCodec | None,
        now_ms: int,
        bucket_of: Callable[[str], int],
    ) -> Observed | ObservedReply:
        """A prediction for the log, or the reply that refuses it.

        Args:
            arms: those that the endpoint has.
            codec: of an arm that is served here; None: there is none, and features cannot be read.
            now_ms: Unix milliseconds by the log's clock.
            bucket_of: bucket of a routing key at this endpoint.
        """
        try:
            return self._read(told, endpoint, arms, codec, now_ms, bucket_of)
        except InvalidInput as error:
            return ObservedReply("", INVALID, str(error))

    def _read(
        self,
        told: pb.ObservedPrediction,
        endpoint: str,
        arms: Mapping[str, TellableArm],
        codec: RankCodec | None,
        now_ms: int,
        bucket_of: Callable[[str], int],
    ) -> Observed:
        if not told.request_id:
            raise InvalidInput("request_id is empty: without the caller's own id a repetition would count twice")
        if len(told.request_id) > _LONGEST_LETTERS:
            raise InvalidInput(f"request_id has {len(told.request_id)} characters, more than {_LONGEST_LETTERS}")
        key = request_key(endpoint, told.request_id)
        answered = self._arm(told, "answered", arms)
        other = self._arm(told, "other", arms)
        others = () if other is None else (Scores(*other),)
        if answered is None:
            if other is None:
                raise InvalidInput("neither answered nor other has scores: send those of the arm that answered")
            return Observed(key, None, others, told.exposed_all)
        n = len(answered.scores)
        if other is not None and (other.arm == answered.arm or len(other.scores) != n):
            wrong = (
                f"is of the arm {other.arm} too"
                if other.arm == answered.arm
                else f"has {len(other.scores)} scores for {n}"
            )
            raise InvalidInput(f"other {wrong}: send the other arm's scores, one per candidate")
        inclusion = told.inclusion_probability or 1.0
        if not 0.0 < inclusion <= 1.0:
            raise InvalidInput(f"inclusion_probability is above 0 and at most 1, not {inclusion:g}")
        named = told.candidate_ids
        if named and (len(named) != n or len(set(named)) != n):
            raise InvalidInput(
                f"candidate_ids holds {len(named)} names for {n} candidates; send one each, all different"
            )
        time_ms = min(told.time_ms or now_ms, now_ms)
        if time_ms < 0:
            raise InvalidInput(f"time_ms is Unix time in milliseconds, not {told.time_ms}")
        versions = {answered.arm: answered.version, **({other.arm: other.version} if other else {})}
        features = _features(told, n, codec)
        record = PredictionRecord(
            prediction_id=self._ids.derive(time_ms, f"{endpoint}\0{told.request_id}"),
            time_ms=time_ms,
            endpoint=endpoint,
            arm=answered.arm,
            bundle=answered.bundle,
            version=answered.version,
            features=features,
            fields="" if codec is None or features.absent else codec.schema.columns,
            scores=answered.scores,
            routing_hash=self._routing_hash(told.routing_key),
            bucket=bucket_of(told.routing_key),
            overridden=told.overridden,
            candidate_ids=candidate_hashes(named),
            stable_version=versions.get("stable", 0),
            candidate_version=versions.get("candidate", 0),
            inclusion_probability=inclusion,
            request_id=told.request_id if self._keep_text else "",
            candidate_texts=tuple(named) if self._keep_text else (),
            request_key=key,
        )
        return Observed(key, record, others, told.exposed_all)

    def _arm(self, told: pb.ObservedPrediction, part: str, arms: Mapping[str, TellableArm]) -> _Arm | None:
        if not told.HasField(part):
            return None
        said: pb.ArmScores = getattr(told, part)
        if said.arm not in ("stable", "candidate"):
            raise InvalidInput(f"{part}.arm is 'stable' or 'candidate', not {said.arm!r}")
        if said.arm not in arms:
            raise InvalidInput(f"{part}.arm: the endpoint has no candidate")
        bundle, pinned, tellable = arms[said.arm]
        if not tellable:
            raise InvalidInput(
                f"{part}.arm: the {said.arm} arm is served here; `observe: true` of the endpoint in baton.yaml takes what "
                "others answer for it"
            )
        bundle, version = said.bundle or bundle, said.version or str(pinned)
        if not (version.isascii() and version.isdecimal()) or int(version) > _LARGEST_VERSION:
            raise InvalidInput(f"{part}.version is a decimal number, not {version!r}; other names go into bundle")
        if len(bundle) > _LONGEST_LETTERS or "\0" in bundle:
            raise InvalidInput(f"{part}.bundle is a name of at most {_LONGEST_LETTERS} characters")
        if not said.scores:
            raise InvalidInput(f"{part}.scores is empty: send a probability per candidate")
        if len(said.scores) > self._max_candidates:
            raise InvalidInput(f"{part}.scores has {len(said.scores)} candidates, more than {self._max_candidates}")
        scores = np.fromiter(said.scores, np.float32, len(said.scores))
        if not ((scores >= 0) & (scores <= 1)).all():
            raise InvalidInput(f"{part}.scores are probabilities from 0 to 1; one is not")
        return _Arm(said.arm, bundle, int(version), scores)


def observe_response(request: pb.ObserveRequest, replies: Sequence[ObservedReply]) -> pb.ObserveResponse:
    """The response to a request, prediction by prediction."""
    response = pb.ObserveResponse(request_id=request.request_id)
    for told, reply in zip(request.predictions, replies, strict=True):
        response.results.add(
            request_id=told.request_id,
            prediction_id=reply.prediction_id,
            status=_STATUS[reply.status],
            reason=reply.reason,
        )
    return response


def _features(told: pb.ObservedPrediction, n: int, codec: RankCodec | None) -> Features:
    """Features as sent; none where the prediction was told without them."""
    if not (told.HasField("context") or told.HasField("candidates")):
        return Features(n)
    if codec is None:
        raise InvalidInput("no arm of the endpoint is served here, so its fields are not known; leave the features out")
    request: Any = pb.RankRequest(context=told.context, candidates=told.candidates, candidate_ids=told.candidate_ids)
    features = codec.decode(request)
    if features.n != n:
        raise InvalidInput(f"there are features of {features.n} candidates and scores of {n}; send one each")
    return context_once(features, codec.schema)

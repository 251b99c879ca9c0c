"""`Observe` and `Assign` of the ranking service, for traffic that other servers answer.

Observe commits as Feedback does, and answers once that is done. Formats: `serving.wire.observing`.
"""

from __future__ import annotations

import asyncio
from functools import partial

from pipeline.errors import InvalidInput, NotFound, NotReady
from pipeline.traffic.log import ACCEPTED
from pipeline.traffic.observing import Observed
from pipeline.traffic.writer import TrafficWriter
from protos.baton.ranking.v1 import ranking_pb2 as pb
from serving.lane.dispatch import Dispatcher
from serving.lane.served import ServedEndpoint
from serving.rollout.routing import bucket_of
from serving.services.access import Access
from serving.services.label_intake import LabelIntake
from serving.services.rpc import Call, committed, parse
from serving.telemetry import Telemetry
from serving.wire.observing import ObserveCodec, TellableArm, observe_response

__all__ = ["Elsewhere"]

MOST_KEYS = 10_000
"""Routing keys of one Assign: they are hashed while others wait."""
_TURN_ENTRIES = 256
"""Keys or predictions after which other requests have their turn."""


class Elsewhere:
    """The two methods.

    Args:
        codec: reads predictions.
        writer: commits them.
        labels: is told for which endpoint they came.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        codec: ObserveCodec,
        writer: TrafficWriter,
        telemetry: Telemetry,
        access: Access,
        labels: LabelIntake,
    ) -> None:
        self._dispatcher = dispatcher
        self._codec = codec
        self._writer = writer
        self._telemetry = telemetry
        self._access = access
        self._labels = labels

    async def observe(self, data: bytes, call: Call) -> bytes:
        """`Observe`: bytes of a request to bytes of the answer."""
        request: pb.ObserveRequest = parse(pb.ObserveRequest, data)
        self._access.labels(call, len(request.predictions))
        served = self._endpoint(request.endpoint)
        endpoint = served.endpoint
        every = self._access.may_tell(endpoint.name)
        arms = {
            arm: TellableArm(spec.bundle, spec.version, every or spec.observed)
            for arm, spec in (("stable", endpoint.stable), ("candidate", endpoint.candidate))
            if spec is not None
        }
        here = served.stable or served.candidate
        if here is None and not (
            served.observed("stable") and (endpoint.candidate is None or served.observed("candidate"))
        ):
            _check_no_features(request)
        now_ms, buckets = self._dispatcher.now_ms(), partial(bucket_of, endpoint)
        read = []
        for at, told in enumerate(request.predictions):
            if at % _TURN_ENTRIES == _TURN_ENTRIES - 1:
                await asyncio.sleep(0)
            read.append(self._codec.read(told, endpoint.name, arms, here.rank if here else None, now_ms, buckets))
        wanted = [one for one in read if isinstance(one, Observed)]
        written = iter(await committed(self._writer.observe(wanted)) if wanted else ())
        replies = [next(written) if isinstance(one, Observed) else one for one in read]
        self._telemetry.observed(request.endpoint, [reply.status for reply in replies])
        if any(reply.status == ACCEPTED for reply in replies):
            self._labels.predicted(request.endpoint)
        for one, reply in zip(read, replies, strict=True):
            if isinstance(one, Observed) and one.record is not None and reply.status == ACCEPTED:
                self._dispatcher.observed(request.endpoint, one.record.arm, one.record.features.n)
        return observe_response(request, replies).SerializeToString()

    async def assign(self, data: bytes, call: Call) -> bytes:
        """`Assign`: bytes of a request to bytes of the answer."""
        request: pb.AssignRequest = parse(pb.AssignRequest, data)
        if len(request.routing_keys) > MOST_KEYS:
            raise InvalidInput(
                f"{len(request.routing_keys)} routing keys are more than the {MOST_KEYS} of one call", "routing_keys"
            )
        served = self._endpoint(request.endpoint)
        endpoint = served.endpoint
        response = pb.AssignResponse(
            resource_version=endpoint.resource_version,
            weight=endpoint.weight,
            salt=endpoint.salt,
            holdout=endpoint.holdout,
            killed=served.killed,
        )
        for start in range(0, len(request.routing_keys), _TURN_ENTRIES):
            if start:
                await asyncio.sleep(0)
            response.arms.extend([served.arm_of(key) for key in request.routing_keys[start : start + _TURN_ENTRIES]])
        return response.SerializeToString()

    def _endpoint(self, name: str) -> ServedEndpoint:
        if not name:
            raise InvalidInput("a request must name its endpoint", "endpoint")
        endpoints = self._dispatcher.registry.snapshot.endpoints
        if name not in endpoints:
            raise NotFound(f"there is no endpoint {name!r}; there are {sorted(endpoints) or 'none yet'}")
        return endpoints[name]


def _check_no_features(request: pb.ObserveRequest) -> None:
    """Refuse features while the models that know the fields are not loaded yet. Raises: NotReady."""
    if any(told.HasField("context") or told.HasField("candidates") for told in request.predictions):
        raise NotReady(f"endpoint {request.endpoint!r} has no version ready by whose fields features can be read")

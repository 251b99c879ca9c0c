"""`baton.ranking.v1.RankingService`: rank candidates, take labels back.

A thin shell: formats are `serving.wire`'s business, answers `serving.lane.dispatch`'s, labels the traffic log's. Feedback is
answered once it is committed, never before.
"""

from __future__ import annotations

from typing import Any

import grpc

from pipeline.errors import InvalidInput
from pipeline.features import Features
from pipeline.traffic.log import FeedbackEntry
from pipeline.traffic.writer import TrafficWriter
from protos.baton.ranking.v1 import ranking_pb2 as pb
from serving.lane.dispatch import Dispatcher
from serving.services.access import Access
from serving.services.rpc import Call, Shell, committed, parse, serve
from serving.telemetry import Telemetry
from serving.wire.feedback import entries_of, response_of
from serving.wire.packed import PackedRankRequest, original
from serving.wire.ranking import RankCodec, candidate_hashes, rank_response

__all__ = ["SERVICE", "RankingService"]

SERVICE = "baton.ranking.v1.RankingService"


class RankingService:
    """All methods of the service.

    Args:
        writer: commits feedback.
        access: who may do what.
    """

    def __init__(
        self, dispatcher: Dispatcher, writer: TrafficWriter, telemetry: Telemetry, shell: Shell, access: Access
    ) -> None:
        self._dispatcher = dispatcher
        self._writer = writer
        self._telemetry = telemetry
        self._shell = shell
        self._access = access
        self._clock = shell.clock

    def handler(self) -> grpc.GenericRpcHandler:
        """What a server takes."""
        shell, access = self._shell, self._access
        return serve(
            SERVICE,
            {
                "Rank": shell.unary(f"{SERVICE}/Rank", self._rank, self._dispatcher.refusal, access.rank),
                "RankStream": shell.streaming(f"{SERVICE}/RankStream", self._rank, access.rank),
                "Feedback": shell.unary(f"{SERVICE}/Feedback", self._feedback, admission=access.label),
                "FeedbackStream": shell.streaming(f"{SERVICE}/FeedbackStream", self._feedback, access.label),
            },
        )

    async def _rank(self, data: bytes, call: Call) -> bytes:
        started = self._clock.monotonic()
        name = ""
        try:
            request = parse(PackedRankRequest, data)
            name = request.endpoint
            key = request.routing_key or call.header("x-routing-key")
            if not name:
                raise InvalidInput("a request must name its endpoint", "endpoint")
            target = self._dispatcher.route(name, key=key, arm=request.arm)
            if request.arm:
                self._access.override(name, call)
            codec = target.served.rank

            def decode(message: Any) -> Features:
                return _decode(codec, message, data)

            event = await self._dispatcher.answer(
                target,
                request,
                decode,
                started=started,
                rows=codec.rows_hint(request),
                seconds_left=call.seconds_left,
                traceparent=call.traceparent,
                routing_key=key,
                candidate_ids=candidate_hashes(request.candidate_ids),
                priority=self._priority(request.criticality),
            )
        except Exception as error:
            self._dispatcher.refused(name, error)
            raise
        call.event = event
        return rank_response(request, event, target.served.model.name, target.served.model.version)

    def _priority(self, criticality: int) -> int:
        """What need not be answered under load goes behind everything else."""
        if criticality not in pb.Criticality.values():
            raise InvalidInput(f"criticality is one of {pb.Criticality.keys()}, not {criticality}", "criticality")
        return self._dispatcher.least_important if criticality == pb.SHEDDABLE else 0

    async def _feedback(self, data: bytes, call: Call) -> bytes:
        request = parse(pb.FeedbackRequest, data)
        self._access.labels(call, len(request.predictions))
        entries: list[FeedbackEntry] = entries_of(request)
        replies = await committed(self._writer.feedback(entries)) if entries else []
        for reply in replies:
            self._telemetry.feedback("exposure", reply.exposed)
            self._telemetry.feedback("outcome", reply.outcomes)
        return response_of(request, replies).SerializeToString()


def _decode(codec: RankCodec, message: Any, data: bytes) -> Features:
    """Decode the packed twin; one that is faulty is judged by the message as declared."""
    try:
        return codec.decode(message)
    except InvalidInput:
        return codec.decode(original(data))

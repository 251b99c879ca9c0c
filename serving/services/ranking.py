"""`baton.ranking.v1.RankingService`: ranks candidates, takes labels, and what other servers answered (`elsewhere`).

A thin shell: formats are in `serving.wire`, answers come from `serving.lane.dispatch`, labels go to the traffic log.
Feedback is answered once it is committed, never before.
"""

from __future__ import annotations

import grpc

from pipeline.errors import BatonError, InvalidInput
from pipeline.event import Event
from pipeline.traffic.log import FeedbackEntry
from pipeline.traffic.writer import TrafficWriter
from protos.baton.ranking.v1 import ranking_pb2 as pb
from serving.lane.dispatch import Dispatcher
from serving.services.access import Access
from serving.services.elsewhere import Elsewhere
from serving.services.label_intake import LabelIntake
from serving.services.rpc import Call, Shell, committed, parse, serve
from serving.telemetry import Telemetry
from serving.wire.feedback import entries_of, response_of
from serving.wire.observing import ObserveCodec
from serving.wire.packed import PackedRankRequest
from serving.wire.ranking import candidate_hashes, rank_response

__all__ = ["SERVICE", "RankingService"]

SERVICE = "baton.ranking.v1.RankingService"


class RankingService:
    """All methods of the service.

    Args:
        writer: commits feedback, and predictions that were answered elsewhere.
        labels: counts what became of feedback.
        codec: reads these.
        access: permissions of callers.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        writer: TrafficWriter,
        telemetry: Telemetry,
        shell: Shell,
        access: Access,
        codec: ObserveCodec,
        labels: LabelIntake,
    ) -> None:
        self._dispatcher = dispatcher
        self._writer = writer
        self._telemetry = telemetry
        self._shell = shell
        self._access = access
        self._labels = labels
        self._clock = shell.clock
        self._elsewhere = Elsewhere(dispatcher, codec, writer, telemetry, access, labels)

    def handler(self) -> grpc.GenericRpcHandler:
        """The service for a gRPC server."""
        shell, access = self._shell, self._access
        return serve(
            SERVICE,
            {
                "Rank": shell.unary(f"{SERVICE}/Rank", self._rank, self._dispatcher.refusal, access.rank),
                "RankStream": shell.streaming(f"{SERVICE}/RankStream", self._rank, access.rank),
                "Feedback": shell.unary(f"{SERVICE}/Feedback", self._feedback, admission=access.label),
                "FeedbackStream": shell.streaming(f"{SERVICE}/FeedbackStream", self._feedback, access.label),
                "Observe": shell.unary(f"{SERVICE}/Observe", self._elsewhere.observe, admission=access.label),
                "Assign": shell.unary(f"{SERVICE}/Assign", self._elsewhere.assign, admission=access.rank),
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
            event = Event(
                request=request,
                decoder=lambda message, model: codec.decode(message, data),
                rows=codec.rows_hint(request),
                candidate_ids=candidate_hashes(request.candidate_ids),
                request_id=request.request_id,
                candidate_texts=request.candidate_ids,
                priority=self._priority(request.criticality),
                traceparent=call.traceparent,
            )
            target = await self._dispatcher.answer(
                target, event, started=started, seconds_left=call.seconds_left, routing_key=key
            )
        except Exception as error:
            self._dispatcher.refused(name, error, self._access.caller(call))
            raise
        call.event = event
        return rank_response(request, event, target.served.model.name, target.served.model.version)

    def _priority(self, criticality: int) -> int:
        """Level in the engine's queue: a request that may be refused under load waits behind all others."""
        if criticality not in pb.Criticality.values():
            raise InvalidInput(f"criticality is one of {pb.Criticality.keys()}, not {criticality}", "criticality")
        return self._dispatcher.least_important if criticality == pb.SHEDDABLE else 0

    async def _feedback(self, data: bytes, call: Call) -> bytes:
        try:
            request = parse(pb.FeedbackRequest, data)
            self._access.labels(call, len(request.predictions))
            entries: list[FeedbackEntry] = entries_of(request)
            replies = await committed(self._writer.feedback(entries)) if entries else []
        except BatonError as error:
            self._labels.failed(error, self._access.caller(call))
            raise
        self._labels.replied(
            entries, replies, self._dispatcher.registry.snapshot.endpoints, self._access.caller(call, replies)
        )
        return response_of(request, replies).SerializeToString()

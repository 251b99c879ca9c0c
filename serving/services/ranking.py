"""`baton.ranking.v1.RankingService`: rank candidates, take labels back.

A thin shell: formats are `serving.wire`'s business, answers `serving.dispatch`'s, labels the traffic log's. Feedback is
answered once it is committed, never before.
"""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np

from pipeline.clock import Clock
from pipeline.errors import InvalidInput
from pipeline.features import Features
from pipeline.traffic.log import FeedbackEntry
from pipeline.traffic.writer import TrafficWriter
from protos.baton.ranking.v1 import ranking_pb2 as pb
from serving.dispatch import Dispatcher
from serving.services.rpc import Call, committed, parse, serve, streaming, unary
from serving.telemetry import Telemetry
from serving.wire.feedback import entries_of, response_of
from serving.wire.packed import PackedRankRequest, original
from serving.wire.ranking import RankCodec, candidate_hashes

__all__ = ["SERVICE", "RankingService"]

SERVICE = "baton.ranking.v1.RankingService"


class RankingService:
    """All methods of the service.

    Args:
        writer: commits feedback.
        max_bytes: largest request.
    """

    def __init__(
        self, dispatcher: Dispatcher, writer: TrafficWriter, clock: Clock, telemetry: Telemetry, *, max_bytes: int
    ) -> None:
        self._dispatcher = dispatcher
        self._writer = writer
        self._clock = clock
        self._telemetry = telemetry
        self._max_bytes = max_bytes

    def handler(self) -> grpc.GenericRpcHandler:
        """What a server takes."""
        return serve(
            SERVICE,
            {
                "Rank": unary(self._rank, self._max_bytes),
                "RankStream": streaming(self._rank, self._max_bytes),
                "Feedback": unary(self._feedback, self._max_bytes),
                "FeedbackStream": streaming(self._feedback, self._max_bytes),
            },
        )

    async def _rank(self, data: bytes, call: Call) -> pb.RankResponse:
        started = self._clock.monotonic()
        name = ""
        try:
            request = parse(PackedRankRequest, data)
            name = request.endpoint
            key = request.routing_key or call.header("x-routing-key")
            if not name:
                raise InvalidInput("a request must name its endpoint", "endpoint")
            target = self._dispatcher.route(name, key=key, arm=request.arm)
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
                routing_key=key,
                candidate_ids=candidate_hashes(request.candidate_ids),
            )
        except Exception as error:
            self._dispatcher.refused(name, error)
            raise
        response = pb.RankResponse(
            prediction_id=event.prediction_id,
            arm=event.arm,
            version=target.served.model.version,
            bundle=target.served.model.name,
            degraded=event.degraded,
            request_id=request.request_id,
        )
        assert event.scores is not None
        if request.top_k:
            best = np.argsort(-event.scores, kind="stable")[: request.top_k]
            response.ranking.indices.extend(best.tolist())
            response.ranking.scores.extend(event.scores[best].tolist())
            if request.candidate_ids:
                response.ranking.candidate_ids.extend(request.candidate_ids[i] for i in best.tolist())
        else:
            response.scores.extend(event.scores.tolist())
        return response

    async def _feedback(self, data: bytes, call: Call) -> pb.FeedbackResponse:
        request = parse(pb.FeedbackRequest, data)
        entries: list[FeedbackEntry] = entries_of(request)
        replies = await committed(self._writer.feedback(entries)) if entries else []
        for reply in replies:
            for status in (*reply.exposed, *reply.outcomes):
                self._telemetry.feedback(status)
        return response_of(request, replies)


def _decode(codec: RankCodec, message: Any, data: bytes) -> Features:
    """Decode the packed twin; one that is faulty is judged by the message as declared."""
    try:
        return codec.decode(message)
    except InvalidInput:
        return codec.decode(original(data))

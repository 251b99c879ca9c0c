"""Calling Baton from Python: rank candidates, send labels back, in terms of features and typed errors.

`AsyncRankingClient` and `RankingClient` differ in nothing but `await`. Ids are hashed by the caller
(`pipeline.hashing`), so requests are a few packed arrays. A label is on disk once `feedback` has returned.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from pipeline.errors import BatonError, NotReady
from pipeline.features import Features
from pipeline.schema import Schema
from pipeline.traffic.log import FeedbackEntry, FeedbackReply
from protos.baton.ranking.v1 import ranking_pb2 as pb
from protos.baton.ranking.v1 import ranking_pb2_grpc
from serving.errors import CODES
from serving.wire.packed import PackedRankRequest, original

__all__ = ["AsyncRankingClient", "RankResult", "RankingClient", "error_of", "feedback_request", "rank_request"]

TIMEOUT = 5.0
MAX_MESSAGE = 64 << 20
_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
]

_ERRORS = {code: kind for kind, code in CODES.items()}


@dataclass(frozen=True, slots=True)
class RankResult:
    """An answer: `scores` float32 `[n]` in request order (empty with `top_k`), or `indices` and `scores` best first."""

    prediction_id: str
    scores: npt.NDArray[np.float32]
    arm: str
    bundle: str
    version: str
    degraded: tuple[str, ...] = ()
    indices: npt.NDArray[np.int64] | None = None


class AsyncRankingClient:
    """For asyncio. Close it, or use it as an async context manager."""

    def __init__(self, target: str) -> None:
        self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        self._stub: Any = ranking_pb2_grpc.RankingServiceStub(self._channel)  # type: ignore[no-untyped-call]

    async def __aenter__(self) -> AsyncRankingClient:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._channel.close()

    async def ready(self, timeout: float) -> None:
        """Wait until the server can be reached.

        Raises:
            NotReady: it could not within `timeout` seconds.
        """
        try:
            await asyncio.wait_for(self._channel.channel_ready(), timeout)
        except TimeoutError:
            raise NotReady(f"no server could be reached within {timeout:g} s") from None

    async def rank(
        self,
        endpoint: str,
        schema: Schema,
        features: Features,
        *,
        routing_key: str = "",
        request_id: str = "",
        top_k: int = 0,
        arm: str = "",
        timeout: float = TIMEOUT,
    ) -> RankResult:
        """Score candidates.

        Raises:
            BatonError: of the class that the answer's code stands for.
        """
        request = rank_request(
            endpoint, schema, features, routing_key=routing_key, request_id=request_id, top_k=top_k, arm=arm
        )
        try:
            return _result(await self._stub.Rank(request, timeout=timeout))
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from None

    def rank_stream(
        self, requests: AsyncIterable[pb.RankRequest], *, timeout: float | None = None
    ) -> AsyncIterator[RankResult]:
        """Answers to many requests (`rank_request` makes them) over one call, in their order.

        The server works on several at once, so do not wait for an answer before the next request. One that fails ends
        the stream after the answers before it; open another for the rest. The call begins at once.

        Args:
            timeout: seconds for the whole stream; None: as long as it lasts.

        Raises:
            BatonError: of the class that the stream's code stands for.
        """
        return _answers_async(self._stub.RankStream(requests, timeout=timeout))

    async def feedback(self, entries: Sequence[FeedbackEntry], *, timeout: float = TIMEOUT) -> list[FeedbackReply]:
        """Send exposures and labels; what is answered as accepted is stored."""
        try:
            return _replies(await self._stub.Feedback(feedback_request(entries), timeout=timeout))
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from None


class RankingClient:
    """The same for code that does not use asyncio. Safe to share between threads."""

    def __init__(self, target: str) -> None:
        self._channel = grpc.insecure_channel(target, options=_OPTIONS)
        self._stub: Any = ranking_pb2_grpc.RankingServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> RankingClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def rank(
        self,
        endpoint: str,
        schema: Schema,
        features: Features,
        *,
        routing_key: str = "",
        request_id: str = "",
        top_k: int = 0,
        arm: str = "",
        timeout: float = TIMEOUT,
    ) -> RankResult:
        """See `AsyncRankingClient.rank`."""
        request = rank_request(
            endpoint, schema, features, routing_key=routing_key, request_id=request_id, top_k=top_k, arm=arm
        )
        try:
            return _result(self._stub.Rank(request, timeout=timeout))
        except grpc.RpcError as error:
            raise error_of(error) from None

    def rank_stream(self, requests: Iterable[pb.RankRequest], *, timeout: float | None = None) -> Iterator[RankResult]:
        """See `AsyncRankingClient.rank_stream`. `requests` is read in a thread of gRPC's."""
        return _answers(self._stub.RankStream(iter(requests), timeout=timeout))

    def feedback(self, entries: Sequence[FeedbackEntry], *, timeout: float = TIMEOUT) -> list[FeedbackReply]:
        """See `AsyncRankingClient.feedback`."""
        try:
            return _replies(self._stub.Feedback(feedback_request(entries), timeout=timeout))
        except grpc.RpcError as error:
            raise error_of(error) from None


def error_of(error: Any) -> BatonError:
    """The exception that a failed call stands for."""
    return _ERRORS.get(error.code(), BatonError)(error.details() or str(error.code()))


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
    """The message for some features whose parts hold fields of one role each, as `Features.from_context` makes them.

    Args:
        sheddable: whether the server may leave it unanswered under load.
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
    for part in features.ids:
        fields = [schema.ids[c] for c in part.columns]
        matrix = sides[fields[0].role].ids
        matrix.fields.extend(f.name for f in fields)
        matrix.values += part.values.astype("<i8", copy=False).tobytes()
    for number in features.numbers:
        fields = [schema.numbers[c] for c in number.columns]
        matrix = sides[fields[0].role].numbers
        matrix.fields.extend(f.name for f in fields)
        matrix.values += number.values.astype("<f4", copy=False).tobytes()
    for bag in features.bags:
        field = schema.bags[bag.column]
        column = sides[field.role].columns.add(field=field.name)
        column.bags.offsets = bag.offsets.astype("<u4").tobytes()
        column.bags.values = bag.values.astype("<i8", copy=False).tobytes()
    return original(request.SerializeToString())


def feedback_request(entries: Sequence[FeedbackEntry]) -> pb.FeedbackRequest:
    """The message for some labels; candidates are named by index."""
    request = pb.FeedbackRequest()
    for entry in entries:
        prediction = request.predictions.add(prediction_id=entry.prediction_id, exposed_all=entry.exposed_all)
        for shown in entry.exposed:
            exposure = prediction.exposed.add(index=shown.index, time_ms=shown.time_ms)
            if shown.position >= 0:
                exposure.position = shown.position
        for outcome in entry.outcomes:
            prediction.outcomes.add(
                index=outcome.index, label=outcome.label, time_ms=outcome.time_ms, final=outcome.final
            )
    return request


async def _answers_async(call: Any) -> AsyncIterator[RankResult]:
    try:
        async for response in call:
            yield _result(response)
    except grpc.aio.AioRpcError as error:
        raise error_of(error) from None
    finally:
        call.cancel()


def _answers(call: Any) -> Iterator[RankResult]:
    try:
        for response in call:
            yield _result(response)
    except grpc.RpcError as error:
        raise error_of(error) from None
    finally:
        call.cancel()


def _result(response: pb.RankResponse) -> RankResult:
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


def _replies(response: pb.FeedbackResponse) -> list[FeedbackReply]:
    def names(statuses: Any) -> tuple[str, ...]:
        return tuple(pb.Status.Name(status).lower() for status in statuses)

    return [FeedbackReply(names(r.exposed), names(r.outcomes), r.reason) for r in response.results]

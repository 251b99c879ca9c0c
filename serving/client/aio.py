"""Client for asyncio."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from typing import Any

import grpc

from pipeline.clock import Clock
from pipeline.errors import NotReady
from pipeline.features import Features
from pipeline.schema import Schema
from pipeline.traffic.log import FeedbackEntry, FeedbackReply
from protos.baton.ranking.v1 import ranking_pb2 as pb
from serving.client.attempts import Attempt, Core, Wait
from serving.client.elsewhere import (
    Assignment,
    ObservedAnswer,
    ObservedResult,
    assignment_of,
    observe_request,
    observed_results,
)
from serving.client.failures import error_of
from serving.client.messages import RankResult, feedback_request, rank_request, rank_result, replies_of
from serving.client.options import Options

__all__ = ["AsyncRankingClient"]


class AsyncRankingClient:
    """Client for asyncio. Close it, or use it as an async context manager. Create it where its event loop runs.

    Args:
        target: `host:port`, or several; each serves all endpoints in use.
        options: connections, deadlines, credentials, retries.
        clock, rng: of deadlines and pauses.

    Raises:
        InvalidInput: a target or an option is wrong.
    """

    def __init__(
        self,
        target: str | Sequence[str],
        options: Options | None = None,
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._core = Core(grpc.aio, target, options, clock, rng)

    async def __aenter__(self) -> AsyncRankingClient:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections; calls in progress fail."""
        await asyncio.gather(*(connection.channel.close() for connection in self._core.opened))

    async def ready(self, timeout: float) -> None:
        """Wait until a server can be reached.

        Raises:
            NotReady: none within `timeout` seconds.
        """
        connections = self._core.pool.connections
        waiting = [asyncio.create_task(connection.channel.channel_ready()) for connection in connections]
        done, rest = await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        if not done:
            raise NotReady(f"no server could be reached within {timeout:g} s")

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
        timeout: float | None = None,
        traceparent: str = "",
    ) -> RankResult:
        """Score candidates.

        Args:
            timeout: seconds for all attempts; None: `Options.timeout`.
            traceparent: W3C trace context to continue, if it does not come from OpenTelemetry.

        Raises:
            BatonError: of the class that the error code means.
        """
        request = rank_request(
            endpoint, schema, features, routing_key=routing_key, request_id=request_id, top_k=top_k, arm=arm
        )
        return rank_result(await self._call("Rank", request, timeout, traceparent))

    async def rank_message(
        self, request: pb.RankRequest, *, timeout: float | None = None, traceparent: str = ""
    ) -> RankResult:
        """`rank` of a message that the caller has built, for example with named or raw values."""
        return rank_result(await self._call("Rank", request, timeout, traceparent))

    def rank_stream(
        self, requests: AsyncIterable[pb.RankRequest], *, timeout: float | None = None
    ) -> AsyncIterator[RankResult]:
        """Answers to many requests (`rank_request` makes them) over one call, in their order.

        The server processes several at once, so do not wait for an answer before the next request. A request that fails
        ends the stream after the answers before it; open another for the rest. The call begins at once, without retries.

        Args:
            timeout: seconds for the whole stream; None: no limit.

        Raises:
            BatonError: of the class that the error code means.
        """
        connection = self._core.pool.take()
        with self._core.outgoing("RankStream") as metadata:
            call = connection.stub.RankStream(requests, timeout=timeout, metadata=metadata)
        call.add_done_callback(lambda _: self._core.pool.give_back(connection))
        return _answers(call)

    async def feedback(
        self, entries: Sequence[FeedbackEntry], *, timeout: float | None = None, traceparent: str = ""
    ) -> list[FeedbackReply]:
        """Send exposures and labels; those with the reply `accepted` are stored. Sent twice they count once (`duplicate`)."""
        return replies_of(await self._call("Feedback", feedback_request(entries), timeout, traceparent))

    async def observe(
        self, endpoint: str, answers: Sequence[ObservedAnswer], *, timeout: float | None = None, traceparent: str = ""
    ) -> list[ObservedResult]:
        """Tell rankings that another server answered; those with the reply `accepted` are in the log. Told twice they count
        once (`duplicate`).

        Raises:
            BatonError: of the class that the error code means; it may be told again.
        """
        return observed_results(await self._call("Observe", observe_request(endpoint, answers), timeout, traceparent))

    async def assign(self, endpoint: str, routing_keys: Sequence[str], *, timeout: float | None = None) -> Assignment:
        """Ask which arm routing keys belong to now; the same rule as for requests to `rank`."""
        request = pb.AssignRequest(endpoint=endpoint, routing_keys=routing_keys)
        return assignment_of(await self._call("Assign", request, timeout, ""))

    async def _call(self, method: str, request: Any, timeout: float | None, traceparent: str) -> Any:
        plan = self._core.course(method, timeout)
        with self._core.outgoing(method, traceparent) as metadata:
            try:
                step = next(plan)
                while True:
                    if isinstance(step, Wait):
                        await asyncio.sleep(step.seconds)
                        step = plan.send(None)
                    else:
                        step = plan.send(await self._attempt(method, request, step, metadata))
            except StopIteration as done:
                return done.value
            finally:
                plan.close()

    async def _attempt(self, method: str, request: Any, attempt: Attempt, metadata: Any) -> Any:
        """The answer, or gRPC's error."""
        call = getattr(attempt.connection.stub, method)(request, timeout=attempt.timeout, metadata=metadata)
        if attempt.hedge is None:
            return await _outcome(call)
        first = asyncio.ensure_future(_outcome(call))
        racing = {first}
        spare = None
        try:
            await asyncio.wait(racing, timeout=attempt.hedge)
            if not first.done() and self._core.budget.spend():
                spare = self._core.pool.take([attempt.connection])
                again = getattr(spare.stub, method)(request, timeout=attempt.timeout - attempt.hedge, metadata=metadata)
                racing.add(asyncio.ensure_future(_outcome(again)))
            while racing:
                done, racing = await asyncio.wait(racing, return_when=asyncio.FIRST_COMPLETED)
                answer = next((task.result() for task in done if not isinstance(task.result(), grpc.RpcError)), None)
                if answer is not None:
                    return answer
            return first.result()
        finally:
            for task in racing:
                task.cancel()  # ends its call
            if spare is not None:
                self._core.pool.give_back(spare)


async def _outcome(call: Any) -> Any:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return error


async def _answers(call: Any) -> AsyncIterator[RankResult]:
    try:
        async for response in call:
            yield rank_result(response)
    except grpc.aio.AioRpcError as error:
        raise error_of(error) from None
    finally:
        call.cancel()

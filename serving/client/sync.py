"""Client for code without asyncio: the same calls, which block the caller's thread."""

from __future__ import annotations

import queue
import random
import time
from collections.abc import Iterable, Iterator, Sequence
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

__all__ = ["RankingClient"]


class RankingClient:
    """`AsyncRankingClient` without `await`, with the same arguments. Safe for several threads."""

    def __init__(
        self,
        target: str | Sequence[str],
        options: Options | None = None,
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._core = Core(grpc, target, options, clock, rng)

    def __enter__(self) -> RankingClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; calls in progress fail."""
        for connection in self._core.opened:
            connection.channel.close()

    def ready(self, timeout: float) -> None:
        """See `AsyncRankingClient.ready`."""
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        waiting = [grpc.channel_ready_future(connection.channel) for connection in self._core.pool.connections]
        for future in waiting:
            future.add_done_callback(done.put)
        try:
            done.get(timeout=timeout)
        except queue.Empty:
            raise NotReady(f"no server could be reached within {timeout:g} s") from None
        finally:
            for future in waiting:
                future.cancel()

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
        timeout: float | None = None,
        traceparent: str = "",
    ) -> RankResult:
        """See `AsyncRankingClient.rank`."""
        request = rank_request(
            endpoint, schema, features, routing_key=routing_key, request_id=request_id, top_k=top_k, arm=arm
        )
        return rank_result(self._call("Rank", request, timeout, traceparent))

    def rank_message(
        self, request: pb.RankRequest, *, timeout: float | None = None, traceparent: str = ""
    ) -> RankResult:
        """See `AsyncRankingClient.rank_message`."""
        return rank_result(self._call("Rank", request, timeout, traceparent))

    def rank_stream(self, requests: Iterable[pb.RankRequest], *, timeout: float | None = None) -> Iterator[RankResult]:
        """See `AsyncRankingClient.rank_stream`. `requests` is read in a thread of gRPC."""
        connection = self._core.pool.take()
        with self._core.outgoing("RankStream") as metadata:
            call = connection.stub.RankStream(iter(requests), timeout=timeout, metadata=metadata)
        call.add_callback(lambda: self._core.pool.give_back(connection))
        return _answers(call)

    def feedback(
        self, entries: Sequence[FeedbackEntry], *, timeout: float | None = None, traceparent: str = ""
    ) -> list[FeedbackReply]:
        """See `AsyncRankingClient.feedback`."""
        return replies_of(self._call("Feedback", feedback_request(entries), timeout, traceparent))

    def observe(
        self, endpoint: str, answers: Sequence[ObservedAnswer], *, timeout: float | None = None, traceparent: str = ""
    ) -> list[ObservedResult]:
        """See `AsyncRankingClient.observe`."""
        return observed_results(self._call("Observe", observe_request(endpoint, answers), timeout, traceparent))

    def assign(self, endpoint: str, routing_keys: Sequence[str], *, timeout: float | None = None) -> Assignment:
        """See `AsyncRankingClient.assign`."""
        request = pb.AssignRequest(endpoint=endpoint, routing_keys=routing_keys)
        return assignment_of(self._call("Assign", request, timeout, ""))

    def _call(self, method: str, request: Any, timeout: float | None, traceparent: str) -> Any:
        plan = self._core.course(method, timeout)
        with self._core.outgoing(method, traceparent) as metadata:
            try:
                step = next(plan)
                while True:
                    if isinstance(step, Wait):
                        time.sleep(step.seconds)
                        step = plan.send(None)
                    else:
                        step = plan.send(self._attempt(method, request, step, metadata))
            except StopIteration as done:
                return done.value
            finally:
                plan.close()

    def _attempt(self, method: str, request: Any, attempt: Attempt, metadata: Any) -> Any:
        """The answer, or gRPC's error."""
        send = getattr(attempt.connection.stub, method)
        if attempt.hedge is None:
            try:
                return send(request, timeout=attempt.timeout, metadata=metadata)
            except grpc.RpcError as error:
                return error
        over: queue.SimpleQueue[Any] = queue.SimpleQueue()
        racing = [send.future(request, timeout=attempt.timeout, metadata=metadata)]
        racing[0].add_done_callback(over.put)
        spare = None
        try:
            try:
                over.put(over.get(timeout=attempt.hedge))
            except queue.Empty:
                if self._core.budget.spend():
                    spare = self._core.pool.take([attempt.connection])
                    again = getattr(spare.stub, method)
                    racing.append(again.future(request, timeout=attempt.timeout - attempt.hedge, metadata=metadata))
                    racing[1].add_done_callback(over.put)
            for _ in list(racing):
                done = over.get()
                if done.code() is grpc.StatusCode.OK:
                    return done.result()
            return racing[0].exception()
        finally:
            for call in racing:
                call.cancel()
            if spare is not None:
                self._core.pool.give_back(spare)


def _answers(call: Any) -> Iterator[RankResult]:
    try:
        for response in call:
            yield rank_result(response)
    except grpc.RpcError as error:
        raise error_of(error) from None
    finally:
        call.cancel()

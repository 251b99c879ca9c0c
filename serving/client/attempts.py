"""Course of a call: its attempts and pauses, without I/O.

A generator yields the next step and receives its result, so both clients follow the same rules, each with its own way of
waiting:

    Attempt(connection, timeout)  ──►  the answer, or gRPC's error
    Wait(seconds)                ──►  None
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import grpc

from pipeline.clock import Clock, SystemClock
from pipeline.errors import DeadlineExceeded
from protos.baton.ranking.v1 import ranking_pb2_grpc
from serving.client import forks
from serving.client.failures import FailedCall, Fate, failed_call
from serving.client.options import Options, Retry
from serving.client.pool import Connection, Pool, check_targets
from serving.client.trace import Metadata, outgoing
from serving.runtime.loopback import channel_arguments

__all__ = ["Attempt", "Budget", "Core", "Course", "Wait"]

_CONNECTION_FAULTS = frozenset({Fate.UNSENT, Fate.REFUSED, Fate.LOST, Fate.LATE})


@dataclass(frozen=True, slots=True)
class Attempt:
    """Step of a course: send the request over a connection, and after `hedge` seconds without an answer over another."""

    connection: Connection
    timeout: float
    hedge: float | None


@dataclass(frozen=True, slots=True)
class Wait:
    """Step of a course: wait."""

    seconds: float


Course = Generator[Attempt | Wait, Any, Any]


class Budget:
    """Budget of repetitions: each call earns a fraction, each repetition costs one. Safe for several threads.

    >>> budget = Budget(ratio=0.5, burst=1)
    >>> budget.spend(), budget.spend(), [budget.earn() for _ in range(2)] and budget.spend()
    (True, False, True)
    """

    def __init__(self, ratio: float, burst: float) -> None:
        self._ratio, self._burst = ratio, burst
        self._saved = burst
        self._lock = threading.Lock()

    def earn(self) -> None:
        """Count a call."""
        with self._lock:
            self._saved = min(self._burst, self._saved + self._ratio)

    def spend(self) -> bool:
        """Whether one more repetition is allowed; it is then spent."""
        with self._lock:
            if self._saved < 1:
                return False
            self._saved -= 1
            return True


class Core:
    """Common part of both clients: connections, budget, and the course of a call.

    Args:
        transport: `grpc` or `grpc.aio`, whose channels are of one kind each.
        targets, options, clock, rng: as for the clients.

    Raises:
        InvalidInput: a target or an option is wrong.
    """

    def __init__(
        self,
        transport: Any,
        targets: str | Sequence[str],
        options: Options | None,
        clock: Clock | None,
        rng: random.Random | None,
    ) -> None:
        self.options = options or Options()
        self._transport = transport
        self._targets = check_targets(targets, self.options)
        self._clock = clock or SystemClock()
        self._rng = rng or random.Random()
        self._credentials = self.options.tls.credentials() if self.options.tls else None
        self._arguments = self.options.channel_arguments()
        self.budget: Budget
        self._opened: Pool | None
        self.reset()
        forks.follow(self)

    def reset(self) -> None:
        """Begin without connections, as a child process does after a fork."""
        self._lock = threading.Lock()
        self._opened = None
        self.budget = Budget(self.options.retry.ratio, self.options.retry.burst)

    @property
    def opened(self) -> Sequence[Connection]:
        """The connections that this process has opened."""
        return self._opened.connections if self._opened is not None else ()

    @property
    def pool(self) -> Pool:
        """All connections; the first use opens them, so a client may be made before a fork and used after it.

        Raises:
            Conflict: this process was forked from one that had used gRPC, which does not survive that.
        """
        if self._opened is None:
            forks.begin()
            with self._lock:
                if self._opened is None:
                    stub = ranking_pb2_grpc.RankingServiceStub
                    self._opened = Pool(self._targets, self.options, self._open, stub, self._clock)
        return self._opened

    def _open(self, target: str) -> Any:
        arguments = [*self._arguments, *channel_arguments(target)]
        if self._credentials is None:
            return self._transport.insecure_channel(target, options=arguments)
        return self._transport.secure_channel(target, self._credentials, options=arguments)

    def outgoing(self, method: str, traceparent: str = "") -> AbstractContextManager[Metadata]:
        """Metadata of a call of the service, with the caller's token and trace."""
        return outgoing(f"baton.ranking.v1.RankingService/{method}", traceparent, self.options.authorization())

    def course(self, method: str, timeout: float | None) -> Course:
        """The course of one call of any method that is no stream; its value is the answer.

        Args:
            timeout: seconds for all attempts; None: that of the options.

        Raises:
            BatonError: the last attempt's; Conflict at once in a forked process that cannot have connections.
        """
        pool, retry, now = self.pool, self.options.retry, self._clock.monotonic
        timeout = self.options.timeout if timeout is None else timeout
        until = now() + timeout
        ranks = method == "Rank"
        lost_too = not ranks or retry.lost  # whether the server may have processed it already
        hedge_after = self.options.hedge_after if ranks and self.options.hedge_after is not None else math.inf
        tried: list[Connection] = []
        self.budget.earn()
        while True:
            left = until - now()
            if left <= 0:
                raise DeadlineExceeded(f"no answer within {timeout:g} s")
            connection = pool.take(tried)
            failure: FailedCall | None = None
            try:
                answer = yield Attempt(connection, left, hedge_after if hedge_after < left else None)
                if not isinstance(answer, grpc.RpcError):
                    return answer
                failure = failed_call(answer)
            finally:
                pool.give_back(connection, failure is not None and failure.fate in _CONNECTION_FAULTS)
            tried.append(connection)
            pause = _pause(failure, len(tried), retry, self._rng, lost_too)
            if pause is None or now() + pause >= until or not self.budget.spend():
                raise failure.error
            yield Wait(pause)


def _pause(failure: FailedCall, attempts: int, retry: Retry, rng: random.Random, lost_too: bool) -> float | None:
    """Seconds before the next attempt; None: no further attempt."""
    if attempts >= retry.attempts:
        return None
    if failure.fate is Fate.BUSY:
        # Not before the time that the server names, and not all clients at once.
        return float(getattr(failure.error, "retry_after", 0.0)) * rng.uniform(1.0, 1.5)
    if failure.fate in (Fate.UNSENT, Fate.REFUSED) or (failure.fate is Fate.LOST and lost_too):
        return rng.uniform(0.0, min(retry.longest_pause, retry.first_pause * 2.0 ** (attempts - 1)))
    return None

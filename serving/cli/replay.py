"""Replay of a log as live traffic: requests at a steady rate, labels by Feedback after a delay.

Open loop: a request is due at its time whether or not earlier ones have been answered, and its latency counts from that
time. Feedback is sent again until it is acknowledged (a repeated label is answered `duplicate`), so a label is lost only
if the server stays away.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from pipeline.clock import Clock, SystemClock
from pipeline.errors import BatonError, InvalidInput
from pipeline.schema import Schema
from pipeline.traffic.log import FeedbackEntry, Outcome
from serving.client import AsyncRankingClient
from transfer.data.log import LogRequest

__all__ = ["Replay", "ReplayReport"]

IN_FLIGHT_REQUESTS = 256
FEEDBACK_EVERY_S = 0.1
FEEDBACK_BATCH_PREDICTIONS = 100
FEEDBACK_TRIES = 120
FEEDBACK_PAUSE_S = 0.5


@dataclass
class ReplayReport:
    """Figures of the client. `latency_s`: seconds from the moment a request was due, per arm."""

    requests: int = 0
    rows: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    latency_s: dict[str, list[float]] = field(default_factory=dict)
    versions: dict[str, set[str]] = field(default_factory=dict)
    labels: Counter[str] = field(default_factory=Counter)

    def latency_ms(self) -> dict[str, dict[str, float]]:
        """p50 and p99 per arm, in milliseconds."""
        return {
            arm: {name: float(np.percentile(np.array(seconds) * 1000, q)) for name, q in (("p50", 50), ("p99", 99))}
            for arm, seconds in sorted(self.latency_s.items())
        }


class Replay:
    """Sends the requests of a log to a server.

    Args:
        target: host:port of the data plane.
        rate: requests per second.
        label_delay: seconds between an answer and its labels.
    """

    def __init__(
        self,
        target: str,
        endpoint: str,
        schema: Schema,
        *,
        rate: float,
        label_delay: float,
        clock: Clock | None = None,
    ) -> None:
        self._target = target
        self._endpoint = endpoint
        self._schema = schema
        self._rate = rate
        self._delay = label_delay
        self._clock = clock or SystemClock()
        self._due: deque[tuple[float, FeedbackEntry]] = deque()
        self._labels_end = asyncio.Event()
        self.report = ReplayReport()

    async def run(self, requests: Iterable[LogRequest], stop: Callable[[], bool] = lambda: False) -> ReplayReport:
        """Send until the log ends or `stop` is true, then wait until the last labels are acknowledged."""
        async with AsyncRankingClient(self._target) as client:
            labels = asyncio.create_task(self._send_labels(client))
            start = self._clock.monotonic()
            running: set[asyncio.Task[None]] = set()
            for number, request in enumerate(requests):
                if stop():
                    break
                due = start + number / self._rate
                wait = due - self._clock.monotonic()
                if wait > 0:
                    await asyncio.sleep(wait)
                if len(running) >= IN_FLIGHT_REQUESTS:
                    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                task = asyncio.create_task(self._send(client, request, due))
                running.add(task)
                task.add_done_callback(running.discard)
            if running:
                await asyncio.wait(running)
            self._labels_end.set()
            await labels
        return self.report

    async def _send(self, client: AsyncRankingClient, request: LogRequest, due: float) -> None:
        report = self.report
        report.requests += 1
        report.rows += request.features.n
        try:
            answer = await client.rank(self._endpoint, self._schema, request.features, routing_key=request.routing_key)
        except BatonError as error:
            report.errors[f"{type(error).__name__}: {error}"] += 1
            return
        now = self._clock.monotonic()
        report.latency_s.setdefault(answer.arm, []).append(now - due)
        report.versions.setdefault(answer.arm, set()).add(answer.version)
        if not answer.prediction_id:
            return  # left out of the traffic log by its sample: there is nothing to label
        outcomes = [Outcome(index, float(label), final=True) for index, label in enumerate(request.labels)]
        entry = FeedbackEntry(answer.prediction_id, outcomes=outcomes, exposed_all=True)
        self._due.append((now + self._delay, entry))

    async def _send_labels(self, client: AsyncRankingClient) -> None:
        while self._due or not self._labels_end.is_set():
            ready: list[FeedbackEntry] = []
            now = self._clock.monotonic()
            while self._due and self._due[0][0] <= now and len(ready) < FEEDBACK_BATCH_PREDICTIONS:
                ready.append(self._due.popleft()[1])
            if ready:
                await self._acknowledged(client, ready)
            else:
                await asyncio.sleep(FEEDBACK_EVERY_S)

    async def _acknowledged(self, client: AsyncRankingClient, entries: list[FeedbackEntry]) -> None:
        for _ in range(FEEDBACK_TRIES):
            try:
                replies = await client.feedback(entries)
            except InvalidInput as error:
                self.report.errors[f"feedback refused: {error}"] += len(entries)
                return
            except BatonError:  # whatever else it is, the labels are not stored yet
                await asyncio.sleep(FEEDBACK_PAUSE_S)
                continue
            for reply in replies:
                self.report.labels.update(reply.outcomes)
            return
        self.report.errors["feedback was never acknowledged"] += len(entries)

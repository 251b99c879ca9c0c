"""Constant load on a cluster by gRPC, spread over all places where a replica may be, with every answer held against numpy."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from typing import Any

import grpc
import numpy as np
from handmade import SCHEMA, Reference, random_rows
from installation import Installation

from pipeline.features import Features
from protos.baton.ranking.v1 import ranking_pb2_grpc
from serving.client import rank_request

REQUESTS = 8
ROWS = 50
OPTIONS = [
    ("grpc.service_config", json.dumps({
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": ""},
    })),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]  # fmt: skip


class Load:
    """`light` calls in flight with a pause after each, and while `heavy` is set as many more without any. It repeats no
    call that failed.

    Args:
        targets: ports that calls are spread over, of each target as many calls.

    Attributes:
        seen: answers by kind: `right`, `wrong`, or the code of the failure.
        errors: failures by what they said.
        latest: for each target, by arm, when its latest answer came (monotonic).
    """

    def __init__(self, made: Installation, *targets: range, light: int = 2, heavy: int = 6) -> None:
        self._targets = ["ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports) for ports in targets]
        self._arms = {
            arm: Reference([made.repository.open(bundle, "1")])
            for arm, bundle in (("stable", "teacher"), ("candidate", "student"))
        }
        self._calls = [self._call(made, seed) for seed in range(REQUESTS)]
        self._counts = (light, heavy)
        self.in_flight = light
        self.heavy = threading.Event()
        self.seen: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.latest: list[dict[str, float]] = [{} for _ in targets]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load", daemon=True)

    def _call(self, made: Installation, seed: int) -> tuple[Any, dict[str, Any]]:
        features = Features.from_context(SCHEMA, random_rows(np.random.default_rng(seed), ROWS, made.tables))
        expected = {arm: reference.score(features.rows(SCHEMA)) for arm, reference in self._arms.items()}
        return rank_request("ranker", SCHEMA, features, routing_key=f"user {seed}"), expected

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def marked(self) -> Counter[str]:
        """What was seen so far; take two and subtract."""
        return Counter(self.seen)

    async def _run(self) -> None:
        await asyncio.gather(*map(self._call_target, self._targets, self.latest))

    async def _call_target(self, target: str, latest: dict[str, float]) -> None:
        light, heavy = self._counts
        async with grpc.aio.insecure_channel(target, options=OPTIONS) as channel:
            stub = ranking_pb2_grpc.RankingServiceStub(channel)  # type: ignore[no-untyped-call]
            pauses = [0.05] * light + [0.0] * heavy
            await asyncio.gather(*(self._line(stub, latest, n, pause) for n, pause in enumerate(pauses)))

    async def _line(self, stub: Any, latest: dict[str, float], n: int, pause: float) -> None:
        while not self._stop.is_set():
            if not pause and not self.heavy.is_set():
                await asyncio.sleep(0.05)
                continue
            n += 1
            request, expected = self._calls[n % REQUESTS]
            try:
                answer = await stub.Rank(request, timeout=20.0)
            except grpc.aio.AioRpcError as error:
                self.seen[error.code().name] += 1
                self.errors[f"{error.code().name}: {error.details()}"[:200]] += 1
            else:
                right = np.allclose(np.array(answer.scores), expected[answer.arm], atol=1e-6)
                self.seen["right" if right else "wrong"] += 1
                latest[answer.arm] = time.monotonic()
            await asyncio.sleep(pause)


def until(condition: Any, what: str, limit: float = 90.0) -> None:
    """Wait for a condition."""
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {limit:g} s: {what}")
        time.sleep(0.05)

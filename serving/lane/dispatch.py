"""From a name and a key to an answer: who answers, by when, and what is counted about it.

Both services come through here, so an endpoint behaves the same whichever protocol asks. It knows no message formats.
Next stop: `serving.lane.registry` (who could answer), `pipeline.engine.engine` (the work).
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.clock import Clock
from pipeline.engine.engine import Engine
from pipeline.errors import DeadlineExceeded, InvalidInput, NotFound, NotReady, Overloaded, PermissionDenied
from pipeline.event import Event
from pipeline.features import Features
from pipeline.traffic.prediction import PredictionIds
from pipeline.traffic.sampling import EVERYTHING, TrafficSample
from serving.lane.desired import DIRECT
from serving.lane.registry import Registry
from serving.lane.served import Served, ServedEndpoint
from serving.rollout.routing import choose_arm
from serving.rollout.routing_key import RoutingHash
from serving.telemetry import Telemetry
from serving.telemetry.latency import Recent
from serving.telemetry.tracing import trace_id_of
from serving.wire.errors import code_of

__all__ = ["ArmWindow", "Dispatcher", "ModelTally", "Target"]

NOT_READY = "candidate_not_ready"
MAX_TALLIES = 64
TICK_S = 0.005
COUNTED_REQUESTS = 64
KEPT_SAMPLES = 32
SAMPLE_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class Target:
    """Who answers a request. `endpoint` is the bundle's name where a model was called by name (arm `direct`)."""

    served: Served
    endpoint: str
    arm: str
    overridden: bool = False
    degraded: tuple[str, ...] = ()


@dataclass
class ModelTally:
    """Totals of one version in this process since it first answered; durations in seconds."""

    answered: int = 0
    failed: int = 0
    rows: int = 0
    last_ms: int = 0
    seconds: float = 0.0
    failed_seconds: float = 0.0
    stages: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))


@dataclass
class ArmWindow:
    """One arm of one endpoint: totals, and the recent past."""

    recent: Recent
    requests: int = 0
    rows: int = 0
    errors: int = 0
    deadline_misses: int = 0


class Dispatcher:
    """Answers requests.

    Args:
        ids: makes prediction ids.
        secret: key of the hash under which routing keys are recorded.
        overrides: whether callers of an endpoint may choose the arm.
        default_deadline: seconds that a request without a deadline may take.
        priority_levels: of the engine; 0: it has none.
        record_direct: whether what models called by name answer gets a prediction id and is recorded.
        sample: which other answers are.

    Attributes:
        least_important: the level of what need not be answered under load.
    """

    def __init__(
        self,
        registry: Registry,
        engine: Engine,
        ids: PredictionIds,
        clock: Clock,
        telemetry: Telemetry,
        *,
        secret: bytes,
        overrides: Callable[[str], bool],
        default_deadline: float,
        priority_levels: int = 0,
        record_direct: bool = False,
        sample: TrafficSample = EVERYTHING,
    ) -> None:
        self.registry = registry
        self._engine = engine
        self._ids = ids
        self._clock = clock
        self._telemetry = telemetry
        self.routing_hash = RoutingHash(secret)
        self._overrides = overrides
        self._default_deadline = default_deadline
        self.least_important = priority_levels
        self._record_direct = record_direct
        self._sample = sample
        self.windows: dict[tuple[str, str], ArmWindow] = {}
        self.tallies: dict[tuple[str, str], ModelTally] = {}
        self.counters: Counter[str] = Counter()
        self.pending = 0
        self._answers: deque[tuple[Target, float, float, int, Mapping[str, float], Sequence[str], str]] = deque()
        self._settling = threading.Lock()
        self._samples: defaultdict[str, deque[Features]] = defaultdict(lambda: deque(maxlen=KEPT_SAMPLES))
        self._next_sample = 0.0

    # Who answers.

    def route(self, name: str, version: str = "", key: str = "", arm: str = "") -> Target:
        """Choose who answers.

        Args:
            name: an endpoint, or a bundle.
            version: of a bundle; empty for its newest ready one. An endpoint's versions are its arms' business.
            key: routing key; the same key always meets the same arm.
            arm: "stable" or "candidate" to override the choice.

        Raises:
            NotFound: there is no such endpoint, model or version.
            NotReady: there is, and it cannot answer now.
            InvalidInput: `arm` is no arm, or an endpoint is asked for a version.
            PermissionDenied: the endpoint does not let its callers choose the arm.
        """
        served = self.registry.snapshot.endpoints.get(name)
        if served is None:
            return self._direct(name, version, arm)
        if version:
            raise InvalidInput(
                f"{name!r} is an endpoint, whose versions are those of its arms; leave model_version empty or call "
                "the bundle by its own name",
                "model_version",
            )
        if arm:
            return self._override(served, name, arm)
        choice = "stable" if served.killed else choose_arm(served.endpoint, key)
        if not key:
            self.counters["missing_key"] += 1
        degraded: tuple[str, ...] = ()
        if choice == "candidate" and served.candidate is None:
            choice, degraded = "stable", (NOT_READY,)
            self.counters[NOT_READY] += 1
        chosen = served.arm(choice)
        if chosen is None:
            raise NotReady(f"endpoint {name!r} has no version ready for its stable arm")
        return Target(chosen, name, choice, False, degraded)

    def describe(self, name: str, version: str = "") -> Served:
        """The model behind a name, for its metadata: an endpoint's stable arm (else its candidate), or a bundle."""
        endpoint = self.registry.snapshot.endpoints.get(name)
        if endpoint is None:
            return self._direct(name, version, "").served
        found = endpoint.stable or endpoint.candidate
        if found is None:
            raise NotReady(f"endpoint {name!r} has no version ready")
        if version and all(a is None or a.model.version != version for a in (endpoint.stable, endpoint.candidate)):
            raise NotFound(f"no arm of endpoint {name!r} serves version {version!r}")
        return found

    def _override(self, served: ServedEndpoint, name: str, arm: str) -> Target:
        if arm not in ("stable", "candidate"):
            raise InvalidInput(f"arm is 'stable' or 'candidate', not {arm!r}", "arm")
        if not self._overrides(name):
            raise PermissionDenied(f"endpoint {name!r} does not let callers choose the arm (setting `overrides`)")
        if arm == "candidate" and served.killed:
            raise NotReady(f"the candidate of endpoint {name!r} is switched off by its kill switch")
        chosen = served.arm(arm)
        if chosen is None:
            raise NotReady(f"endpoint {name!r} has no version ready for its {arm} arm")
        return Target(chosen, name, arm, True)

    def _direct(self, name: str, version: str, arm: str) -> Target:
        snapshot = self.registry.snapshot
        served = snapshot.models.get((name, version)) if version else snapshot.newest(name)
        if served is None:
            if any(n == name for n, _ in snapshot.models) or not self.registry.expects(name, version):
                what = f"version {version!r} of model {name!r}" if version else f"endpoint or model {name!r}"
                known = sorted({*snapshot.endpoints, *(n for n, _ in snapshot.models)})
                raise NotFound(f"{what} is not served here; there are {known or 'none yet'}")
            raise NotReady(f"model {name!r} is not ready yet")
        if arm:
            raise InvalidInput(f"{name!r} is a model, and only endpoints have arms", "arm")
        return Target(served, name, DIRECT)

    # The answer.

    def refusal(self, seconds_left: float | None) -> Overloaded | None:
        """Why a request cannot be taken now, for those who would have to read it first; counted.

        Args:
            seconds_left: until the caller's deadline; None when it brought none.
        """
        error = self._engine.refusal(self._default_deadline if seconds_left is None else seconds_left)
        if error is not None:
            self._telemetry.failed("", code_of(error))
        return error

    def priority(self, value: Any) -> int:
        """A caller's priority as the engine's level: 1 is the highest, 0 the default.

        Raises:
            InvalidInput: it is no such number, or beyond the levels there are.
        """
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise InvalidInput(f"parameter 'priority' is 0 or a level from 1 on, not {value!r}", "priority")
        if 0 < self.least_important < value:
            raise InvalidInput(
                f"parameter 'priority' is {value}, and there are {self.least_important} levels (setting "
                "engine.priority_levels)",
                "priority",
            )
        return value if self.least_important else 0

    async def answer(
        self,
        target: Target,
        request: Any,
        decode: Callable[[Any], Features],
        *,
        started: float,
        rows: int = 0,
        seconds_left: float | None = None,
        timeout: float = 0.0,
        routing_key: str = "",
        candidate_ids: npt.NDArray[np.int64] | None = None,
        priority: int = 0,
        traceparent: str = "",
    ) -> Event:
        """Run a request through the engine; the event with features, scores and prediction id.

        Args:
            decode: features of `request`; called in a worker.
            started: `Clock.monotonic` when the request arrived.
            rows: candidates, where they are known without decoding.
            seconds_left: until the caller's deadline; None when it brought none.
            timeout: seconds that the request allows itself; 0: it does not say. Of waiting, where the engine's policy
                lets requests say so; else it is a deadline.
            priority: level in the engine's queue, as `priority` and `least_important` give it.
            traceparent: of the call's span, where it is traced.

        Raises:
            BatonError: of the class that says why not.
        """
        limit = self._default_deadline if seconds_left is None else seconds_left
        if timeout and not self._engine.allows_queue_timeouts:
            limit = timeout if seconds_left is None else min(limit, timeout)
        hashed = self.routing_hash(routing_key)
        event = Event(
            request=request,
            decoder=lambda message, model: decode(message),
            model=target.served.model,
            rows=rows,
            deadline=started + limit if math.isfinite(limit) else math.inf,
            priority=priority,
            queue_timeout=timeout,
            prediction_id=self._prediction_id(target, hashed),
            endpoint=target.endpoint,
            arm=target.arm,
            routing_hash=hashed,
            overridden=target.overridden,
            candidate_ids=candidate_ids,
            degraded=list(target.degraded),
            traceparent=traceparent,
        )
        self.pending += 1
        try:
            await self._engine.run(event)
        except asyncio.CancelledError:
            if self._clock.monotonic() >= event.deadline - TICK_S:  # gRPC cancels its handler when the deadline passes
                self._missed(target, started)
            raise
        except Exception as error:
            self._failed(target, error, started)
            raise
        finally:
            self.pending -= 1
        self._answered(target, event, started)
        return event

    def _prediction_id(self, target: Target, routing_hash: int) -> str:
        """A new id where the answer is to be recorded; without one it is not, and nobody can send labels for it."""
        if target.arm == DIRECT and not self._record_direct:
            return ""
        prediction_id = self._ids.new(self._clock.wall_ms())
        if not self._sample.keeps(prediction_id, routing_hash):
            self.counters["unsampled"] += 1
            return ""
        return prediction_id

    def refused(self, name: str, error: Exception) -> None:
        """Count a request that met its end before or after the engine."""
        known = name if name in self.registry.snapshot.endpoints else ""
        self._telemetry.failed(known, code_of(error))

    # What is counted.

    def samples(self, endpoint: str) -> list[Features]:
        """Some of the requests that an endpoint (or a bundle, called by name) answered of late; for any thread."""
        return list(self._samples.get(endpoint, ()))

    def window(self, endpoint: str, arm: str) -> ArmWindow:
        window = self.windows.get((endpoint, arm))
        if window is None:
            window = self.windows[endpoint, arm] = ArmWindow(Recent())
        return window

    def _tally(self, target: Target) -> ModelTally:
        tally = self.tallies.get(target.served.key)
        if tally is None:
            if len(self.tallies) >= MAX_TALLIES:  # versions come without end; the oldest goes
                self.tallies.pop(next(iter(self.tallies)))
            tally = self.tallies[target.served.key] = ModelTally()
        return tally

    def settle(self) -> None:
        """Count what was answered since the last time. For any thread; whoever reads figures calls it first."""
        if not self._settling.acquire(blocking=False):
            return  # someone is at it
        try:
            while self._answers:
                self._count(*self._answers.popleft())
        finally:
            self._settling.release()

    def _answered(self, target: Target, event: Event, started: float) -> None:
        # Counting touches a good deal of memory, which is not in the cache after a network has run. Many at once cost
        # a fraction of what they cost one by one.
        now = self._clock.monotonic()
        rows = len(event.scores) if event.scores is not None else 0
        self._engine.took(now - started - event.timings.get("queue", 0.0))
        self._answers.append((target, now, now - started, rows, event.timings, event.degraded, event.traceparent))
        if len(self._answers) >= COUNTED_REQUESTS:
            self.settle()
        if now >= self._next_sample and event.features is not None:
            self._next_sample = now + SAMPLE_EVERY_S
            self._samples[target.endpoint].append(event.features)

    def _count(
        self,
        target: Target,
        now: float,
        seconds: float,
        rows: int,
        timings: Mapping[str, float],
        degraded: Sequence[str],
        traceparent: str,
    ) -> None:
        window = self.window(target.endpoint, target.arm)
        window.requests += 1
        window.rows += rows
        window.recent.observe(now, seconds)
        tally = self._tally(target)
        tally.answered += 1
        tally.rows += rows
        tally.seconds += seconds
        tally.last_ms = self._clock.wall_ms()
        for stage, spent in timings.items():
            tally.stages[stage] += spent
        self._telemetry.answered(
            target.endpoint, target.arm, target.served.model.version, seconds, rows, timings, trace_id_of(traceparent)
        )
        for reason in degraded:
            self._telemetry.degraded(target.endpoint, reason)

    def _failed(self, target: Target, error: Exception, started: float) -> None:
        if isinstance(error, DeadlineExceeded):
            self._missed(target, started)
            return
        if isinstance(error, InvalidInput):
            return  # the caller's fault says nothing about the arm
        self._tally(target).failed += 1
        self._tally(target).failed_seconds += self._clock.monotonic() - started
        window = self.window(target.endpoint, target.arm)
        window.errors += 1
        window.recent.error(self._clock.monotonic())

    def _missed(self, target: Target, started: float) -> None:
        self._tally(target).failed += 1
        self._tally(target).failed_seconds += self._clock.monotonic() - started
        window = self.window(target.endpoint, target.arm)
        window.deadline_misses += 1
        window.recent.deadline_missed(self._clock.monotonic())

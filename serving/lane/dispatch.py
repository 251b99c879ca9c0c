"""Dispatcher of a lane: chooses the version that answers a request, runs the request through the engine, counts it.

Both services use it, so an endpoint behaves the same in every protocol. It knows no message formats.
Next stop: `serving.lane.registry` (the versions), `pipeline.engine.engine` (the work).
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.clock import Clock
from pipeline.errors import (
    BatonError,
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    NotReady,
    Overloaded,
    PermissionDenied,
)
from pipeline.event import Event
from pipeline.hashing import NO_BUCKET
from pipeline.inputs import LACKS_ROWS
from pipeline.traffic.prediction import PredictionIds
from pipeline.traffic.sampling import EVERYTHING, TrafficSample
from serving.lane.desired import DIRECT
from serving.lane.engines import Engines
from serving.lane.loader import Sample
from serving.lane.registry import Registry
from serving.lane.served import Served, ServedEndpoint
from serving.rollout.routing import bucket_of
from serving.rollout.routing_key import RoutingHash
from serving.telemetry import Telemetry
from serving.telemetry.histogram import Recent
from serving.telemetry.process import CALLERS_CODES
from serving.telemetry.tracing import trace_id_of
from serving.wire.errors import code_of

__all__ = ["STAND_INS", "ArmWindow", "Dispatcher", "ModelTally", "Recording", "Target"]

NOT_READY = "candidate_not_ready"
AWAY, FAILED = "candidate_away", "candidate_failed"
STAND_INS = (NOT_READY, AWAY, FAILED)
"""Reasons for which stable answers in place of a candidate."""
"""Reasons why stable answers for a candidate on another server: it is known not to answer, or it just has not."""
CANDIDATE_FRACTION = 0.5
"""Part of a request's time that a candidate on another server may take, so that stable can still answer."""
MAX_TALLIES = 64
TICK_S = 0.005
COUNTED_REQUESTS = 64
KEPT_SAMPLES = 32
SAMPLE_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class Target:
    """The version that answers a request. `endpoint` is the bundle's name where a model is called by name (arm `direct`);
    `versions` are those of an endpoint's stable and candidate arm; `bucket` is that of the routing key."""

    served: Served
    endpoint: str
    arm: str
    overridden: bool = False
    degraded: tuple[str, ...] = ()
    versions: tuple[int, int] = (0, 0)
    bucket: int = NO_BUCKET


@dataclass
class ModelTally:
    """Totals of one version in this process since its first answer; durations in seconds."""

    answered: int = 0
    failed: int = 0
    rows: int = 0
    last_ms: int = 0
    seconds: float = 0.0
    failed_seconds: float = 0.0
    stages: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))


@dataclass
class ArmWindow:
    """Totals of one arm of one endpoint, and its figures of the last minutes."""

    recent: Recent = field(default_factory=Recent)
    requests: int = 0
    rows: int = 0
    errors: int = 0
    deadline_misses: int = 0


@dataclass(frozen=True, slots=True)
class Recording:
    """Which answers get a prediction id, and so are recorded and can be labelled.

    Args:
        ids: makes prediction ids.
        routing_hash: hashes routing keys for the record.
        sample: answers of endpoints that are recorded.
        direct: whether answers of models called by name are recorded, too.
    """

    ids: PredictionIds
    routing_hash: RoutingHash
    sample: TrafficSample = EVERYTHING
    direct: bool = False


class Dispatcher:
    """Answers requests.

    Args:
        overrides: whether callers of an endpoint may choose the arm.
        default_deadline_s: time for a request that has no deadline.
        priority_levels: of the engine; 0: it has none.

    Attributes:
        least_important: level of requests that may be refused under load.
    """

    def __init__(
        self,
        registry: Registry,
        engines: Engines,
        clock: Clock,
        telemetry: Telemetry,
        recording: Recording,
        *,
        overrides: Callable[[str], bool],
        default_deadline_s: float,
        priority_levels: int = 0,
    ) -> None:
        self.registry = registry
        self._engines = engines
        self._clock = clock
        self._telemetry = telemetry
        self._recording = recording
        self._routing_hash = recording.routing_hash
        self._overrides = overrides
        self._default_deadline_s = default_deadline_s
        self.least_important = priority_levels
        self.windows: defaultdict[tuple[str, str], ArmWindow] = defaultdict(ArmWindow)
        self.tallies: dict[tuple[str, str], ModelTally] = {}
        self.counters: Counter[str] = Counter()
        self.pending = 0
        self._answers: deque[tuple[Target, float, float, int, Mapping[str, float], Sequence[str], str]] = deque()
        self._settling = threading.Lock()
        self._samples: defaultdict[str, deque[Sample]] = defaultdict(lambda: deque(maxlen=KEPT_SAMPLES))
        self._next_sample = 0.0

    # Choosing the version.

    def route(self, name: str, version: str = "", key: str = "", arm: str = "") -> Target:
        """Choose the version that answers.

        Args:
            name: an endpoint, or a bundle.
            version: of a bundle; empty for its newest ready one, and for an endpoint.
            key: routing key; the same key always gets the same arm.
            arm: "stable" or "candidate" to override the choice.

        Raises:
            NotFound: there is no such endpoint, model or version.
            NotReady: there is, and it cannot answer now.
            InvalidInput: `arm` is unknown, or `version` is given for an endpoint.
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
        bucket = bucket_of(served.endpoint, key)
        choice = served.arm_of_bucket(bucket)
        if not key:
            self.counters["missing_key"] += 1
        degraded: tuple[str, ...] = ()
        if choice == "candidate" and not served.observed(choice) and (reason := _cannot_answer(served.candidate)):
            choice, degraded = "stable", (reason,)
            self.counters[reason] += 1
        chosen = served.arm(choice)
        if chosen is None:
            served.check_here(choice)
            raise NotReady(f"endpoint {name!r} has no version ready for its stable arm")
        return Target(chosen, name, choice, False, degraded, served.versions, bucket)

    def describe(self, name: str, version: str = "") -> Served:
        """The model behind a name, for its metadata: an endpoint's stable arm (else its candidate), or a bundle."""
        endpoint = self.registry.snapshot.endpoints.get(name)
        if endpoint is None:
            return self._direct(name, version, "").served
        found = endpoint.stable or endpoint.candidate
        if found is None:
            endpoint.check_here("stable")
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
            served.check_here(arm)
            raise NotReady(f"endpoint {name!r} has no version ready for its {arm} arm")
        return Target(chosen, name, arm, True, versions=served.versions)

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
        """Why a request cannot be taken now, before its message is read; None when it can. Refusals are counted.

        Args:
            seconds_left: until the caller's deadline; None without one.
        """
        error = self._engines.local.refusal(self._default_deadline_s if seconds_left is None else seconds_left)
        if error is not None:
            self._telemetry.failed("", code_of(error))
        return error

    def priority(self, value: Any) -> int:
        """A caller's priority as the engine's level: 1 is the highest, 0 the default.

        Raises:
            InvalidInput: it is not a level of the engine.
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
        self, target: Target, event: Event, *, started: float, seconds_left: float | None, routing_key: str = ""
    ) -> Target:
        """Run a request through an engine; afterwards the event has features, scores and prediction id.

        Where a candidate on another server fails, stable answers in its place.

        Args:
            event: with what the protocol knows of the request: `request`, `decoder`, `rows`, `priority` (a level as
                `priority` and `least_important` give it), `queue_timeout`, `candidate_ids`, `request_id`,
                `candidate_texts`, `traceparent`. Where the
                engine's policy allows no queue timeouts, `queue_timeout` is a deadline.
            started: `Clock.monotonic` when the request arrived.
            seconds_left: until the caller's deadline; None without one.

        Returns:
            The version that has answered.

        Raises:
            BatonError: the request fails.
        """
        limit_s = self._default_deadline_s if seconds_left is None else seconds_left
        timeout_s = event.queue_timeout
        if timeout_s and not self._engines.local.allows_queue_timeouts:
            limit_s = timeout_s if seconds_left is None else min(limit_s, timeout_s)
        hashed = self._routing_hash(routing_key)
        event.prediction_id = self._prediction_id(target, hashed)
        event.routing_hash = hashed
        deadline = started + limit_s if math.isfinite(limit_s) else math.inf
        stands_in = self._stand_in(target)
        if stands_in is not None:
            try:
                await self._run(target, event, started, started + CANDIDATE_FRACTION * (deadline - started))
            except InvalidInput:
                raise
            except BatonError:
                self.counters[FAILED] += 1
                _begin_again(event)
                target = stands_in
            else:
                return target
        await self._run(target, event, started, deadline)
        return target

    def _stand_in(self, target: Target) -> Target | None:
        """Stable, where the target is a candidate on another server that the caller did not choose."""
        if target.arm != "candidate" or target.overridden or not target.served.model.remote:
            return None
        served = self.registry.snapshot.endpoints.get(target.endpoint)
        if served is None or served.stable is None:
            return None
        return Target(served.stable, target.endpoint, "stable", False, (FAILED,), target.versions, target.bucket)

    async def _run(self, target: Target, event: Event, started: float, deadline: float) -> None:
        event.model = target.served.model
        event.deadline = deadline
        event.endpoint = target.endpoint
        event.arm = target.arm
        event.bucket = target.bucket
        event.overridden = target.overridden
        event.stable_version, event.candidate_version = target.versions
        event.degraded.extend(target.degraded)
        self.pending += 1
        try:
            await self._engines.of(event.model).run(event)
        except (Exception, asyncio.CancelledError) as error:
            self._failed(target, event, error, started)
            raise
        finally:
            self.pending -= 1
        self._answered(target, event, started)

    def _prediction_id(self, target: Target, routing_hash: int) -> str:
        """A new id if the answer is to be recorded, else "": then it cannot be labelled."""
        recording = self._recording
        if target.arm == DIRECT and not recording.direct:
            return ""
        prediction_id = recording.ids.new(self._clock.wall_ms())
        if not recording.sample.keeps(prediction_id, routing_hash):
            self.counters["unsampled"] += 1
            return ""
        return prediction_id

    def now_ms(self) -> int:
        """Unix milliseconds by the clock that dates predictions."""
        return self._clock.wall_ms()

    def observed(self, endpoint: str, arm: str, rows: int) -> None:
        """Count a prediction that another server answered for an arm."""
        window = self.windows[endpoint, arm]
        window.requests += 1
        window.rows += rows

    def refused(self, name: str, error: Exception, caller: str = "") -> None:
        """Count a request that failed before, in or after the engine. `caller`: who sent it, "" where nobody knows."""
        known, code = name if name in self.registry.snapshot.endpoints else "", code_of(error)
        self._telemetry.failed(known, code)
        if code in CALLERS_CODES:
            self._telemetry.caller_failed(caller, "request", code)

    # Counting.

    def samples(self, endpoint: str) -> list[Sample]:
        """Some of the last requests to an endpoint (or to a bundle, called by name), with their columns; for any thread."""
        return list(self._samples.get(endpoint, ()))

    def _tally(self, target: Target) -> ModelTally:
        tally = self.tallies.get(target.served.key)
        if tally is None:
            if len(self.tallies) >= MAX_TALLIES:  # new versions never end, so the oldest is dropped
                self.tallies.pop(next(iter(self.tallies)))
            tally = self.tallies[target.served.key] = ModelTally()
        return tally

    def settle(self) -> None:
        """Count the answers since the last call. For any thread; a reader of figures calls it first."""
        if not self._settling.acquire(blocking=False):
            return  # another thread is counting
        try:
            while self._answers:
                self._count(*self._answers.popleft())
        finally:
            self._settling.release()

    def _answered(self, target: Target, event: Event, started: float) -> None:
        # Counting touches much memory, which is not in the cache after a network has run. Many answers at once cost a
        # fraction of what they cost one by one.
        now = self._clock.monotonic()
        rows = len(event.scores) if event.scores is not None else 0
        self._engines.of(target.served.model).answered(now - started - event.timings.get("queue", 0.0))
        self._answers.append((target, now, now - started, rows, event.timings, event.degraded, event.traceparent))
        if len(self._answers) >= COUNTED_REQUESTS:
            self.settle()
        if now >= self._next_sample and event.features is not None:
            self._next_sample = now + SAMPLE_EVERY_S
            self._samples[target.endpoint].append((event.features, target.served.model.inputs.columns))

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
        window = self.windows[target.endpoint, target.arm]
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
        if any(reason.startswith(LACKS_ROWS) for reason in degraded):
            window.recent.degraded(now)
        for reason in degraded:
            self._telemetry.degraded(target.endpoint, reason)

    def _failed(self, target: Target, event: Event, error: BaseException, started: float) -> None:
        now = self._clock.monotonic()
        # gRPC cancels its handler when the deadline passes, or earlier when the caller goes away.
        cancelled = isinstance(error, asyncio.CancelledError)
        if isinstance(error, InvalidInput) or (cancelled and now < event.deadline - TICK_S):
            return  # the caller's doing says nothing about the arm
        tally, window = self._tally(target), self.windows[target.endpoint, target.arm]
        tally.failed += 1
        tally.failed_seconds += now - started
        if cancelled or isinstance(error, DeadlineExceeded):
            window.deadline_misses += 1
            window.recent.deadline_missed(now)
        else:
            window.errors += 1
            window.recent.error(now)


def _cannot_answer(candidate: Served | None) -> str:
    """Reason why stable answers in place of a candidate; "" where there is none."""
    if candidate is None:
        return NOT_READY
    return "" if candidate.model.available else AWAY


def _begin_again(event: Event) -> None:
    """Forget what a failed arm has left in an event."""
    event.error = event.features = event.dense = event.scores = None
    event.network = ""
    event.values.clear()
    event.timings = {}
    event.degraded.clear()

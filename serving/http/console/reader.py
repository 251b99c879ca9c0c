"""Reader of all figures for all tabs: a thread calls `Admin` every two seconds, and every ten while no page is open.

The result is one immutable `Reading`, replaced as a whole, so that pages take it without a lock. When a reading fails or
is late (the rollout loop holds its lock, the disk hangs), the old one stays in place and the pages show its age.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.clock import Clock
from pipeline.errors import BatonError, NotFound
from pipeline.traffic.log import TrafficStats
from serving.admin import requests as r
from serving.admin import verbs as v
from serving.admin.answers import AuditEntry, Cache, Endpoint, Freeze, Metrics, Model, Rollout, Worker
from serving.admin.door import Admin
from serving.health import Health, health_of
from serving.http.console.history import Track
from serving.http.console.source import READER, all_endpoints, all_versions, newest_audit
from serving.rollout.state import ACTIVE
from serving.runtime.roster import ProcessState
from serving.runtime.status import ArmReport, Statuses
from serving.telemetry.histogram import added

__all__ = ["ArmTraffic", "Reader", "Reading", "View"]

WATCHED_EVERY_S = 2.0
IDLE_EVERY_S = 10.0
SLOW_EVERY_S = 10.0
"""For figures that are read from many files and change rarely."""
AUDIT_STEP_ENTRIES, AUDIT_KEPT_ENTRIES = 20, 500
"""Newest audit entries read at a time, and kept per endpoint; `baton audit` has all."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ArmTraffic:
    """One arm over all lanes. `versions` that answer, by lane; counts of the last `seconds`, latencies in milliseconds."""

    bundle: str
    wanted: str
    versions: Mapping[str, str]
    state: str
    reason: str
    seconds: float
    requests: int
    errors: int
    deadline_misses: int
    p50: float | None
    p99: float | None

    @property
    def rate(self) -> float:
        """Answers per second."""
        return self.requests / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class View:
    """All figures of one endpoint. `rollout`, `metrics` and `track` are None before its first rollout."""

    endpoint: Endpoint
    arms: Mapping[str, ArmTraffic]
    rollout: Rollout | None
    metrics: Metrics | None
    track: Track | None
    audit: Sequence[AuditEntry]


@dataclass(frozen=True, slots=True)
class Reading:
    """All figures at one time."""

    time_ms: int
    statuses: Statuses
    traffic: TrafficStats
    views: Mapping[str, View]
    cache: Cache | None
    worker: Worker | None
    versions: Mapping[str, Sequence[Model]] = field(default_factory=dict)
    """Versions by bundle, newest first."""
    missing: Sequence[str] = ()
    """Configured lanes that do not answer."""
    processes: Sequence[ProcessState] = ()
    recent_shadow_drops: Mapping[str, int] = field(default_factory=dict)
    """Shadow drops of the last minute by reason."""
    freeze: Freeze | None = None


class Reader:
    """Reader thread, from `start` to `stop`. A reading may take as long as the rollout loop holds its lock."""

    def __init__(self, admin: Admin, clock: Clock) -> None:
        self._admin, self._clock = admin, clock
        self.reading: Reading | None = None
        self.health: Health | None = None
        """Read apart from all else, so that it is true while the state does not answer."""
        self.error = ""
        """Why the last attempt failed; empty: it succeeded."""
        self.watchers = 0
        self._tracks: dict[str, Track] = {}
        self._audit: dict[str, tuple[AuditEntry, ...]] = {}
        self._drops: deque[tuple[int, dict[str, int]]] = deque(maxlen=64)
        self._slow: tuple[float, Cache, Worker, Mapping[str, Sequence[Model]]] | None = None
        self._ended: dict[str, tuple[Rollout, Metrics]] = {}
        self._notify: Callable[[], None] = lambda: None
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="console-reader", daemon=True)

    def start(self, notify: Callable[[], None]) -> None:
        """Start; `notify` is called in the reader's thread after every attempt."""
        self._notify = notify
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._wake.set()
        self._thread.join(10)

    def hurry(self) -> None:
        """Read as soon as possible: a page was opened, or an operator changed something."""
        self._wake.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            self._look_at_health()
            try:
                self.reading, self.error = self.read(), ""
            except Exception as error:  # the pages show that they are old, and the next attempt may succeed
                if not self.error:
                    expected = isinstance(error, BatonError)
                    log.error("the console cannot read the installation: %s", error, exc_info=not expected)
                self.error = f"{type(error).__name__}: {error}" if isinstance(error, BatonError) else "see the log"
            if not self._stop.is_set():
                self._notify()
            self._wake.wait(WATCHED_EVERY_S if self.watchers else IDLE_EVERY_S)

    def _look_at_health(self) -> None:
        try:
            self.health = health_of(self._admin.metrics.reading())
        except Exception:  # the page shows its age
            log.exception("the console cannot read the health of the installation")

    def read(self) -> Reading:
        """All figures now."""
        admin, now = self._admin, self._clock.wall_ms()
        statuses = admin.reports.all()
        views = {endpoint.name: self._view(endpoint, statuses, now) for endpoint in all_endpoints(admin)}
        for gone in self._tracks.keys() - views.keys():
            del self._tracks[gone]
        if self._slow is None or self._clock.monotonic() - self._slow[0] >= SLOW_EVERY_S:
            cache = admin.call(v.CACHE_STATS, r.Nothing(), READER)
            worker = admin.call(v.WORKER_STATUS, r.Nothing(), READER)
            self._slow = self._clock.monotonic(), cache, worker, all_versions(admin)
        dropped = statuses.shadow_drops()
        self._drops.append((now, dropped))
        before = next((counts for at, counts in self._drops if now - at <= 60_000), {})
        recent = {reason: max(0, number - before.get(reason, 0)) for reason, number in dropped.items()}
        _, cache, worker, versions = self._slow
        traffic, (_, missing) = admin.metrics.traffic(), admin.reports.ready()
        processes = admin.reports.roster()
        return Reading(
            now, statuses, traffic, views, cache, worker, versions, missing, processes, recent, admin.metrics.freeze()
        )

    def _view(self, endpoint: Endpoint, statuses: Statuses, now: int) -> View:
        name = endpoint.name
        arms = {arm: _arm(name, arm, statuses) for arm in ("stable", "candidate")}
        audit = self._new_audit(name)
        try:
            rollout, metrics = self._rollout(name)
        except NotFound:
            return View(endpoint, arms, None, None, None, audit)
        track = self._tracks.get(name)
        if track is None or track.rollout != rollout.id:
            track = self._tracks[name] = Track(rollout.id)
            track.begin(rollout, audit)
        if rollout.phase in ACTIVE:
            track.look(rollout, {arm: traffic.p99 for arm, traffic in arms.items()}, now)
        return View(endpoint, arms, rollout, metrics, track, audit)

    def _rollout(self, name: str) -> tuple[Rollout, Metrics]:
        """The newest rollout of an endpoint and its figures; those of an ended rollout are read once."""
        newest, ended = self._admin.rollouts.newest(name), self._ended.get(name)
        if ended is not None and (ended[0].id, ended[0].resource_version) == (newest.id, newest.resource_version):
            return ended
        found = self._admin.rollouts.with_metrics(newest.id)
        if found[0].phase not in ACTIVE:
            self._ended[name] = found
        return found

    def _new_audit(self, name: str) -> tuple[AuditEntry, ...]:
        """The newest audit entries of an endpoint; only entries since the last reading are read."""
        kept = self._audit.get(name, ())
        new: list[AuditEntry] = []
        for many in (AUDIT_STEP_ENTRIES, AUDIT_KEPT_ENTRIES):
            new = [e for e in newest_audit(self._admin, name, many) if not kept or e.seq > kept[-1].seq]
            if len(new) < many:
                break
        self._audit[name] = (*kept, *new)[-AUDIT_KEPT_ENTRIES:]
        return self._audit[name]


def _arm(endpoint: str, arm: str, statuses: Statuses) -> ArmTraffic:
    """Traffic of one arm, summed over the lanes that report."""
    arms = {name: lane.status.endpoints.get(endpoint, {}).get(arm) for name, lane in statuses.fresh().lanes.items()}
    reports = {name: report for name, report in arms.items() if report is not None}
    worst = next((r for r in reports.values() if r.state != "READY"), next(iter(reports.values()), ArmReport()))
    recent = added(report.recent for report in reports.values())
    return ArmTraffic(
        bundle=worst.bundle,
        wanted=worst.wanted,
        versions={lane: report.version for lane, report in reports.items()},
        state=worst.state,
        reason=worst.reason,
        seconds=recent.seconds,
        requests=recent.requests,
        errors=recent.errors,
        deadline_misses=recent.deadline_misses,
        p50=recent.p50_ms,
        p99=recent.p99_ms,
    )

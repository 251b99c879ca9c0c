"""Background loops of the control process: join labels, move rollouts, tidy logs, bundles and the shared cache.

Each has a thread of its own, so that one which hangs holds up no other. Where several control processes share one
state, only the leader acts (`serving.state.leader`); the others keep reading, so that they can answer and take over.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.bundle.versions import Repository
from pipeline.clock import Clock
from pipeline.errors import NotReady
from pipeline.traffic.log import TrafficLog
from serving.admin import Admin
from serving.config import Config
from serving.control.bundle_upkeep import BundleUpkeep
from serving.control.state_watch import StateWatch
from serving.control.traffic_upkeep import TrafficUpkeep
from serving.health.label_flow import LabelFlows
from serving.lane.desired import publish_state_away
from serving.notify.onsets import Onsets
from serving.notify.sender import Sender
from serving.rollout.controller import ACTOR, RolloutController
from serving.rollout.status.retired import retired_of
from serving.rollout.store import LeadLost
from serving.runtime import status
from serving.runtime.process import step_back
from serving.runtime.status import ControlStatus, JoinBacklog, Statuses, StepStatus
from serving.runtime.stores import StoreStatus
from serving.state.leader import Lead
from serving.supervisor.child import children_of
from serving.supervisor.pulse import Heart, own_heart
from serving.telemetry import METRICS_DIR, Telemetry
from serving.telemetry.overview import Overview, made_ms
from serving.telemetry.stores import StoreFigures
from serving.wiring.backends import Backends
from serving.wiring.backup import last_backup_ms
from serving.wiring.observe import Observer
from serving.wiring.stores import look_at_stores

if TYPE_CHECKING:
    from serving.tiers.cache import CacheUpkeep

__all__ = ["ControlLoops"]

JOIN_EVERY_S = 0.2
PASS_EVERY_S = 0.5
LEAD_EVERY_S = 0.5
UPKEEP_EVERY_S = 60.0
UPKEEP_NICE = 10
REFRESH_EVERY_S = 1.0
ONSETS_EVERY_S = 5.0
NOTIFY_EVERY_S = 1.0
STORES_EVERY_S = 5.0
PASS_LIMIT_S = 180.0
"""Time that one pass of a loop may take: a store that hangs or is copied makes it wait, and is no fault of this process."""
WATCHED = ("lead", "label-join", "rollout", "status")
"""Loops whose hang ends the process. Upkeep may work for as long as there is something to delete or to merge, and a receiver of
notifications or a disk may hang."""
LABELS_EVERY_S = 5.0
_UNKNOWN_LEADER = "?"
COUNT_EVERY_S = 10.0
"""Time between two looks at the predictions that are open."""

log = logging.getLogger(__name__)


class ControlLoops:
    """Background loops of the control process, and what they work on. Use `start`, then `close`.

    Args:
        backends: closed by `close`, with `joined`, `retained` and `lead`.
        joined: the traffic log once more, for the join alone: it waits for the disk, and readers must not wait for it.
        retained: and once more for retention, which may delete for minutes.
        lead: which control process acts.

    Attributes:
        admin: the verbs of operators; may be called at any time in between.
        telemetry: of the process.
    """

    def __init__(
        self, config: Config, backends: Backends, joined: TrafficLog, retained: TrafficLog, lead: Lead, clock: Clock
    ) -> None:
        self._config, self._clock = config, clock
        self._stop = threading.Event()
        self._backends, self._store = backends, backends.store
        self._joined, self._retained = joined, retained
        repository = backends.repository
        lanes = [child.name for child in children_of(config, config.home) if child.name.startswith("lane-")]
        observer = Observer(config.status, repository, backends.kill, clock, self._verdict, lanes)
        self._controller = RolloutController(
            self._store,
            backends.traffic,
            clock,
            observer,
            observer.schema,
            lambda endpoint, reason: backends.kill.engage(endpoint, reason, ACTOR),
        )
        backends.kill.prepare()
        self._lock = threading.RLock()
        self._lead, self._leads = lead, threading.Event()
        self._led_by = self._leader = ""
        self._open, self._counted = JoinBacklog(), float("-inf")
        self._stores: Sequence[StoreStatus] = ()
        self._stores_ms = 0
        before = status.read(config.status, clock.wall_ms()).control
        self._labels = {} if before is None else before.status.labels
        self._label_flows = LabelFlows(self._labels)
        self._cache = self._open_cache(repository)
        self.admin = Admin(config, backends, self._controller, clock, self._lock, self._cache)
        self._state = StateWatch(self._store, backends.kill, backends.snapshot, clock, self.admin.endpoints.bootstrap)
        self._state.look()
        self._bundles = BundleUpkeep(
            repository, config.segments, self._store, keep=config.bundles_keep, worker=config.worker is not None
        )
        self._traffic = TrafficUpkeep(config, retained, self._store)
        self._senders = [Sender(self._store, receiver, clock) for receiver in config.notify]
        self._onsets = Onsets(self._store, config.notify, clock)
        self.telemetry = Telemetry("control")
        self._publish(repository)
        self._started = clock.monotonic()
        self._steps: Mapping[str, StepStatus] = {}
        self._joining = Heart(None, 0)
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin to act."""
        bodies = [
            ("state", self._look_at_state, PASS_EVERY_S),
            ("lead", self._take_lead, LEAD_EVERY_S),
            ("label-join", self._leading(self._join), JOIN_EVERY_S),
            ("traffic-upkeep", self._leading(self._keep), UPKEEP_EVERY_S),
            ("rollout", self._leading(self._move), PASS_EVERY_S),
            ("status", self._report, PASS_EVERY_S),
            ("bundle-upkeep", self._tidy, UPKEEP_EVERY_S),
            ("stores", self._look_at_stores, STORES_EVERY_S),
            ("label-flow", self._follow_labels, LABELS_EVERY_S),
        ]
        if self._config.notify:
            bodies.append(("onsets", self._leading(self._note_onsets), ONSETS_EVERY_S))
        bodies += [
            (f"notify-{number}", self._leading(sender.step), NOTIFY_EVERY_S)
            for number, sender in enumerate(self._senders)
        ]
        if self._cache is not None:
            bodies.append(("redis-updates", self._leading(self._refresh), REFRESH_EVERY_S))
        for name, body, pause in bodies:
            heart = own_heart(name, PASS_LIMIT_S) if name in WATCHED else Heart(None, 0)
            if name == "label-join":
                self._joining = heart
            arguments = name, body, pause, heart
            thread = threading.Thread(target=self._repeat, args=arguments, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def end(self) -> None:
        """Ask the loops to end; may be called from a signal handler."""
        self._stop.set()

    def close(self) -> None:
        """End the loops and release everything."""
        self._stop.set()
        for thread in self._threads:
            thread.join(10)
        self._lead.release()
        self.admin.close()
        if self._cache is not None:
            self._cache.close()
        self._joined.close()
        self._retained.close()
        self._backends.close()

    # Bodies of the loops.

    def _look_at_state(self) -> None:
        """Look at the state, and read what the status shows of it: a store that answers late holds up no status."""
        self._state.look()
        if self._state.away is not None:
            return
        self._steps = {
            name: StepStatus(step_version=self.admin.rollouts.step_version(name)) for name in self._store.endpoints()
        }

    def _take_lead(self) -> None:
        if self._state.lost:  # what it holds is no lead either
            self._leads.clear()
            self._led_by = self._leader = ""
            return
        held = self._lead.hold()
        self._leader = self._lead.holder()
        if held and not self._leads.is_set():
            self._leads.set()
            log.info("this control process leads")
        leader = "" if held else self._leader or _UNKNOWN_LEADER
        if leader and leader != self._led_by:
            self._leads.clear()
            who = (
                "who leads is not known, since the state does not say"
                if leader == _UNKNOWN_LEADER
                else f"{leader} leads"
            )
            log.warning("%s; this control process answers and stands by", who)
        self._led_by = leader

    def _join(self) -> None:
        while self._joined.join(self._clock.wall_ms()) and not self._stop.is_set():
            self._joining.beat()

    def _keep(self) -> None:
        if self._clock.monotonic() - self._started < UPKEEP_EVERY_S:
            return  # until then the worker may not have reported its place
        self.admin.endpoints.bootstrap()
        worker = self._statuses().learner
        self._traffic.step(None if worker is None else worker.status, self._clock.wall_ms())

    def _move(self) -> None:
        with self._lock:
            for rollout, decision in self._controller.step():
                if decision.event is not None:
                    log.info("%s: %s, %s", rollout, decision.event.verb, decision.reason)
            self.admin.endpoints.audit_kills()
            self.admin.processes.audit_orders()

    def _report(self) -> None:
        leads = self._leads.is_set()
        if leads and self._clock.monotonic() - self._counted >= COUNT_EVERY_S:
            self._counted = self._clock.monotonic()
            with contextlib.suppress(NotReady):
                self._open = self._backlog()
        report = ControlStatus(
            process="control",
            pid=os.getpid(),
            time_ms=self._clock.wall_ms(),
            endpoints=self._steps,
            leads=leads,
            lead_token=self._lead.token if leads else None,
            leader=self._leader,
            backlog=self._open if leads else JoinBacklog(),
            stores=self._stores,
            stores_ms=self._stores_ms,
            labels=self._labels,
            state_away=self._state.away,
            damaged=self._bundles.damaged,
        )
        status.write(self._config.status, "control", report)
        self.telemetry.write(self._config.home / METRICS_DIR)

    def _look_at_stores(self) -> None:
        self._stores = look_at_stores(self._config)
        self._stores_ms = self._clock.wall_ms()

    def _follow_labels(self) -> None:
        self._labels = self._label_flows.step(self._statuses(), self._clock.wall_ms())

    def _backlog(self) -> JoinBacklog:
        traffic = self._backends.traffic
        stats = traffic.stats(self._clock.wall_ms())
        return JoinBacklog(stats.open_predictions, stats.oldest_open_ms / 1000, traffic.window_ms / 1000)

    def _tidy(self) -> None:
        self._bundles.look()
        if self._clock.monotonic() - self._started < UPKEEP_EVERY_S:
            return  # until then not every process has reported the versions that it needs
        step_back(UPKEEP_NICE, thread=True)
        self._bundles.step(self._statuses())

    def _verdict(self, bundle: str, version: str) -> str | None:
        """Why a version must not be adopted; empty: nothing is known against it; None: not known yet."""
        return retired_of(self._store).get(f"{bundle}/{version}") or self._backends.probes.reason(bundle, version)

    def _note_onsets(self) -> None:
        self._onsets.step(self.admin.reports.roster())

    def _refresh(self) -> None:
        assert self._cache is not None
        self._cache.step(self._statuses().fresh())

    def _leading(self, body: Callable[[], None]) -> Callable[[], None]:
        """Do nothing while another process leads; write nothing once one does."""

        def guarded() -> None:
            if not self._leads.is_set():
                return
            try:
                with self._store.fenced(self._lead.token):
                    body()
            except LeadLost as error:
                log.warning("%s", error)

        return guarded

    def _repeat(self, name: str, body: Callable[[], None], pause: float, heart: Heart) -> None:
        """A pass that fails is logged, and the next one tries anew."""
        while not self._stop.is_set():
            heart.beat()
            try:
                body()
            except NotReady as error:  # a store that is away is not a fault of this process
                log.error("a pass of %s failed; trying again: %s", name, error)
                self._stop.wait(1.0)
            except Exception:
                log.exception("a pass of %s failed; trying again", name)
                self._stop.wait(1.0)
            self._stop.wait(pause)

    def _statuses(self) -> Statuses:
        return status.read(self._config.status, self._clock.wall_ms())

    def _open_cache(self, repository: Repository) -> CacheUpkeep | None:
        """The upkeep of Redis; imported only where there is a Redis."""
        if self._config.embedding.redis is None:
            return None
        from serving.tiers.cache import CacheUpkeep

        return CacheUpkeep(self._config.embedding.redis, repository, self._clock, self._stop.is_set)

    def _publish(self, repository: Repository) -> None:
        telemetry = self.telemetry
        if self._cache is not None:
            telemetry.tally(
                "baton_redis_updates", "Rows and keys that Redis was told, and failures", "what", self._cache.counters
            )
        telemetry.tally(
            "baton_bundle_upkeep", "Versions and segments removed, segments merged, and failures", "what",
            self._bundles.counters,
        )  # fmt: skip
        telemetry.tally(
            "baton_notifications", "Notifications sent, tries that failed, and notifications given up", "what",
            lambda: sum((sender.counters for sender in self._senders), Counter()), ("sent", "failed", "given up"),
        )  # fmt: skip
        self._traffic.publish(telemetry)
        telemetry.include(StoreFigures(lambda: self._stores))
        publish_state_away(telemetry, lambda: self._state.away, self._clock)
        telemetry.gauges(
            "baton_bundle_damaged", "1 for a version of the repository that cannot be opened", ("bundle", "version"),
            lambda: {_split(key): 1.0 for key in self._bundles.damaged},
        )  # fmt: skip
        telemetry.include(
            Overview(
                [child.name for child in children_of(self._config, self._config.home)],
                self._statuses,
                self._store,
                self._controller.snapshot,
                self._backends.traffic.stats,
                lambda bundle, version: made_ms(repository.open(bundle, version)),
                self._clock,
                lambda: last_backup_ms(self._config.home),
            )
        )


def _split(key: str) -> tuple[str, ...]:
    bundle, _, version = key.rpartition("/")
    return bundle, version

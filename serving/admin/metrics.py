"""Metrics verbs: figures of a rollout, and the status of every process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pipeline.errors import NotReady
from pipeline.traffic.log import TrafficStats
from serving.admin import answers as a
from serving.admin import requests as r
from serving.admin.service import Service
from serving.config.principal import Principal
from serving.health import Reading, health_of
from serving.health.reading import read_state
from serving.rollout.figures import RolloutFigures
from serving.rollout.status.freeze import freeze_of
from serving.runtime.status import Statuses
from serving.runtime.stores import StoreStatus

__all__ = ["MetricsVerbs", "metrics_of"]


class MetricsVerbs(Service):
    """Verbs of figures; `traffic` is for the console."""

    def get(self, request: r.MetricsOf, by: Principal) -> a.Metrics:
        """Bias with its limits, AUC, LogLoss and rows per arm of the present rollout. Raises: NotFound."""
        self._store.endpoint(request.endpoint)
        with self._lock:
            snapshot = self._controller.snapshot(request.endpoint)
        return metrics_of(snapshot)

    def processes(self, request: r.Nothing, by: Principal) -> a.Processes:
        """The state of every process, the status that each wrote, and the state of the traffic log."""
        found = self._processes.all()
        traffic, fault = self._traffic_figures()
        return a.Processes(
            lanes={name: lane.to_json() for name, lane in found.lanes.items()},
            shadow=_shadow(found),
            worker=None if found.worker is None else found.worker.to_json(),
            supervisor=None if found.supervisor is None else found.supervisor.to_json(),
            traffic=traffic,
            damaged=[a.DamagedStatus(**asdict(damaged)) for damaged in found.damaged],
            control=None if found.control is None else found.control.to_json(),
            processes=[a.ProcessState(**asdict(process)) for process in self._processes.roster()],
            freeze=self.freeze(),
            stores=[_store(store) for store in self._stores(found)],
            faults=[fault] if fault else [],
        )

    def health(self, request: r.Nothing, by: Principal) -> a.Health:
        """Facts of the installation, whichever of its parts do not answer."""
        health = health_of(self.reading())
        facts = [a.HealthFact(**asdict(fact)) for fact in health.ordered()]
        return a.Health(level=health.level, time_ms=health.time_ms, source=health.source, facts=facts)

    def reading(self) -> Reading:
        """What the health is judged by."""
        now_ms = self._clock.wall_ms()
        statuses = self._processes.all()
        state, fault = read_state(lambda: self._store, now_ms, close=False)
        return Reading(
            now_ms=now_ms,
            source="the control process",
            processes=self._processes.roster(),
            statuses=statuses,
            stores=self._stores(statuses),
            state=state,
            state_fault=fault,
        )

    def _stores(self, found: Statuses) -> Sequence[StoreStatus]:
        """Stores as this process last saw them."""
        return () if found.control is None else found.control.status.stores

    def _traffic_figures(self) -> tuple[dict[str, Any], str]:
        """State of the traffic log, or why it cannot be read."""
        try:
            return asdict(self.traffic()), ""
        except NotReady as error:
            return {}, f"the traffic log cannot be read: {error}"

    def freeze(self) -> a.Freeze | None:
        """The freeze that holds now; None without one, and while the state does not answer."""
        try:
            found = freeze_of(self._store, self._clock.wall_ms())
        except NotReady:
            return None
        return None if found is None else a.Freeze(**found.to_json())

    def traffic(self) -> TrafficStats:
        """State of the traffic log now."""
        return self._traffic.stats(self._clock.wall_ms())


def _store(store: StoreStatus) -> a.StoreState:
    fields = {name: value for name, value in asdict(store).items() if name in a.StoreState.model_fields}
    return a.StoreState(**fields, full=store.full)


def metrics_of(snapshot: RolloutFigures) -> a.Metrics:
    """Answer with the figures of a rollout."""
    figures = asdict(snapshot)
    return a.Metrics(**{name: figures[name] for name in a.Metrics.model_fields})


def _shadow(found: Statuses) -> dict[str, Any]:
    """The shadow lane's status, with the predictions that lanes could not hand over to it."""
    shadow, reasons = found.shadow, found.shadow_drops()
    return {
        **({} if shadow is None else shadow.to_json()),
        "scored": 0 if shadow is None else shadow.status.scored + shadow.status.caught_up,
        "dropped": sum(reasons.values()),
        "dropped_by_reason": reasons,
    }

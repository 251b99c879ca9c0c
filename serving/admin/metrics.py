"""Verbs of figures: what a rollout's verdicts rest on, and what every process reports of itself."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pipeline.clock import Clock
from pipeline.traffic.log import TrafficLog
from serving.admin import answers as a
from serving.admin import requests as r
from serving.admin.processes import ProcessReports
from serving.config.principal import Principal
from serving.rollout.controller import RolloutController
from serving.rollout.figures import RolloutFigures
from serving.rollout.store import ControlStore

__all__ = ["MetricsVerbs", "metrics_of"]


class MetricsVerbs:
    """See `serving.admin.verbs`; every method is the verb of its name."""

    def __init__(
        self,
        store: ControlStore,
        controller: RolloutController,
        traffic: TrafficLog,
        processes: ProcessReports,
        clock: Clock,
        lock: threading.RLock,
    ) -> None:
        self._store = store
        self._controller = controller
        self._traffic = traffic
        self._processes = processes
        self._clock = clock
        self._lock = lock

    def get(self, request: r.MetricsOf, by: Principal) -> a.Metrics:
        """Bias with its limits, AUC, LogLoss and rows per arm, of the present rollout. Raises: NotFound."""
        self._store.endpoint(request.endpoint)
        with self._lock:
            snapshot = self._controller.snapshot(request.endpoint)
        return metrics_of(snapshot)

    def processes(self, request: r.Nothing, by: Principal) -> a.Processes:
        """What every process reports, and how the traffic log stands."""
        found = self._processes.all()
        return a.Processes(
            lanes={name: status for name, status in found.items() if name.startswith("lane-")},
            shadow=_shadow(found),
            worker=found.get("worker"),
            supervisor=found.get("supervisor"),
            traffic=asdict(self._traffic.stats(self._clock.wall_ms())),
        )


def metrics_of(snapshot: RolloutFigures) -> a.Metrics:
    """The answer that tells of a snapshot."""
    figures = snapshot.to_json()
    return a.Metrics(**{name: figures[name] for name in a.Metrics.model_fields})


def _shadow(processes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The shadow lane's own counts and what lanes could not hand over to it."""
    shadow = processes.get("shadow", {})
    reasons: dict[str, int] = dict(shadow.get("dropped", {}))
    for name, status in processes.items():
        if name.startswith("lane-"):
            for reason, count in status.get("shadow", {}).get("dropped", {}).items():
                reasons[reason] = reasons.get(reason, 0) + count
    return {
        **shadow,
        "scored": shadow.get("scored", 0) + shadow.get("caught_up", 0),
        "dropped": sum(reasons.values()),
        "dropped_by_reason": reasons,
    }

"""Observation of an endpoint for its rollout: figures of the lanes' status files, and versions in the repository."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.bundle.versions import Repository
from pipeline.clock import Clock
from pipeline.errors import BatonError
from pipeline.schema import Schema
from serving.rollout.reconcile import Observed
from serving.rollout.routing import Endpoint
from serving.rollout.store import StoredRollout
from serving.runtime import status
from serving.runtime.status import ScoreSums, Statuses
from serving.state.kill import KillSwitch
from serving.telemetry.histogram import EDGES, added

__all__ = ["Observer"]


class Observer:
    """Called at each pass of the rollouts (`RolloutController.observe`): it reads the statuses once for all of them."""

    def __init__(self, folder: Path, repository: Repository, kill: KillSwitch, clock: Clock) -> None:
        self._folder = folder
        self._repository = repository
        self._kill = kill
        self._clock = clock
        self._shifts: dict[tuple[str, str], float | None] = {}

    def __call__(self) -> Callable[[StoredRollout, Endpoint], Observed]:
        now = self._clock.wall_ms()
        return partial(self._observed, now, status.read(self._folder, now).fresh())

    def _observed(self, now: int, statuses: Statuses, rollout: StoredRollout, endpoint: Endpoint) -> Observed:
        arms = [lane.status.endpoints.get(endpoint.name, {}).get("candidate") for lane in statuses.lanes.values()]
        recent = added(arm.recent for arm in arms if arm is not None)
        limit = rollout.spec.guards.p99_ms_max
        # Bucket b holds latencies up to EDGES[b]: those wholly above the limit are slow for certain.
        fast = None if limit is None else int(np.searchsorted(EDGES, limit / 1000))
        paired = statuses.shadow.status.paired if statuses.shadow is not None else {}
        scores = paired.get(endpoint.name, ScoreSums())
        why = self._kill.why(endpoint.name)
        return Observed(
            since_ms=now - round(1000 * max(recent.seconds, scores.seconds)),
            requests=recent.requests + recent.errors + recent.deadline_misses,
            errors=recent.errors,
            deadline_misses=recent.deadline_misses,
            slow=None if fast is None else sum(n for bucket, n in recent.counts.items() if bucket > fast),
            p99_ms=recent.p99_ms,
            scored_rows=scores.rows,
            predicted_candidate=scores.candidate,
            predicted_stable=scores.stable,
            versions=self._versions(rollout.spec.candidate.bundle, rollout.state.candidate_version)
            if rollout.state.active
            else (),
            killed=None if why is None else f"{why[0] or 'no reason given'} ({why[1] or 'unknown'})",
        )

    def schema(self, bundle: str) -> Schema:
        """Inputs of the newest version of a bundle. Raises: NotFound, BundleError."""
        return self._repository.open(bundle).manifest.model_schema

    def _versions(self, bundle: str, after: int) -> tuple[tuple[int, float], ...]:
        """Versions that passed the gate, newer than `after`, with their shift of the mean score."""
        found = []
        for version in self._repository.versions(bundle):
            if int(version) <= after:
                continue
            if (bundle, version) not in self._shifts:
                self._shifts[bundle, version] = self._shift(bundle, version)
            shift = self._shifts[bundle, version]
            if shift is not None:
                found.append((int(version), shift))
        return tuple(found)

    def _shift(self, bundle: str, version: str) -> float | None:
        try:
            manifest = self._repository.manifest(bundle, version)
        except BatonError:
            return None
        if not manifest.servable:
            return None
        return _number(manifest.metrics, "score_shift")


def _number(metrics: Mapping[str, float | None], name: str) -> float:
    # A version without a shift was not measured against its predecessor: treat it as another model.
    value = metrics.get(name)
    return 1.0 if value is None or not math.isfinite(value) else float(value)

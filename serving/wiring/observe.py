"""What the control process sees of the others: their status files, and the versions in the repository.

A status file older than `FRESH_S` seconds is that of a process which is gone or stuck; it counts as not there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.bundle.versions import Repository
from pipeline.clock import Clock
from pipeline.errors import BatonError
from pipeline.schema import Schema
from serving.rollout.reconcile import Observed
from serving.rollout.routing import Endpoint
from serving.rollout.store import StoredRollout
from serving.state.kill import KillSwitch
from serving.telemetry.latency import EDGES, quantile

__all__ = ["Observer", "read_status", "served_versions"]

FRESH_S = 10.0


def read_status(folder: Path, now_ms: int) -> dict[str, dict[str, Any]]:
    """Status files by process name. Each gets `age_s`; `fresh` is False where a process has stopped writing."""
    found = {}
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        try:
            status = json.loads(path.read_text())
        except (OSError, ValueError):
            continue  # removed or replaced under our hands; the next look sees it
        if not isinstance(status, dict):
            continue  # not one of ours
        if isinstance(status.get("time_ms"), (int, float)):
            age = (now_ms - status["time_ms"]) / 1000
            status |= {"age_s": age, "fresh": age <= FRESH_S}
        found[path.stem] = status
    return found


def served_versions(processes: Mapping[str, Mapping[str, Any]]) -> dict[str, set[str]]:
    """By bundle: versions that a process answers with, or wants to."""
    served: dict[str, set[str]] = {}
    for status in processes.values():
        for arms in status.get("endpoints", {}).values():
            for arm in arms.values():
                if isinstance(arm, dict) and "bundle" in arm:
                    served.setdefault(arm["bundle"], set()).update({arm["version"], arm["wanted"]} - {""})
    return served


class Observer:
    """Answers what a rollout's pass asks (`RolloutController.observe`)."""

    def __init__(self, status: Path, repository: Repository, kill: KillSwitch, clock: Clock) -> None:
        self._status = status
        self._repository = repository
        self._kill = kill
        self._clock = clock
        self._shifts: dict[tuple[str, str], float | None] = {}

    def __call__(self, rollout: StoredRollout, endpoint: Endpoint) -> Observed:
        now = self._clock.wall_ms()
        status = {name: s for name, s in read_status(self._status, now).items() if s.get("fresh")}
        arms = [
            s["endpoints"][endpoint.name]["candidate"]["recent"]
            for name, s in status.items()
            if name.startswith("lane-") and "candidate" in s.get("endpoints", {}).get(endpoint.name, {})
        ]
        counts = np.zeros(len(EDGES) + 1, np.int64)
        for recent in arms:
            for bucket, count in recent["counts"].items():
                counts[int(bucket)] += count
        p99 = quantile(counts, 0.99)
        limit = rollout.spec.guards.p99_ms_max
        both = status.get("shadow", {}).get("paired", {}).get(endpoint.name, {})
        windows = [recent["seconds"] for recent in arms] + ([both["seconds"]] if both else [])
        errors = sum(recent["errors"] for recent in arms)
        missed = sum(recent["deadline_misses"] for recent in arms)
        why = self._kill.why(endpoint.name)
        return Observed(
            since_ms=now - round(1000 * max(windows, default=0)),
            requests=int(counts.sum()) + errors + missed,
            errors=errors,
            deadline_misses=missed,
            # Bucket b holds latencies up to EDGES[b]: those wholly above the limit are slow for certain.
            slow=None if limit is None else int(counts[int(np.searchsorted(EDGES, limit / 1000)) + 1 :].sum()),
            p99_ms=None if p99 is None else 1000 * p99,
            scored_rows=both.get("rows", 0),
            predicted_candidate=both.get("candidate", 0.0),
            predicted_stable=both.get("stable", 0.0),
            versions=self._versions(rollout.spec.candidate.bundle, rollout.state.candidate_version),
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
    # A version that does not say how it moved the scores was not measured against its predecessor: call it another model.
    value = metrics.get(name)
    return 1.0 if value is None else float(value)

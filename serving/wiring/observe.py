"""Observation of an endpoint for its rollout: figures of the lanes' status files, and versions in the repository."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.bundle.versions import Repository, is_number
from pipeline.clock import Clock
from pipeline.schema import Schema
from serving.rollout.label_path import LabelPath
from serving.rollout.observed import ArmCounters, Observed
from serving.rollout.routing import Endpoint, is_observed
from serving.rollout.store import StoredRollout
from serving.runtime import status
from serving.runtime.status import LaneArm, LaneStatus, RecentTotals, Report, ScoreSums, Statuses
from serving.state.kill import KillSwitch
from serving.telemetry.histogram import EDGES, added
from serving.wiring.new_versions import NewVersions

__all__ = ["Observer"]

LAG_MS = 60_000
"""Time after a change within which lanes may still answer with the version before."""
_Lane = tuple[LaneStatus, Mapping[str, LaneArm]]


class Observer:
    """Called at each pass of the rollouts (`RolloutController.observe`): it reads the statuses once for all of them.

    Args:
        verdict: why a version, by bundle and number, must not serve; "": nothing is known against it; None: not known yet.
            A rollout goes on with whole versions alone.
        lanes: processes that should answer here.
    """

    def __init__(
        self,
        folder: Path,
        repository: Repository,
        kill: KillSwitch,
        clock: Clock,
        verdict: Callable[[str, str], str | None] = lambda bundle, version: "",
        lanes: Collection[str] = (),
    ) -> None:
        self._folder = folder
        self._repository = repository
        self._kill = kill
        self._clock = clock
        self._versions = NewVersions(repository, verdict)
        self._lanes = lanes

    def __call__(self) -> Callable[[StoredRollout, Endpoint], Observed]:
        now = self._clock.wall_ms()
        statuses = status.read(self._folder, now)
        return partial(self._observed, now, statuses.fresh(), "; ".join(self._illnesses(statuses, now)))

    def _illnesses(self, statuses: Statuses, now: int) -> Iterator[str]:
        """What is wrong with serving itself, whatever it answers."""
        for name in self._lanes:
            if name in statuses.lanes and not statuses.lanes[name].fresh:
                yield f"{name} is gone"
        for name, lane in statuses.fresh().lanes.items():
            if lane.status.writer.away:
                yield f"{name} cannot write the traffic log: {lane.status.writer.away}"
            if lane.status.state_away is not None:
                yield f"{name}: {lane.status.state_away.told(now)}"

    def _observed(self, now: int, statuses: Statuses, ill: str, rollout: StoredRollout, endpoint: Endpoint) -> Observed:
        named, bundle = rollout.state.candidate_version, rollout.spec.candidate.bundle
        version = str(named) if named and rollout.state.active else ""
        lanes, lagging = _answering(statuses.lanes, endpoint.name, version)
        if lagging:
            if now - rollout.state.judged_from_ms > LAG_MS:
                lanes += lagging  # what answers for the candidate is judged, whatever it is
            told = f"{', '.join(lane.process for lane, _ in lagging)} answers with another version than {version} of {bundle}"
            ill = "; ".join(filter(None, (ill, told)))
        limit = rollout.spec.guards.p99_ms_max
        candidate, stable = (
            _counted([arms[arm] for _, arms in lanes if arm in arms], limit) for arm in ("candidate", "stable")
        )
        began = [lane.time_ms - round(1000 * arm.recent.seconds) for lane, arms in lanes for arm in arms.values()]
        shadow = statuses.shadow
        scores = ScoreSums() if shadow is None else shadow.status.paired.get(endpoint.name, ScoreSums())
        if version and scores.candidate_version not in ("", version):
            scores = ScoreSums()
        scored_ms = now if shadow is None else shadow.status.time_ms
        why = self._kill.why(endpoint.name)
        return Observed(
            since_ms=min(began, default=now),
            requests=candidate.requests,
            errors=candidate.errors,
            deadline_misses=candidate.deadline_misses,
            slow=candidate.slow,
            p99_ms=candidate.p99_ms,
            degraded=candidate.degraded,
            stable=stable,
            scored_since_ms=scored_ms - round(1000 * scores.seconds),
            scored_rows=scores.rows,
            scored_weight=scores.weight,
            shadow=ArmCounters(requests=scores.predictions, degraded=scores.degraded),
            predicted_candidate=scores.candidate,
            predicted_stable=scores.stable,
            ill=ill,
            labels=LabelPath.of(
                [
                    seen
                    for lane in statuses.lanes.values()
                    if (seen := lane.status.labels.get(endpoint.name)) is not None
                ],
                candidate.requests + stable.requests,
            ),
            stable_version=_stable_version(lanes, endpoint.stable.bundle),
            stable_versions=self._versions.after(
                endpoint.stable.bundle, endpoint.stable_held, endpoint.stable_held, endpoint.candidate
            )
            if endpoint.stable_held and not endpoint.stable.version
            else (),
            versions=self._versions.after(bundle, named, rollout.state.newest_known, endpoint.stable_now)
            if rollout.state.active and not is_observed(bundle)
            else (),
            killed=None if why is None else f"{why[0] or 'no reason given'} ({why[1] or 'unknown'})",
        )

    def schema(self, bundle: str) -> Schema:
        """Inputs of the newest version of a bundle. Raises: NotFound, BundleError."""
        return self._repository.open(bundle).manifest.model_schema


def _answering(lanes: Mapping[str, Report[LaneStatus]], endpoint: str, version: str) -> tuple[list[_Lane], list[_Lane]]:
    """Lanes with their arms of an endpoint, and those whose candidate is another version: their figures are not of this one."""
    found, lagging = [], []
    for lane in lanes.values():
        arms = lane.status.endpoints.get(endpoint, {})
        candidate = arms.get("candidate")
        if candidate is not None and version and candidate.version not in ("", version):
            lagging.append((lane.status, arms))
        elif arms:
            found.append((lane.status, arms))
    return found, lagging


def _stable_version(lanes: Collection[_Lane], bundle: str) -> int:
    """The newest version that a lane answers with for stable, 0 where none does."""
    arms = [arms["stable"] for _, arms in lanes if "stable" in arms]
    return max((int(arm.version) for arm in arms if arm.bundle == bundle and is_number(arm.version)), default=0)


def _counted(arms: Collection[LaneArm], limit_ms: float | None) -> ArmCounters:
    """Counters of one arm over all lanes; `limit_ms`: answers above it are slow."""
    recent: RecentTotals = added(arm.recent for arm in arms)
    # Bucket b holds latencies up to EDGES[b]: those wholly above the limit are slow for certain.
    fast = None if limit_ms is None else int(np.searchsorted(EDGES, limit_ms / 1000))
    return ArmCounters(
        requests=recent.requests + recent.errors + recent.deadline_misses,
        errors=recent.errors,
        deadline_misses=recent.deadline_misses,
        degraded=recent.degraded,
        slow=None if fast is None else sum(n for bucket, n in recent.counts.items() if bucket > fast),
        p99_ms=recent.p99_ms,
    )

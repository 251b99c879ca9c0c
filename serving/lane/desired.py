"""Desired model versions of a process, read from the control store, the repository and the load markers.

This file decides which version "the newest" is. It knows nothing of what is loaded. Read next: `serving.lane.registry`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pipeline.bundle.versions import Repository
from pipeline.clock import Clock
from pipeline.errors import BatonError, NotFound
from serving.lane.served import ARM_NAMES, Key
from serving.rollout.routing import Arm, ArmSpec, Endpoint
from serving.runtime.status import StateAway
from serving.telemetry import Telemetry

__all__ = ["DIRECT", "Desired", "DesiredVersions", "EndpointSource", "publish_state_away"]

DIRECT = "direct"
"""Arm name of a request that calls a model by its own name."""

log = logging.getLogger(__name__)


class EndpointSource(Protocol):
    """Store of endpoints, as a lane needs it."""

    def data_version(self) -> int:
        """Number that changes with every change by any process; cheap to read."""

    def endpoints(self) -> Mapping[str, Endpoint]:
        """All endpoints by name."""


@dataclass
class Desired:
    """Desired state: arms resolved to versions, models loaded by name, and the reason where a version was not found.

    `asked`: bundles that are to be loaded by name, with the time of the last request (st_mtime_ns); None before a look.
    """

    endpoints: dict[str, Endpoint] = field(default_factory=dict)
    arms: dict[tuple[str, Arm], Key] = field(default_factory=dict)
    problems: dict[tuple[str, str], str] = field(default_factory=dict)
    extra: dict[str, Key] = field(default_factory=dict)
    asked: Mapping[str, int] | None = None

    def asked_since(self, before: Desired) -> set[str]:
        """Bundles whose load was requested after another look."""
        if self.asked is None or before.asked is None:
            return set()
        return {bundle for bundle, at in self.asked.items() if before.asked.get(bundle) != at}

    @property
    def keys(self) -> set[Key]:
        """All desired versions."""
        return {*self.arms.values(), *self.extra.values()}


class DesiredVersions:
    """Reader of the desired state. `look` is for one thread.

    Args:
        source: of endpoints; None: only models loaded by name.
        repository: of bundles.
        loads: folder of load markers, shared by all lanes: a file for every bundle that is to be loaded by name.
        clock: dates the time from which `source` does not answer.

    Attributes:
        away: set while `source` does not answer.
    """

    def __init__(self, source: EndpointSource | None, repository: Repository, loads: Path, clock: Clock) -> None:
        self._source = source
        self._repository = repository
        self.loads = loads
        self._clock = clock
        self.away: StateAway | None = None
        self._data_version: int | None = None
        self._endpoints: list[Endpoint] = []
        self._versions: dict[str, tuple[tuple[str, ...], dict[str, bool | None]]] = {}
        self._marked: dict[str, int] = {}
        self._logged: dict[str, str] = {}

    def look(self, failed: Collection[Key]) -> Desired:
        """The desired state now. `failed` versions are skipped where an older version may serve.

        What cannot be read stays as it was: the endpoints, the versions of a bundle, the load markers. One of them holds
        up no other, so that a weight is followed also where no folder can be listed.
        """
        desired = Desired()
        self._read_endpoints()
        endpoints = self._endpoints
        servable: dict[str, list[str]] = {}
        for endpoint in endpoints:
            desired.endpoints[endpoint.name] = endpoint
            for arm, spec in ((ARM_NAMES[0], endpoint.stable), (ARM_NAMES[1], endpoint.candidate)):
                if spec is None:
                    continue
                try:
                    desired.arms[endpoint.name, arm] = self._version_of(spec, servable, failed)
                except BatonError as error:
                    desired.problems[endpoint.name, arm] = str(error)
        desired.asked = self._markers()
        for bundle in desired.asked:
            try:
                desired.extra[bundle] = self._version_of(ArmSpec(bundle=bundle), servable, failed)
            except BatonError as error:
                desired.problems[bundle, DIRECT] = str(error)
        return desired

    def _markers(self) -> Mapping[str, int]:
        try:
            self._marked = {marker.name: marker.stat().st_mtime_ns for marker in sorted(self.loads.iterdir())}
        except FileNotFoundError:  # the folder is not there, or one was unloaded just now: the next look is right
            self._marked = {} if not self.loads.exists() else self._marked
        except OSError as error:
            self._log_once("loads", error, "models loaded by name stay as they were")
        return self._marked

    def _read_endpoints(self) -> None:
        if self._source is None:
            return
        began_ms = self._clock.wall_ms()
        try:
            version = self._source.data_version()
            if version != self._data_version:
                self._endpoints = list(self._source.endpoints().values())
                self._data_version = version
            self._logged.pop("store", None)
            self.away = None
        except Exception as error:
            self.away = StateAway(self.away.since_ms if self.away else began_ms, str(error) or type(error).__name__)
            self._log_once("store", error, "the control store cannot be read; endpoints stay as they were")

    def _log_once(self, what: str, error: Exception, meaning: str) -> None:
        """Not ten times a second."""
        if self._logged.get(what) != str(error):
            self._logged[what] = str(error)
            log.error("%s: %s", meaning, error, exc_info=not isinstance(error, BatonError | OSError))

    def _version_of(self, spec: ArmSpec, servable: dict[str, list[str]], failed: Collection[Key]) -> Key:
        if spec.version:
            return spec.bundle, str(spec.version)
        versions = servable.get(spec.bundle)
        if versions is None:
            versions = servable[spec.bundle] = self._servable(spec.bundle)
        for version in versions:
            if (spec.bundle, version) not in failed:
                return spec.bundle, version
        if versions:
            return spec.bundle, versions[0]
        raise NotFound(f"bundle {spec.bundle!r} has no version that may serve")

    def _servable(self, bundle: str) -> list[str]:
        """Versions that may serve, newest first. A version never changes, so each manifest is read once; one that cannot
        be opened is read again, since it may be repaired."""
        known, servable = self._versions.get(bundle, ((), {}))
        try:
            versions = tuple(self._repository.versions(bundle))
            self._logged.pop(bundle, None)
        except OSError as error:
            self._log_once(bundle, error, f"versions of bundle {bundle} stay as they were")
            versions = known
        if versions != known or None in servable.values():
            servable = {v: self._may_serve(bundle, v, servable) for v in versions}
            self._versions[bundle] = versions, servable
        return [v for v in reversed(versions) if servable[v]]

    def _may_serve(self, bundle: str, version: str, known: Mapping[str, bool | None]) -> bool | None:
        """Whether a version may serve; None: it cannot be opened."""
        servable = known.get(version)
        if servable is not None:
            return servable
        try:
            return self._repository.manifest(bundle, version).servable
        except BatonError as error:
            if version not in known:  # once, not ten times a second
                log.error("version %s of bundle %s cannot be opened and is passed over: %s", version, bundle, error)
            return None


def publish_state_away(telemetry: Telemetry, away: Callable[[], StateAway | None], clock: Clock) -> None:
    """Publish for how long the state has not answered this process."""

    def read() -> dict[tuple[str, ...], float]:
        found = away()
        return {(): 0.0 if found is None else found.seconds(clock.wall_ms())}

    telemetry.gauges("baton_state_away_seconds", "Time that the state has not answered; 0: it answers", (), read)

"""What a process should have and do, read from the control store, the kill files, the repository and the wishes for models.

It decides which version "the newest" is, and knows nothing of what is loaded. Next stop: `serving.lane.registry`.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pipeline.bundle.versions import Repository
from pipeline.errors import BatonError, NotFound
from serving.lane.served import ARM_NAMES, Key
from serving.rollout.routing import Arm, ArmSpec, Endpoint
from serving.state.kill import KillSwitch

__all__ = ["DIRECT", "Desired", "DesiredVersions", "EndpointSource"]

DIRECT = "direct"
"""Stands for the arm where a model is called by its own name."""

log = logging.getLogger(__name__)


class EndpointSource(Protocol):
    """Where endpoints are kept, as far as a lane looks at it."""

    def data_version(self) -> int:
        """A number that changes with every change by any process; cheap."""

    def endpoints(self) -> Mapping[str, Endpoint]:
        """All endpoints by name."""


@dataclass
class Desired:
    """What should be there: arms resolved to versions, models asked for by name, reasons where that was impossible."""

    endpoints: dict[str, Endpoint] = field(default_factory=dict)
    arms: dict[tuple[str, Arm], Key] = field(default_factory=dict)
    problems: dict[tuple[str, str], str] = field(default_factory=dict)
    extra: dict[str, Key] = field(default_factory=dict)
    killed: frozenset[str] = frozenset()

    @property
    def keys(self) -> set[Key]:
        """All versions that should be there."""
        return {*self.arms.values(), *self.extra.values()}


class DesiredVersions:
    """Looks at all that others may change. For one thread.

    Args:
        source: endpoints; None: none but models loaded by name.
        kill: the kill files.
        repository: of bundles.
        loads: folder with a file for every bundle that someone asked to have loaded by name.
    """

    def __init__(self, source: EndpointSource | None, kill: KillSwitch, repository: Repository, loads: Path) -> None:
        self._source = source
        self._kill = kill
        self._repository = repository
        self._loads = loads
        self._data_version: int | None = None
        self._endpoints: list[Endpoint] = []
        self._versions: dict[str, tuple[tuple[str, ...], dict[str, bool | None]]] = {}
        self._complaint = ""

    def look(self, failed: Collection[Key]) -> Desired:
        """What should be there now; `failed` are versions to pass over where an older one may do.

        A store that cannot be read leaves the endpoints as they were and the kill files at work.
        """
        desired = Desired(killed=self._kill.engaged())
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
        for marker in sorted(self._loads.iterdir()) if self._loads.is_dir() else []:
            try:
                desired.extra[marker.name] = self._version_of(ArmSpec(bundle=marker.name), servable, failed)
            except BatonError as error:
                desired.problems[marker.name, DIRECT] = str(error)
        return desired

    def _read_endpoints(self) -> None:
        if self._source is None:
            return
        try:
            version = self._source.data_version()
            if version != self._data_version:
                self._endpoints = list(self._source.endpoints().values())
                self._data_version = version
            self._complaint = ""
        except Exception as error:
            if str(error) != self._complaint:  # once, not ten times a second
                self._complaint = str(error)
                log.exception("the control store cannot be read; endpoints stay as they were")

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
        be opened is looked at again, for it may be repaired."""
        versions = tuple(self._repository.versions(bundle))
        known, servable = self._versions.get(bundle, ((), {}))
        if versions != known or None in servable.values():
            servable = {v: self._may_serve(bundle, v, servable) for v in versions}
            self._versions[bundle] = versions, servable
        return [v for v in reversed(versions) if servable[v]]

    def _may_serve(self, bundle: str, version: str, known: Mapping[str, bool | None]) -> bool | None:
        """None: it cannot be opened."""
        told = known.get(version)
        if told is not None:
            return told
        try:
            return self._repository.manifest(bundle, version).servable
        except BatonError as error:
            if version not in known:  # once, not ten times a second
                log.error("version %s of bundle %s cannot be opened and is passed over: %s", version, bundle, error)
            return None

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
from serving.rollout.document import StateDocument
from serving.rollout.identity import StateLost
from serving.rollout.routing import Arm, ArmSpec, Endpoint
from serving.rollout.status.retired import RETIRED
from serving.runtime.status import StateAway
from serving.telemetry import Telemetry

__all__ = ["DIRECT", "Desired", "DesiredVersions", "EndpointSource", "publish_state_away"]

DIRECT = "direct"
"""Arm name of a request that calls a model by its own name."""
MOST_PAIRS_COUNT = 4096
"""Pairs of versions whose inputs have been compared that are remembered."""

log = logging.getLogger(__name__)


class EndpointSource(Protocol):
    """Store of endpoints, as a lane needs it."""

    def data_version(self) -> int:
        """Number that changes with every change by any process; cheap to read."""

    def document(self) -> StateDocument:
        """All endpoints, and the settings of the installation."""


@dataclass
class Desired:
    """Desired state: arms resolved to versions, models loaded by name, and the reason where a version was not found.

    `passed_over`: newer versions that cannot be opened, or whose inputs are not those of the stable arm, and why.
    `asked`: bundles that are to be loaded by name, with the time of the last request (st_mtime_ns); None before a look.
    `there`: versions of the bundles whose newest is wanted.
    """

    endpoints: dict[str, Endpoint] = field(default_factory=dict)
    arms: dict[tuple[str, Arm], Key] = field(default_factory=dict)
    problems: dict[tuple[str, str], str] = field(default_factory=dict)
    extra: dict[str, Key] = field(default_factory=dict)
    passed_over: dict[Key, str] = field(default_factory=dict)
    asked: Mapping[str, int] | None = None
    there: dict[str, tuple[str, ...]] = field(default_factory=dict)

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
        known: what this home saw of `source` before; it is the answer of the first look, and counts until `source` can be read.

    Attributes:
        away: set while `source` does not answer, or is lost.
        document: what was read last; None: nothing yet.
    """

    def __init__(
        self,
        source: EndpointSource | None,
        repository: Repository,
        loads: Path,
        clock: Clock,
        known: StateDocument | None = None,
    ) -> None:
        self._source = source
        self._repository = repository
        self.loads = loads
        self._clock = clock
        self.away: StateAway | None = None
        self.document: StateDocument | None = None
        self._data_version: int | None = None
        self._identity = ""
        self._endpoints: Mapping[str, Endpoint] = {}
        self._retired: Mapping[str, str] = {}
        self._from_home = known is not None
        if known is not None:
            self._take(known)
        self._versions: dict[str, tuple[tuple[str, ...], dict[str, bool | str]]] = {}
        self._agreed: dict[tuple[Key, Key], str] = {}
        self._marked: dict[str, int] = {}
        self._logged: dict[str, str] = {}

    def look(self, failed: Collection[Key]) -> Desired:
        """The desired state now. `failed` versions are skipped where an older version may serve.

        What cannot be read stays as it was: the endpoints, the versions of a bundle, the load markers. One of them holds
        up no other, so that a weight is followed also where no folder can be listed.
        """
        desired = Desired()
        self._read_endpoints()
        servable: dict[str, list[str]] = {}
        for endpoint in self._endpoints.values():
            desired.endpoints[endpoint.name] = endpoint
            stable: Key | None = None
            for arm, spec in ((ARM_NAMES[0], endpoint.stable), (ARM_NAMES[1], endpoint.candidate)):
                if spec is None or spec.observed:
                    continue
                try:
                    held = endpoint.stable_held if arm == "stable" else 0
                    options = self._options(spec, servable, failed, held)
                except BatonError as error:
                    desired.problems[endpoint.name, arm] = str(error)
                    continue
                if arm == "stable":
                    stable = options[0]
                elif stable is not None:
                    options = self._agreeing(stable, options, desired)
                desired.arms[endpoint.name, arm] = options[0]
        desired.asked = self._markers()
        for bundle in desired.asked:
            try:
                desired.extra[bundle] = self._options(ArmSpec(bundle=bundle), servable, failed)[0]
            except BatonError as error:
                desired.problems[bundle, DIRECT] = str(error)
        for bundle in servable:
            desired.there[bundle] = self._versions[bundle][0]
            newest = max((int(key[1]) for key in desired.keys if key[0] == bundle), default=0)
            for version, fault in self._versions[bundle][1].items():
                if isinstance(fault, str) and int(version) > newest:
                    desired.passed_over[bundle, version] = fault
        wanted = desired.keys  # by another endpoint, maybe
        desired.passed_over = {key: fault for key, fault in desired.passed_over.items() if key not in wanted}
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
        if self._from_home:  # models are loaded while the source is asked
            self._from_home = False
            return
        began_ms = self._clock.wall_ms()
        try:
            version = self._source.data_version()
            if version != self._data_version:
                document = self._source.document()
                gone = sorted(self._endpoints.keys() - document.endpoints.keys())
                if gone and document.identity == self._identity:
                    # No verb removes an endpoint: who does not find one has not been told to stop serving it.
                    raise StateLost(
                        f"the state has no endpoint {', '.join(gone)} any more, and nothing removes one: part of it was lost",
                        "empty",
                    )
                self._take(document)
                self.document, self._data_version = document, version
            self._logged.pop("store", None)
            self.away = None
        except Exception as error:
            since_ms = self.away.since_ms if self.away else began_ms
            self.away = StateAway(since_ms, str(error) or type(error).__name__, isinstance(error, StateLost))
            self._log_once("store", error, "the control store cannot be read; endpoints stay as they were")

    def _take(self, document: StateDocument) -> None:
        self._identity, self._endpoints = document.identity, document.endpoints
        self._retired = {str(key): str(why) for key, why in document.settings.get(RETIRED, {}).items()}

    def _log_once(self, what: str, error: Exception, meaning: str) -> None:
        """Not ten times a second."""
        if self._logged.get(what) != str(error):
            self._logged[what] = str(error)
            log.error("%s: %s", meaning, error, exc_info=not isinstance(error, BatonError | OSError))

    def _options(
        self, spec: ArmSpec, servable: dict[str, list[str]], failed: Collection[Key], held: int = 0
    ) -> list[Key]:
        """The versions that an arm may have now, best first: the one that it names, or those that may serve and have not
        failed, newest first; the newest where all have failed. `held`: the newest that it may have, 0: any.

        Raises:
            NotFound: none may serve.
        """
        if spec.version:
            return [(spec.bundle, str(spec.version))]
        versions = servable.get(spec.bundle)
        if versions is None:
            versions = servable[spec.bundle] = self._servable(spec.bundle)
        if not versions:
            faults = [fault for fault in self._versions[spec.bundle][1].values() if isinstance(fault, str)]
            raise NotFound(
                f"bundle {spec.bundle!r} has no version that may serve" + "".join(f"; {f}" for f in faults[-1:])
            )
        versions = [version for version in versions if f"{spec.bundle}/{version}" not in self._retired]
        if not versions:
            raise NotFound(f"bundle {spec.bundle!r} has no version that may serve and is not retired")
        up_to = [version for version in versions if not held or int(version) <= held]
        keys = [(spec.bundle, version) for version in up_to or versions]
        return [key for key in keys if key not in failed] or keys[:1]

    def _agreeing(self, stable: Key, options: list[Key], desired: Desired) -> list[Key]:
        """The candidate's options from the newest one on whose inputs are stable's; all of them where none are."""
        faults: dict[Key, str] = {}
        for at, key in enumerate(options):
            fault = self._disagreement(stable, key)
            if not fault:
                desired.passed_over.update(faults)
                return options[at:]
            faults[key] = fault
        return options

    def _disagreement(self, stable: Key, candidate: Key) -> str:
        """Why two versions cannot be arms of one endpoint, by their manifests; "": they can, or one cannot be opened."""
        pair = stable, candidate
        if pair not in self._agreed:
            if len(self._agreed) >= MOST_PAIRS_COUNT:
                self._agreed.clear()
            try:
                schemas = [self._repository.manifest(*key).model_schema for key in pair]
            except BatonError:
                return ""  # loading it says so
            difference = schemas[1].inputs_match(schemas[0])
            self._agreed[pair] = (
                ""
                if difference is None
                else f"its inputs are not those of stable {stable[0]} version {stable[1]}: {difference}"
            )
        return self._agreed[pair]

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
        if versions != known or any(isinstance(fault, str) for fault in servable.values()):
            servable = {v: self._may_serve(bundle, v, servable) for v in versions}
        self._versions[bundle] = versions, servable
        return [v for v in reversed(versions) if servable[v] is True]

    def _may_serve(self, bundle: str, version: str, known: Mapping[str, bool | str]) -> bool | str:
        """Whether a version may serve; where it cannot be opened, why."""
        servable = known.get(version)
        if isinstance(servable, bool):
            return servable
        try:
            return self._repository.manifest(bundle, version).servable
        except BatonError as error:
            if version not in known:  # once, not ten times a second
                log.error("version %s of bundle %s cannot be opened and is passed over: %s", version, bundle, error)
            return str(error)


def publish_state_away(telemetry: Telemetry, away: Callable[[], StateAway | None], clock: Clock) -> None:
    """Publish for how long the state has not answered this process, and whether it is lost."""

    def seconds() -> dict[tuple[str, ...], float]:
        found = away()
        return {(): 0.0 if found is None or found.lost else found.seconds(clock.wall_ms())}

    def lost() -> dict[tuple[str, ...], float]:
        found = away()
        return {(): float(found is not None and found.lost)}

    telemetry.gauges("baton_state_away_seconds", "Time that the state has not answered; 0: it answers", (), seconds)
    telemetry.gauges("baton_state_lost", "1 while the state is empty, another one or gone; 0: it is not", (), lost)

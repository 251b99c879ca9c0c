"""Registry of the model versions in this process, and of the endpoint arms that they answer for.

Level-triggered: a watcher thread compares the desired versions with the loaded ones, a loader thread loads and warms
the missing ones at low priority, and what may answer is one immutable `Snapshot` behind one reference. A request takes
the snapshot once and keeps its models alive by holding them; there is no other count of users. The registry only reads:
weights and versions are changed by the control process, which need not be running. The kill switch has threads of its
own (`serving.lane.kill_watch`), which wait for nothing that these two wait for.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from types import MappingProxyType

from pipeline.bundle.versions import Repository
from pipeline.clock import Clock
from pipeline.errors import BatonError, BundleError, Conflict, NotFound, NotReady, RemoteTimeout, RemoteUnavailable
from pipeline.schema import Schema
from serving.lane.desired import DIRECT, Desired, DesiredVersions
from serving.lane.joined import JoinedArms
from serving.lane.kill_watch import KillWatch
from serving.lane.loader import NoMemory, VersionLoader
from serving.lane.probes import NICE, PATIENCE_S, SetAside
from serving.lane.served import ARM_NAMES, Key, ModelReport, Served, ServedEndpoint, Snapshot, mismatch
from serving.rollout.routing import Arm
from serving.runtime.process import step_back
from serving.runtime.status import ArmReport, StateAway
from serving.state.kill import KillSwitch
from serving.state.snapshot import SnapshotFile

__all__ = ["Registry"]

POLL_S = 0.1
RETRY_S = 30.0
REMOTE_RETRY_S = 1.0
"""The same of a version on another server that does not answer."""

log = logging.getLogger(__name__)


@dataclass
class _Failed:
    reason: str
    again_at: float
    for_memory: bool = False


class Registry:
    """The models of one process.

    Args:
        desired_versions: which versions this process should have; used by the watcher thread alone.
        kill: switch that takes endpoints from their candidates.
        repository: of bundles.
        loader: used by the loader thread alone.
        nice: priority of the loader thread; None leaves it (threads that a network opens inherit it).
        retry_s: seconds after which a version that could not be loaded is tried again.
        snapshot_file: for `keep_state`.
    """

    def __init__(
        self,
        desired_versions: DesiredVersions,
        kill: KillSwitch,
        repository: Repository,
        loader: VersionLoader,
        clock: Clock,
        *,
        nice: int | None = NICE,
        retry_s: float = RETRY_S,
        snapshot_file: SnapshotFile | None = None,
    ) -> None:
        self._desired_versions = desired_versions
        self._repository = repository
        self._loader = loader
        self._clock = clock
        self._nice = nice
        self._retry_s = retry_s
        self._snapshot_file = snapshot_file
        self._snapshot = Snapshot(MappingProxyType({}), MappingProxyType({}))
        self._changed = threading.Condition()
        # Guarded by `_changed`:
        self._desired = Desired()
        self._loaded: dict[Key, Served] = {}
        self._failed: dict[Key, _Failed] = {}
        self._loading: Key | None = None
        self._killed: frozenset[str] = frozenset()
        self._blind = ""
        self._joined = JoinedArms()
        self._schemas: dict[Key, Schema] = {}
        self._passes = 0
        self._look_now = False
        self._stopping = False
        self._kill_watch = KillWatch(kill, self._endpoint_names, self._set_killed)
        self._threads: list[threading.Thread] = []
        if loader.probes is not None:
            loader.probes.listener = self._wake
        self.listeners: list[Callable[[Snapshot], None]] = []

    # What requests need.

    @property
    def snapshot(self) -> Snapshot:
        """Versions that may answer now. Take it once per request."""
        return self._snapshot

    def expects(self, bundle: str, version: str = "") -> bool:
        """Whether a version is wanted here and may still become ready."""
        with self._changed:
            return any(key[0] == bundle and version in ("", key[1]) for key in self._desired.keys)

    def wanted(self) -> bool:
        """Whether any model is wanted."""
        with self._changed:
            return bool(self._desired.endpoints or self._desired.extra)

    def settled(self) -> bool:
        """Whether every wanted version is loaded or has failed."""
        return not self.loading()

    def loading(self) -> list[str]:
        """Wanted versions that are neither loaded nor have failed, as bundle/version."""
        with self._changed:
            return sorted("/".join(k) for k in self._desired.keys if k not in self._loaded and k not in self._failed)

    # What operators need.

    def bundles(self) -> list[str]:
        """Names in the repository, loaded or not."""
        return self._repository.names()

    def arms(self) -> dict[str, dict[str, ArmReport]]:
        """Report of every arm of every endpoint."""
        with self._changed:
            return {
                name: {
                    arm: self._arm_report(name, arm)
                    for arm in ARM_NAMES
                    if arm == "stable" or endpoint.candidate is not None
                }
                for name, endpoint in self._desired.endpoints.items()
            }

    def models(self) -> list[ModelReport]:
        """Report per bundle of the repository: each version that is loaded, loading or failed, else the newest as not
        loaded."""
        with self._changed:
            wanted = self._desired.keys
            known = set(self._loaded) | wanted | set(self._faults())
            reports = [self._model_report(key) for key in sorted(known, key=lambda k: (k[0], int(k[1])))]
        named = {key[0] for key in known}
        for bundle in self._repository.names():
            versions = self._repository.versions(bundle)
            if bundle not in named and versions:
                reports.append(ModelReport(bundle, versions[-1], "UNAVAILABLE", "not loaded"))
        return reports

    def faults(self) -> dict[str, str]:
        """Reasons why versions could not be loaded, by `bundle/version`."""
        with self._changed:
            return {f"{bundle}/{version}": reason for (bundle, version), reason in self._faults().items()}

    def blind(self) -> str:
        """Reason why the kill files cannot be looked at, so that candidates get nothing; "": they can."""
        with self._changed:
            return self._blind

    def state_away(self) -> StateAway | None:
        """Set while the state does not answer or is lost, so that endpoints stay as they were."""
        return self._desired_versions.away

    def keep_state(self) -> None:
        """Write what this process sees of the state into the home, where it has changed."""
        if self._snapshot_file is not None:
            self._snapshot_file.keep(self._desired_versions.document, self._kill_watch.shared_flags())

    def load(self, bundle: str, timeout: float = 60.0) -> None:
        """Load the newest servable version of a bundle by name in all lanes, and wait until this lane has it.

        Raises:
            NotFound: no such bundle.
            NotReady: it cannot be loaded, or not in time.
        """
        if bundle not in self._repository.names():
            raise NotFound(f"model {bundle!r} is not in the repository; it has {self._repository.names() or 'none'}")
        self._desired_versions.loads.mkdir(parents=True, exist_ok=True)
        if self._loader.probes is not None:
            self._loader.probes.forget(bundle)
        (self._desired_versions.loads / bundle).touch()
        self._try_again({bundle})

        def settled() -> bool:
            key = self._desired.extra.get(bundle)
            if key is None:
                return (bundle, DIRECT) in self._desired.problems
            return key in self._loaded or key in self._failed

        self._look_again()
        with self._changed:
            if not self._changed.wait_for(settled, timeout):
                raise NotReady(f"model {bundle!r} is still loading; ask for it again later")
            wanted = self._desired.extra.get(bundle)
            if wanted is None:
                raise NotReady(f"model {bundle!r} cannot be loaded: {self._desired.problems[bundle, DIRECT]}")
            if wanted in self._failed:
                raise NotReady(f"model {bundle!r} version {wanted[1]} cannot be loaded: {self._failed[wanted].reason}")

    def unload(self, bundle: str, timeout: float = 10.0) -> None:
        """Undo `load` in all lanes.

        Raises:
            NotFound: it is not loaded by name.
            Conflict: an endpoint serves it.
        """
        with self._changed:
            users = sorted({name for (name, _), key in self._desired.arms.items() if key[0] == bundle})
        marker = self._desired_versions.loads / bundle
        if bundle not in self._repository.names() or not (users or marker.exists()):
            raise NotFound(f"model {bundle!r} is not loaded")
        if users:
            raise Conflict(f"model {bundle!r} is an arm of endpoint {users[0]!r}; set the endpoint's arms first")
        marker.unlink(missing_ok=True)
        self._look_again()
        with self._changed:
            self._changed.wait_for(lambda: not any(key[0] == bundle for key in self._loaded), timeout)

    # Life cycle.

    def start(self) -> None:
        """Start the threads `registry-watch` and `registry-load`, and those of the kill switch."""
        self._kill_watch.start()
        for name, run in (("registry-watch", self._watch), ("registry-load", self._run_loads)):
            thread = threading.Thread(target=run, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """End both threads; loaded versions go on answering."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=30)
        self._kill_watch.stop()

    def looked(self, timeout: float) -> bool:
        """Wait for the first look at the control store; False when it did not come in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._passes > 0, timeout)

    def wait(self, condition: Callable[[Snapshot], bool], timeout: float) -> bool:
        """Wait until the snapshot fulfils a condition; False when it did not in time."""
        with self._changed:
            return self._changed.wait_for(lambda: condition(self._snapshot), timeout)

    def reconcile(self) -> None:
        """One pass of both threads: look, load the missing versions, publish. For a process that starts no threads."""
        self._look()
        self._kill_watch.look()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next_load() is not None or not self._probing())
                key = self._next_load()
            if key is None:
                return
            self._load_one(key)

    def _look_again(self) -> None:
        """Let the watcher look now and wait for it; without threads, look in this one."""
        if not self._threads:
            self.reconcile()
            return
        with self._changed:
            target = self._passes + 2  # a pass under way may have looked already
            self._look_now = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._passes >= target or self._stopping, 5.0)

    def _watch(self) -> None:
        while True:
            try:
                self._look()
            except Exception:
                # The last snapshot goes on answering; a store that is locked or gone is read again.
                log.exception("registry: a look at the control store or the repository failed")
            with self._changed:
                self._passes += 1
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._stopping or self._look_now, POLL_S)
                if self._stopping:
                    return
                self._look_now = False

    def _run_loads(self) -> None:
        if self._nice is not None:
            step_back(self._nice, thread=True)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._next_load() is not None, 1.0)
                if self._stopping:
                    return
                key = self._next_load()
            if key is not None:
                self._load_one(key)

    # Looking.

    def _look(self) -> None:
        desired = self._desired_versions.look(self._passed_over())
        with self._changed:
            asked = desired.asked_since(self._desired)
        if asked:
            self._try_again(asked)
            desired = self._desired_versions.look(self._passed_over())
        if appeared := desired.endpoints.keys() - set(self._endpoint_names()):
            self._kill_watch.look_at_files(appeared)
        schemas = self._schemas_of(set(desired.arms.values()))
        with self._changed:
            learned, self._schemas = schemas.keys() != self._schemas.keys(), schemas
            if learned or desired != self._desired or any(key not in self._loaded for key in desired.keys):
                self._desired = desired
                self._publish()

    def _schemas_of(self, keys: set[Key]) -> dict[Key, Schema]:
        """Fields of the arms' versions: an endpoint takes requests with those of both while one is still being loaded."""
        schemas = {key: schema for key, schema in self._schemas.items() if key in keys}
        for key in keys - schemas.keys():
            try:
                schemas[key] = self._repository.manifest(*key).model_schema
            except BatonError as error:
                log.debug("the fields of %s %s are not known yet: %s", *key, error)
        return schemas

    def _passed_over(self) -> set[Key]:
        """Versions that an older one may answer for."""
        now = self._clock.monotonic()
        with self._changed:
            failed = {key for key, failure in self._failed.items() if failure.again_at > now}
        return failed if self._loader.probes is None else failed | self._loader.probes.running(PATIENCE_S)

    def _try_again(self, bundles: Collection[str]) -> None:
        """Try versions of bundles that have failed again; an operator has asked for them."""
        with self._changed:
            self._failed = {key: failed for key, failed in self._failed.items() if key[0] not in bundles}
        if self._loader.probes is not None:
            self._loader.probes.ask_again(bundles)

    def _endpoint_names(self) -> list[str]:
        with self._changed:
            return list(self._desired.endpoints)

    def _set_killed(self, killed: frozenset[str], blind: str) -> None:
        with self._changed:
            self._killed, self._blind = killed, blind
            self._publish()

    # Loading.

    def _next_load(self) -> Key | None:
        now = self._clock.monotonic()
        with self._changed:
            for key in (*self._desired.arms.values(), *self._desired.extra.values()):
                failed = self._failed.get(key)
                waits = key in self._loaded or (failed is not None and failed.again_at > now)
                if not waits and self._loader.ready(key):
                    return key
        return None

    def _probing(self) -> bool:
        """Whether a wanted version waits for its probe. `_changed` is held."""
        return self._loader.probes is not None and bool(self._loader.probes.running() & self._desired.keys)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _load_one(self, key: Key) -> None:
        with self._changed:
            self._loading = key
            loaded = list(self._loaded)
            names = {name for (name, _), wanted in self._desired.arms.items() if wanted == key} | {key[0]}
        served: Served | None = None
        reason = ""
        for_memory = False
        retry_s = self._retry_s
        try:
            served = self._loader(key, loaded, names)
        except (BundleError, NotFound, NotReady, RemoteTimeout) as error:
            reason, for_memory = str(error), isinstance(error, NoMemory)
            if isinstance(error, SetAside):
                retry_s = math.inf
            elif isinstance(error, RemoteUnavailable | RemoteTimeout):
                retry_s = min(retry_s, REMOTE_RETRY_S)
            log.error("bundle %s version %s cannot be loaded: %s", *key, error)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            log.exception("bundle %s version %s cannot be loaded", *key)
        with self._changed:
            self._loading = None
            if served is not None:
                self._failed.pop(key, None)
                self._loaded[key] = served
                log.info("bundle %s version %s is ready", *key)
            else:
                self._failed[key] = _Failed(reason, self._clock.monotonic() + retry_s, for_memory)
            self._publish()

    # Publishing. `_changed` is held.

    def _publish(self) -> None:
        before = self._snapshot
        desired = self._desired
        endpoints: dict[str, ServedEndpoint] = {}
        for name, endpoint in desired.endpoints.items():
            old = before.endpoints.get(name)
            stable = self._answering((name, "stable"), old.stable if old else None)
            candidate = None
            if endpoint.candidate is not None:
                candidate = self._answering((name, "candidate"), old.candidate if old else None)
                stable, candidate = self._paired(name, stable, candidate)
            killed = endpoint.killed or name in self._killed or bool(self._blind)
            endpoints[name] = ServedEndpoint(endpoint, stable, candidate, killed)
        in_use = {
            served.key for e in endpoints.values() for served in (e.stable, e.candidate) if served is not None
        } | desired.keys
        self._joined.forget()
        leaving = len(self._loaded)
        self._loaded = {key: served for key, served in self._loaded.items() if key in in_use}
        leaving -= len(self._loaded)
        bundles = {bundle for bundle, _ in desired.keys}
        # A version that did not fit may fit now, and one that was removed is nobody's fault any more.
        self._failed = {
            key: f
            for key, f in self._failed.items()
            if key[0] in bundles and key[1] in desired.there.get(key[0], (key[1],)) and not (f.for_memory and leaving)
        }
        snapshot = Snapshot(MappingProxyType(endpoints), MappingProxyType(dict(self._loaded)))
        self._snapshot = snapshot
        self._changed.notify_all()
        for listener in self.listeners:
            listener(snapshot)

    def _answering(self, place: tuple[str, Arm], old: Served | None) -> Served | None:
        """Version that answers for an arm: the wanted one once it is loaded, until then the previous one."""
        key = self._desired.arms.get(place)
        if key is not None and key in self._loaded:
            return self._loaded[key]
        return None if old is None else self._loaded.get(old.key)

    def _paired(
        self, name: str, stable: Served | None, candidate: Served | None
    ) -> tuple[Served | None, Served | None]:
        """The versions of both arms as they read the endpoint's requests; without the candidate where it cannot."""
        schemas = []
        for arm, served in zip(ARM_NAMES, (stable, candidate), strict=True):
            key = self._desired.arms.get((name, arm))
            schemas.append(served.model.schema if served else self._schemas.get(key) if key else None)
        of_stable, of_candidate = schemas
        if of_stable is None or of_candidate is None:
            return stable, candidate
        if of_candidate.inputs_match(of_stable) is not None:
            return stable, None if stable is not None else candidate
        paired = (self._joined.arm(name, s, of_stable, of_candidate) if s else None for s in (stable, candidate))
        return next(paired), next(paired)

    def _arm_report(self, name: str, arm: Arm) -> ArmReport:
        endpoint = self._desired.endpoints[name]
        spec = endpoint.stable if arm == "stable" else endpoint.candidate
        assert spec is not None
        if spec.observed:
            return ArmReport(spec.bundle, state="READY")
        served_endpoint = self._snapshot.endpoints.get(name)
        served = served_endpoint.arm(arm) if served_endpoint else None
        version = served.model.version if served else ""
        key = self._desired.arms.get((name, arm))
        if key is None:
            return ArmReport(spec.bundle, version, "", "UNAVAILABLE", self._desired.problems.get((name, arm), ""))
        reason = self._reason(key)
        if served is None and arm == "candidate" and key in self._loaded and served_endpoint and served_endpoint.stable:
            reason = mismatch(served_endpoint.stable, self._loaded[key]) or reason
        state = "READY" if served is not None else "UNAVAILABLE" if reason else "LOADING"
        return ArmReport(spec.bundle, version, key[1], state, reason)

    def _reason(self, key: Key) -> str:
        """Reason why the wanted version, or a newer one, does not serve."""
        faults = self._faults()
        if key in faults:
            return f"version {key[1]}: {faults[key]}"
        newer = [k for k in faults if k[0] == key[0] and int(k[1]) > int(key[1])]
        if newer:
            worst = max(newer, key=lambda k: int(k[1]))
            return f"version {worst[1]}: {faults[worst]}"
        return ""

    def _faults(self) -> dict[Key, str]:
        """Why versions do not serve: they could not be opened, or not be loaded."""
        return self._desired.passed_over | {key: failed.reason for key, failed in self._failed.items()}

    def _model_report(self, key: Key) -> ModelReport:
        if key in self._loaded:
            return ModelReport(*key, "READY", "")
        if (reason := self._faults().get(key)) is not None:
            return ModelReport(*key, "UNAVAILABLE", reason)
        return ModelReport(*key, "LOADING", "")

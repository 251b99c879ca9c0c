"""Which model versions this process has, and which arm of which endpoint each of them answers.

Level-triggered: a watcher thread compares what the control store, the kill files and the repository say with what is
there, a loader thread loads and warms what is missing at low priority, and what may answer is one immutable `Snapshot`
behind one reference. A request takes the snapshot once and keeps its models alive by holding them; nothing else counts
users. It only reads: who moves weights and versions is the control process, and it may be dead.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from pipeline.bundle.versions import Repository
from pipeline.clock import Clock
from pipeline.errors import BundleError, Conflict, NotFound, NotReady
from pipeline.features import Features
from pipeline.model.model import Model
from serving.lane.desired import DIRECT, Desired, DesiredVersions, EndpointSource
from serving.lane.memory_budget import MemoryBudget
from serving.lane.served import ARM_NAMES, ArmReport, Key, ModelReport, Served, ServedEndpoint, Snapshot, mismatch
from serving.rollout.routing import Arm
from serving.runtime.process import step_back
from serving.state.kill import KillSwitch
from serving.wire.inference import InferCodec
from serving.wire.ranking import RankCodec

__all__ = ["Registry"]

POLL_S = 0.1
RETRY_S = 30.0
NICE = 10

log = logging.getLogger(__name__)


@dataclass
class _Failed:
    reason: str
    again_at: float
    for_memory: bool = False


class Registry:
    """The models of one process.

    Args:
        source: endpoints; None: none but models loaded by name.
        kill: the kill files.
        repository: of bundles.
        load: loads one version, for example `partial(Model.load, repository, segments=...)`.
        loads: folder with a file for every bundle that someone asked to have loaded by name; shared by all lanes.
        max_candidates: most rows of one request.
        nice: priority of the loading thread; None leaves it (threads that a network opens inherit it).
        retry: seconds after which a version that could not be loaded is tried again.
        memory_budget: asked whether a version fits into memory before it is loaded; None: all do.
        samples: requests to warm a version with, by the names under which it will be called; asked by the loader.
    """

    def __init__(
        self,
        source: EndpointSource | None,
        kill: KillSwitch,
        repository: Repository,
        load: Callable[[str, str], Model],
        clock: Clock,
        *,
        loads: Path,
        max_candidates: int,
        nice: int | None = NICE,
        retry: float = RETRY_S,
        memory_budget: MemoryBudget | None = None,
        samples: Callable[[Collection[str]], list[Features]] = lambda names: [],
    ) -> None:
        self._desired_versions = DesiredVersions(source, kill, repository, loads)  # the watcher's own
        self._repository = repository
        self._load = load
        self._clock = clock
        self._loads = loads
        self._max_candidates = max_candidates
        self._nice = nice
        self._retry = retry
        self._memory_budget = memory_budget
        self._samples = samples
        self._snapshot = Snapshot(MappingProxyType({}), MappingProxyType({}))
        self._changed = threading.Condition()
        # Guarded by `_changed`:
        self._desired = Desired()
        self._loaded: dict[Key, Served] = {}
        self._failed: dict[Key, _Failed] = {}
        self._loading: Key | None = None
        self._passes = 0
        self._poke = False
        self._stopping = False
        self._threads: list[threading.Thread] = []
        self.listeners: list[Callable[[Snapshot], None]] = []

    # What requests need.

    @property
    def snapshot(self) -> Snapshot:
        """What may answer now. Take it once per request."""
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
        with self._changed:
            return all(key in self._loaded or key in self._failed for key in self._desired.keys)

    # What operators need.

    def bundles(self) -> list[str]:
        """Names in the repository, loaded or not."""
        return self._repository.names()

    def arms(self) -> dict[str, dict[str, ArmReport]]:
        """Every arm of every endpoint with its state."""
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
        """The repository's bundles: each version that is loaded, loading or failed, else the newest as not loaded."""
        with self._changed:
            wanted = self._desired.keys
            known = set(self._loaded) | wanted | set(self._failed)
            reports = [self._model_report(key) for key in sorted(known, key=lambda k: (k[0], int(k[1])))]
        named = {key[0] for key in known}
        for bundle in self._repository.names():
            versions = self._repository.versions(bundle)
            if bundle not in named and versions:
                reports.append(ModelReport(bundle, versions[-1], "UNAVAILABLE", "not loaded"))
        return reports

    def faults(self) -> dict[str, str]:
        """Why versions could not be loaded, by `bundle/version`."""
        with self._changed:
            return {f"{bundle}/{version}": failed.reason for (bundle, version), failed in self._failed.items()}

    def load(self, bundle: str, timeout: float = 60.0) -> None:
        """Have all lanes load the newest servable version of a bundle by name, and wait until this one has it.

        Raises:
            NotFound: no such bundle.
            NotReady: it cannot be loaded, or not in time.
        """
        if bundle not in self._repository.names():
            raise NotFound(f"model {bundle!r} is not in the repository; it has {self._repository.names() or 'none'}")
        self._loads.mkdir(parents=True, exist_ok=True)
        (self._loads / bundle).touch()
        with self._changed:
            for key in [k for k in self._failed if k[0] == bundle]:
                del self._failed[key]

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
        marker = self._loads / bundle
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
        """Begin to watch and load; names of the threads begin with `registry-`."""
        for name, run in (("registry-watch", self._watch), ("registry-load", self._run_loads)):
            thread = threading.Thread(target=run, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """End both threads; what is loaded goes on answering."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=30)

    def looked(self, timeout: float) -> bool:
        """Wait for the first look at the control store; False when it did not come in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._passes > 0, timeout)

    def wait(self, condition: Callable[[Snapshot], bool], timeout: float) -> bool:
        """Wait until the snapshot fulfils a condition; False when it did not in time."""
        with self._changed:
            return self._changed.wait_for(lambda: condition(self._snapshot), timeout)

    def reconcile(self) -> None:
        """One pass: look, load what is missing, publish. What the two threads do, for those who have none."""
        self._look()
        while (key := self._next_load()) is not None:
            self._load_one(key)

    def _look_again(self) -> None:
        """Have the watcher look now and wait until it has; without threads, do it here."""
        if not self._threads:
            self.reconcile()
            return
        with self._changed:
            target = self._passes + 2  # the pass that may be under way has perhaps looked already
            self._poke = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._passes >= target or self._stopping, 5.0)

    def _watch(self) -> None:
        while True:
            try:
                self._look()
            except Exception:
                # The last snapshot goes on answering; a store that is locked or gone is looked at again.
                log.exception("registry: a look at the control store or the repository failed")
            with self._changed:
                self._passes += 1
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._stopping or self._poke, POLL_S)
                if self._stopping:
                    return
                self._poke = False

    def _run_loads(self) -> None:
        if self._nice is not None:
            step_back(self._nice, thread=True)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._next_load_locked() is not None, 1.0)
                if self._stopping:
                    return
                key = self._next_load_locked()
            if key is not None:
                self._load_one(key)

    # Looking.

    def _look(self) -> None:
        now = self._clock.monotonic()
        with self._changed:
            failed = {key for key, failure in self._failed.items() if failure.again_at > now}
        desired = self._desired_versions.look(failed)
        with self._changed:
            if desired != self._desired or any(key not in self._loaded for key in desired.keys):
                self._desired = desired
                self._publish()

    # Loading.

    def _next_load(self) -> Key | None:
        with self._changed:
            return self._next_load_locked()

    def _next_load_locked(self) -> Key | None:
        now = self._clock.monotonic()
        for key in (*self._desired.arms.values(), *self._desired.extra.values()):
            failed = self._failed.get(key)
            if key not in self._loaded and (failed is None or failed.again_at <= now):
                return key
        return None

    def _load_one(self, key: Key) -> None:
        with self._changed:
            self._loading = key
            loaded = list(self._loaded)
            names = {name for (name, _), wanted in self._desired.arms.items() if wanted == key} | {key[0]}
        served: Served | None = None
        reason = ""
        for_memory = False
        try:
            if self._memory_budget is not None and (reason := self._memory_budget.refusal(key, loaded)):
                for_memory = True
                raise NotReady(reason)
            model = self._load(*key)
            model.warm(self._samples(names))
            served = Served(
                model,
                RankCodec(model.schema, self._max_candidates),
                InferCodec(model.schema, self._max_candidates),
            )
        except (BundleError, NotFound, NotReady) as error:
            reason = str(error)
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
                self._failed[key] = _Failed(reason, self._clock.monotonic() + self._retry, for_memory)
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
                if candidate is not None and stable is not None and mismatch(stable, candidate):
                    candidate = None
            endpoints[name] = ServedEndpoint(endpoint, stable, candidate, endpoint.killed or name in desired.killed)
        in_use = {
            served.key for e in endpoints.values() for served in (e.stable, e.candidate) if served is not None
        } | desired.keys
        leaving = len(self._loaded)
        self._loaded = {key: served for key, served in self._loaded.items() if key in in_use}
        leaving -= len(self._loaded)
        # What did not fit may do so now.
        self._failed = {
            key: f for key, f in self._failed.items() if self._still_matters(key) and not (f.for_memory and leaving)
        }
        snapshot = Snapshot(MappingProxyType(endpoints), MappingProxyType(dict(self._loaded)))
        self._snapshot = snapshot
        self._changed.notify_all()
        for listener in self.listeners:
            listener(snapshot)

    def _answering(self, place: tuple[str, Arm], old: Served | None) -> Served | None:
        """Who answers for an arm: the wanted version once it is loaded, until then the one that did."""
        key = self._desired.arms.get(place)
        if key is not None and key in self._loaded:
            return self._loaded[key]
        return old

    def _still_matters(self, key: Key) -> bool:
        bundles = {k[0] for k in self._desired.keys}
        return key[0] in bundles

    def _arm_report(self, name: str, arm: Arm) -> ArmReport:
        endpoint = self._desired.endpoints[name]
        spec = endpoint.stable if arm == "stable" else endpoint.candidate
        assert spec is not None
        served_endpoint = self._snapshot.endpoints.get(name)
        served = served_endpoint.arm(arm) if served_endpoint else None
        version = served.model.version if served else ""
        key = self._desired.arms.get((name, arm))
        if key is None:
            return ArmReport(spec.bundle, version, "", "UNAVAILABLE", self._desired.problems.get((name, arm), ""))
        reason = self._reason(key)
        if served is None and arm == "candidate" and key in self._loaded and served_endpoint and served_endpoint.stable:
            reason = mismatch(served_endpoint.stable, self._loaded[key]) or reason
        if served is not None:
            state = "READY"
        elif reason:
            state = "UNAVAILABLE"
        else:
            state = "LOADING"
        return ArmReport(spec.bundle, version, key[1], state, reason)

    def _reason(self, key: Key) -> str:
        """Why the wanted version, or one newer than it, does not serve."""
        failed = self._failed.get(key)
        if failed is not None:
            return f"version {key[1]}: {failed.reason}"
        newer = [k for k in self._failed if k[0] == key[0] and int(k[1]) > int(key[1])]
        if newer:
            worst = max(newer, key=lambda k: int(k[1]))
            return f"version {worst[1]}: {self._failed[worst].reason}"
        return ""

    def _model_report(self, key: Key) -> ModelReport:
        if key in self._loaded:
            return ModelReport(*key, "READY", "")
        if key in self._failed:
            return ModelReport(*key, "UNAVAILABLE", self._failed[key].reason)
        return ModelReport(*key, "LOADING", "")

"""Registry of models and tracing of one process, as configured."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

from pipeline.clock import Clock
from pipeline.embedding.hierarchy.hierarchy import Hierarchy
from pipeline.model.opening import open_model
from serving.config import Config
from serving.lane.desired import DesiredVersions, EndpointSource
from serving.lane.loader import Sample, VersionLoader
from serving.lane.memory_budget import MemoryBudget
from serving.lane.probes import NICE
from serving.lane.registry import Registry
from serving.lane.remote import RemoteServers
from serving.rollout.document import StateDocument
from serving.rollout.identity import HomeIdentity
from serving.rollout.store import ControlStore
from serving.state.snapshot import SnapshotFile
from serving.telemetry.tracing import Tracing
from serving.wiring.bundles import open_repository
from serving.wiring.probes import open_probes
from serving.wiring.state import open_control_store, open_kill_switch, open_snapshot

__all__ = ["open_registry", "open_tracing"]


def open_registry(
    config: Config,
    clock: Clock,
    hierarchy: Hierarchy | None = None,
    *,
    nice: int | None = NICE,
    samples: Callable[[Collection[str]], list[Sample]] = lambda names: [],
) -> Registry:
    """Registry of models of one process; not started.

    Args:
        hierarchy: embedding tiers of the process; by default local segments alone.
        samples: requests to warm models with, see `VersionLoader`.
        nice: of its loading thread; None: as the process. A network with threads of its own would hand it on to them
            for good, so then it is not lowered.
    """
    repository = open_repository(config)
    threads = config.engine.network_threads
    snapshot = open_snapshot(config)
    known = _known_state(config, snapshot)
    desired = DesiredVersions(_endpoint_source(config, known), repository, config.loads, clock, known)
    loader = VersionLoader(
        partial(
            open_model,
            repository,
            segments=config.segments,
            hierarchy=hierarchy,
            network_threads=threads,
            connect=RemoteServers(config.remote, clock).connect,
        ),
        config.listen.max_candidates,
        MemoryBudget(repository, config.engine.memory_reserve_bytes),
        samples,
        open_probes(config, repository, clock),
    )
    nice = nice if threads == 1 else None
    switch = open_kill_switch(config)
    return Registry(desired, switch, repository, loader, clock, nice=nice, snapshot_file=snapshot)


def _known_state(config: Config, file: SnapshotFile) -> StateDocument | None:
    """What the home knows of its state; None where it has not seen one, or was told to leave that one."""
    document = file.known().document
    return document if document.identity and document.identity == HomeIdentity(config.state_identity).known else None


def open_tracing(config: Config, process: str) -> Tracing | None:
    """Tracing of the process of this name; None where it is not configured. Raises: InvalidInput, see `Tracing`."""
    telemetry = config.telemetry
    return Tracing(telemetry.otlp_endpoint, telemetry.sample, process) if telemetry.otlp_endpoint else None


def _endpoint_source(config: Config, known: StateDocument | None) -> EndpointSource:
    """The store; where the home knows what it said, one that is opened by a look, so that no start waits for it."""
    return open_control_store(config) if known is None else _LateStore(lambda: open_control_store(config))


class _LateStore:
    """Source of endpoints that is opened at a look. Used by one thread."""

    def __init__(self, opened: Callable[[], ControlStore]) -> None:
        self._open = opened
        self._store: ControlStore | None = None

    def data_version(self) -> int:
        return self._opened().data_version()

    def document(self) -> StateDocument:
        return self._opened().document()

    def _opened(self) -> ControlStore:
        if self._store is None:
            self._store = self._open()
        return self._store

"""Registry of models and tracing of one process, as configured."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

from pipeline.clock import Clock
from pipeline.embedding.hierarchy.hierarchy import Hierarchy
from pipeline.model.opening import open_model
from serving.config import Config
from serving.lane.desired import DesiredVersions
from serving.lane.loader import Sample, VersionLoader
from serving.lane.memory_budget import MemoryBudget
from serving.lane.probes import NICE
from serving.lane.registry import Registry
from serving.lane.remote import RemoteServers
from serving.telemetry.tracing import Tracing
from serving.wiring.bundles import open_repository
from serving.wiring.probes import open_probes
from serving.wiring.state import open_control_store, open_kill_switch

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
    desired = DesiredVersions(open_control_store(config), repository, config.loads, clock)
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
    return Registry(desired, open_kill_switch(config), repository, loader, clock, nice=nice if threads == 1 else None)


def open_tracing(config: Config, process: str) -> Tracing | None:
    """Tracing of the process of this name; None where it is not configured. Raises: InvalidInput, see `Tracing`."""
    telemetry = config.telemetry
    return Tracing(telemetry.otlp_endpoint, telemetry.sample, process) if telemetry.otlp_endpoint else None

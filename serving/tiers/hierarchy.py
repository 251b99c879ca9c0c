"""The embedding tiers of one process: opened as configured, and told of in metrics and status."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping

from pipeline.clock import Clock
from pipeline.embedding.device.tier import DeviceSource
from pipeline.embedding.hierarchy.hierarchy import SEGMENT, Hierarchy
from pipeline.embedding.tier import TierSource
from serving.config import Config
from serving.lane.served import Snapshot
from serving.runtime.status import EmbeddingStatus
from serving.telemetry import Telemetry
from serving.wiring.bundles import open_repository

__all__ = ["embedding_status", "open_hierarchy", "publish_lookups", "publish_tiers"]

BREAKER = {"closed": 0, "half_open": 1, "open": 2}


def open_hierarchy(config: Config, clock: Clock) -> Hierarchy:
    """The embedding tiers of one process, as configured.

    Raises:
        InvalidInput: the configuration of a tier is wrong.
    """
    embedding = config.embedding
    sources: list[TierSource | str] = []
    for name in embedding.tiers:
        if name == "segment":
            sources.append(SEGMENT)
        elif name == "device":
            device = embedding.device
            sources.append(
                DeviceSource(
                    clock,
                    rows=device.capacity_rows,
                    bytes=device.capacity_bytes,
                    format=device.rows,
                    max_age=device.max_age if "redis" in embedding.tiers else None,
                    folder=config.hot_keys,
                    save_interval=device.save_interval,
                    backend=device.backend,
                )
            )
        elif embedding.redis is not None:
            # What talks to Redis is loaded only where there is one.
            from serving.tiers.cache import redis_source

            repository = open_repository(config)
            workers = config.engine.workers
            sources.append(redis_source(embedding.redis, repository, clock, random.Random(), workers=workers))
    return Hierarchy(sources, embedding.budget, clock)


def publish_lookups(telemetry: Telemetry, hierarchy: Hierarchy) -> None:
    """Publish what became of looked-up ids, by table and tier."""
    telemetry.tallies(
        "baton_embedding_ids",
        "Ids looked up, by what a tier had of them; tier default: no tier had them",
        ("bundle", "table", "tier", "case"),
        lambda: {tuple(key): count for key, count in hierarchy.tally.read().items() if count},
    )


def publish_tiers(telemetry: Telemetry, snapshot: Callable[[], Snapshot]) -> None:
    """Publish what the tiers of every arm say of themselves, by figure, and the state of their breakers."""

    def read() -> Iterator[tuple[tuple[str, str, str], str, float | str]]:
        for name, endpoint in snapshot().endpoints.items():
            for arm in ("stable", "candidate"):
                served = endpoint.arm(arm)
                for told in served.model.store.describe() if served is not None else ():
                    for figure, value in told.items():
                        yield (name, arm, str(told["tier"])), figure, value

    telemetry.gauges(
        "baton_embedding_tier", "What a tier of an arm says of itself", ("endpoint", "arm", "tier", "figure"),
        lambda: {(*tier, figure): value for tier, figure, value in read() if isinstance(value, (int, float))},
    )  # fmt: skip
    telemetry.gauges(
        "baton_embedding_breaker", "Circuit breaker of a tier: 0 closed, 1 half open, 2 open",
        ("endpoint", "arm", "tier"),
        lambda: {tier: BREAKER[str(value)] for tier, figure, value in read() if figure == "breaker"},
    )  # fmt: skip


def embedding_status(hierarchy: Hierarchy, snapshot: Snapshot) -> EmbeddingStatus:
    """Ids looked up since the start, and the figures of every tier of every model."""
    lookups: dict[str, dict[str, dict[str, dict[str, int]]]] = {}
    for key, count in hierarchy.tally.read().items():
        if count:
            tables = lookups.setdefault(key.bundle, {})
            tables.setdefault(key.table, {}).setdefault(key.tier, {})[key.case] = count
    models: dict[str, list[Mapping[str, float | str]]] = {}
    for endpoint in snapshot.endpoints.values():
        for arm in ("stable", "candidate"):
            served = endpoint.arm(arm)
            if served is not None:
                models[f"{served.model.name}/{served.model.version}"] = served.model.store.describe()
    return EmbeddingStatus(lookups=lookups, models=models)

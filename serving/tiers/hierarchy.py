"""Embedding tiers of one process in its metrics and its status."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from pipeline.embedding.hierarchy.hierarchy import Hierarchy
from serving.lane.served import Snapshot
from serving.runtime.status import EmbeddingStatus, UnknownIds
from serving.telemetry import Telemetry
from serving.tiers.unknown import RecentLookups, unknown_ids

__all__ = ["embedding_status", "publish_lookups", "publish_tiers", "publish_unknown_ids"]

BREAKER = {"closed": 0, "half_open": 1, "open": 2}


def publish_lookups(telemetry: Telemetry, hierarchy: Hierarchy) -> None:
    """Publish counts of looked-up ids by table, tier and case."""
    telemetry.tallies(
        "baton_embedding_ids",
        "Ids looked up, by what a tier had of them; tier default: no tier had them",
        ("bundle", "table", "tier", "case"),
        lambda: {tuple(key): count for key, count in hierarchy.tally.read().items()},
    )


def publish_tiers(telemetry: Telemetry, snapshot: Callable[[], Snapshot]) -> None:
    """Publish the figures of every arm's tiers, and the state of their breakers."""

    def read() -> Iterator[tuple[tuple[str, str, str], str, float | str]]:
        for name, endpoint in snapshot().endpoints.items():
            for arm in ("stable", "candidate"):
                served = endpoint.arm(arm)
                for tier in served.model.tiers() if served is not None else ():
                    for figure, value in tier.items():
                        yield (name, arm, str(tier["tier"])), figure, value

    telemetry.gauges(
        "baton_embedding_tier", "Figures of a tier of an arm", ("endpoint", "arm", "tier", "figure"),
        lambda: {(*tier, figure): value for tier, figure, value in read() if isinstance(value, (int, float))},
    )  # fmt: skip
    telemetry.gauges(
        "baton_embedding_breaker", "Circuit breaker of a tier: 0 closed, 1 half open, 2 open",
        ("endpoint", "arm", "tier"),
        lambda: {tier: BREAKER[str(value)] for tier, figure, value in read() if figure == "breaker"},
    )  # fmt: skip


def publish_unknown_ids(telemetry: Telemetry, lately: RecentLookups, snapshot: Callable[[], Snapshot]) -> None:
    """Publish which fraction of an arm's ids is unknown, lately and when its model was trained."""

    def read(fraction: Callable[[UnknownIds], float | None]) -> dict[tuple[str, ...], float]:
        return {
            (endpoint, arm, table): value
            for endpoint, arms in unknown_ids(lately, snapshot()).items()
            for arm, tables in arms.items()
            for table, counts in tables.items()
            if (value := fraction(counts)) is not None
        }

    labels = ("endpoint", "arm", "table")
    telemetry.gauges(
        "baton_unknown_ids_ratio", "Fraction of the ids of the last minutes that no tier has a row for", labels,
        lambda: read(lambda counts: counts.unknown / counts.ids if counts.ids else None),
    )  # fmt: skip
    telemetry.gauges(
        "baton_unknown_ids_at_training_ratio", "The same on the rows that the model was judged by at training", labels,
        lambda: read(lambda counts: counts.at_training),
    )  # fmt: skip


def embedding_status(hierarchy: Hierarchy, lately: RecentLookups, snapshot: Snapshot) -> EmbeddingStatus:
    """Ids looked up since the start, the figures of every tier of every model, and unknown ids."""
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
                models[f"{served.model.name}/{served.model.version}"] = served.model.tiers()
    return EmbeddingStatus(lookups=lookups, models=models, unknown=unknown_ids(lately, snapshot))

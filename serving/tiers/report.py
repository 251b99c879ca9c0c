"""Figures of the embedding tiers of all lanes, added up from their statuses for `CacheVerbs.stats`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from serving.runtime.status import LaneStatus, Report

__all__ = ["summed"]

CASES = ("stale", "late", "error", "open", "incomplete")


def summed(lanes: Mapping[str, Report[LaneStatus]]) -> dict[str, Any]:
    """Sums over all lanes: `tables`, ids added up, and `tiers`, the figures of each tier, by lane.

    A row of `tables` has `endpoint`, `arm`, `bundle`, `table`, `ids` looked up since the lanes began (of all versions of
    the bundle), `hits` by tier, `default`, and of all tiers together `stale`, `late`, `error`, `open` and `incomplete`.
    """
    counts: dict[tuple[str, str], Counter[tuple[str, str]]] = {}
    arms: set[tuple[str, str, str]] = set()
    tiers: list[dict[str, Any]] = []
    for name, lane in lanes.items():
        embedding = lane.status.embedding
        for bundle, tables in embedding.lookups.items():
            for table, by_tier in tables.items():
                mine = counts.setdefault((bundle, table), Counter())
                for tier, cases in by_tier.items():
                    mine.update({(tier, case): count for case, count in cases.items()})
        for endpoint, by_arm in lane.status.endpoints.items():
            for arm, report in by_arm.items():
                bundle, version = report.bundle, report.version
                where = {"lane": name, "endpoint": endpoint, "arm": arm, "bundle": bundle, "version": version}
                arms.add((endpoint, arm, bundle))
                tiers += [{**where, **tier} for tier in embedding.models.get(f"{bundle}/{version}", ())]
    rows = [
        {"endpoint": endpoint, "arm": arm, "bundle": bundle, "table": table, **_figures(mine)}
        for endpoint, arm, bundle in sorted(arms)
        for (of, table), mine in sorted(counts.items())
        if of == bundle
    ]
    return {"tables": rows, "tiers": tiers}


def _figures(counts: Counter[tuple[str, str]]) -> dict[str, Any]:
    hits = {tier: count for (tier, case), count in counts.items() if case == "hit" and tier != "default"}
    default = counts["default", "hit"]
    other = {c: sum(count for (_, case), count in counts.items() if case == c) for c in CASES}
    return {"ids": sum(hits.values()) + default + other["stale"], "hits": hits, "default": default, **other}

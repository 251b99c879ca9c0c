"""What all lanes' embedding tiers did, put together from their status files for operators. Read by `Admin.cache`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

__all__ = ["summed"]

CASES = ("stale", "late", "error", "open", "incomplete")


def summed(processes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The reports of all lanes: `tables`, ids added up, and `tiers`, what each says of itself, by lane.

    A row of `tables` has `endpoint`, `arm`, `bundle`, `table`, `ids` looked up since the lanes began (of all versions of
    the bundle), `hits` by tier, `default`, and of all tiers together `stale`, `late`, `error`, `open` and `incomplete`.
    """
    counts: dict[tuple[str, str], Counter[tuple[str, str]]] = {}
    arms: set[tuple[str, str, str]] = set()
    tiers: list[dict[str, Any]] = []
    for lane, status in processes.items():
        report = status.get("embedding")
        if report is None:
            continue
        for bundle, tables in report["lookups"].items():
            for table, by_tier in tables.items():
                mine = counts.setdefault((bundle, table), Counter())
                for tier, cases in by_tier.items():
                    mine.update({(tier, case): count for case, count in cases.items()})
        for endpoint, by_arm in status["endpoints"].items():
            for arm, told in by_arm.items():
                where = {
                    "lane": lane,
                    "endpoint": endpoint,
                    "arm": arm,
                    "bundle": told["bundle"],
                    "version": told["version"],
                }
                arms.add((endpoint, arm, told["bundle"]))
                tiers += [{**where, **tier} for tier in report["models"].get(f"{told['bundle']}/{told['version']}", ())]
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

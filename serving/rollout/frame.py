"""Figures of a rollout as one flat table, for notebooks and reports: a row per figure, with its interval and what is behind it.

It takes the answers of the admin API (`GET /rollouts/NAME`, `GET /metrics/ENDPOINT`), so it works on a machine that has
nothing but those.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

__all__ = ["FRAME", "figures_table"]

FRAME = pa.schema(
    [
        pa.field("rollout", pa.string()),
        pa.field("endpoint", pa.string()),
        pa.field("scope", pa.string()),
        pa.field("step", pa.int32()),
        pa.field("weight", pa.float64()),
        pa.field("entered", pa.timestamp("ms", "UTC")),
        pa.field("segment", pa.string()),
        pa.field("arm", pa.string()),
        pa.field("figure", pa.string()),
        pa.field("value", pa.float64()),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
        pa.field("rows", pa.int64()),
        pa.field("clicks", pa.float64()),
    ]
)
"""`scope`: step, segment or long_run. `arm`: stable, candidate, served (the candidate on the rows that it answered itself) or
difference. `rows`: requests, of the outcome per request."""
_ARMS = ("stable", "candidate", "served")
_PLAIN = ("auc", "logloss", "calibration_error", "score_psi")
_Row = dict[str, Any]


def figures_table(rollout: Mapping[str, Any], metrics: Mapping[str, Any] | None = None) -> pa.Table:
    """The figures of a rollout, with the columns of `FRAME`; `to_pandas()` makes a DataFrame of it.

    Args:
        rollout: answer of `GET /rollouts/NAME`.
        metrics: answer of `GET /metrics/ENDPOINT` where this is the endpoint's newest rollout: with it there are the figures by
            segment, calibration, drift and the long run, too.
    """
    said = {"rollout": rollout["id"], "endpoint": rollout["endpoint"]}
    found = [*(_steps(rollout["phases"]) if metrics is None else _all(metrics))]
    return pa.Table.from_pylist([{**said, **row} for row in found], FRAME)


def _steps(phases: list[Mapping[str, Any]]) -> Iterator[_Row]:
    """Of a rollout's own answer, which has fewer."""
    for phase in phases:
        stay = _stay(phase)
        for arm in _ARMS[:2]:
            behind = {"arm": arm, "rows": phase["rows"], "clicks": phase["labels"]}
            yield {**stay, **behind, "figure": "bias", **_limits(phase["bias"][arm])}
            for figure in _PLAIN[:2]:
                yield {**stay, **behind, "figure": figure, "value": phase[figure][arm]}
        yield from _outcome(phase["outcome"], {}, stay)


def _all(metrics: Mapping[str, Any]) -> Iterator[_Row]:
    for phase in metrics["phases"]:
        stay = _stay(phase)
        for arm in _ARMS:
            figures = phase[arm]
            behind = {"arm": arm, "rows": figures["rows"], "clicks": figures["clicks"]}
            bias = {"value": figures["bias"], "low": figures["low"], "high": figures["high"]}
            yield {**stay, **behind, "figure": "bias", **bias}
            for figure in _PLAIN:
                yield {**stay, **behind, "figure": figure, "value": figures[figure]}
        yield from _outcome(phase["outcome"], phase["requests"], stay)
    for part in metrics["segments"]:
        stay = {"scope": "segment", "segment": part["segment"], "rows": part["rows"], "clicks": part["clicks"]}
        for arm in _ARMS[:2]:
            yield {**stay, "arm": arm, "figure": "bias", **_limits(part[arm])}
        yield {**stay, "arm": "difference", "figure": "logloss", **_limits(part["logloss_delta"])}
    effect = metrics["long_run"]
    if effect is not None:
        stay = {"scope": "long_run", "weight": effect["weight"], "entered": effect["since_ms"]}
        yield from _outcome(effect["outcome"], effect["requests"], stay)


def _stay(phase: Mapping[str, Any]) -> _Row:
    return {"scope": "step", "step": phase["step"], "weight": phase["weight"], "entered": phase["entered_ms"]}


def _outcome(outcome: Mapping[str, Any], requests: Mapping[str, int], stay: _Row) -> Iterator[_Row]:
    for arm, interval in outcome.items():
        yield {**stay, "arm": arm, "figure": "outcome", **_limits(interval), "rows": requests.get(arm)}


def _limits(interval: Mapping[str, Any]) -> _Row:
    return {name: interval[name] for name in ("value", "low", "high")}

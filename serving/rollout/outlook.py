"""Outlook of a rollout at its start: how long its evidence will take at the traffic of the last day.

A bound of d on the bias needs about `(z / d)^2` clicks of rows that are not independent, with the z of a confidence sequence where it
is tightest; beside it stand whole evidence spans. LogLoss and AUC guards may need more, which depends on the candidate.
"""

from __future__ import annotations

from pipeline.traffic.log import TrafficLog
from serving.rollout.spec import Rollout
from serving.rollout.sums.evidence import TUNED_BLOCKS, attempt_error, radius

__all__ = ["clicks_per_hour", "outlook"]

_NEWEST_PREDICTIONS = 2048
_DAY_MS = 86_400_000
_DEPENDENCE_FACTOR = 1.5
"""How many times more clicks rows of one request ask for than independent ones, about: as in `simulation.pool`."""


def clicks_per_hour(log: TrafficLog, endpoint: str, now_ms: int) -> float | None:
    """Clicks on labelled rows of an endpoint by hour, over its newest labelled predictions of the last day; None without any."""
    last = log.stats(now_ms).last_seq
    entries = log.labelled(max(0, last - _NEWEST_PREDICTIONS), _NEWEST_PREDICTIONS)
    recent = [
        each
        for each in entries
        if each.endpoint == endpoint and each.time_ms >= now_ms - _DAY_MS and each.revision == 0
    ]
    if len(recent) < 2:
        return None
    times = [each.time_ms for each in recent]
    clicks = sum(float(each.labels.sum()) for each in recent)
    return clicks / max(max(times) - min(times), 1) * 3_600_000 or None


def outlook(spec: Rollout, hourly: float | None) -> str:
    """How long the evidence for all steps takes at so many clicks an hour, in words."""
    span = f"whole spans of {spec.analysis.evidence_span / 3600:g} h (evidence_span)" if spec.analysis.span_ms else ""
    error, bound = attempt_error(spec.analysis.confidence, 1), min(step.bound for step in spec.steps[1:])
    clicks = _DEPENDENCE_FACTOR * TUNED_BLOCKS * (radius(TUNED_BLOCKS, error) / bound) ** 2
    needed = f"a bias within {bound:g} needs about {clicks:,.0f} clicks"
    if hourly is None:
        took = f"{needed}, and nobody knows how long that takes: {spec.endpoint} had no labels in the last day"
        return f"{took}; beside it {span}" if span else took
    hours = max(clicks / hourly, spec.analysis.evidence_span / 3600)
    stays = sum(1 for step in spec.steps if not step.shadow) * spec.analysis.min_step_time / 3600
    said = f"its evidence takes about {hours + stays:.1f} h at the traffic of the last day ({hourly:,.0f} clicks an hour): {needed}"
    return f"{said}, and {span}" if span else said

"""Facts of endpoints: whether they answer, both arms' bias, what a rollout waits for, and whether labels come."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from serving.health.facts import Fact, Level
from serving.health.label_flow import missing
from serving.health.reading import Reading
from serving.rollout.routing import Endpoint
from serving.rollout.state import Phase
from serving.rollout.status.codes import STATUSES, Code, status_of
from serving.rollout.store import StoredRollout
from serving.runtime.status import LabelFlow
from serving.telemetry.histogram import added

__all__ = ["approval_facts", "bias_facts", "endpoint_facts", "freeze_facts", "label_facts", "rollout_facts"]

FAILED_FRACTION = 0.05
FAILED_REQUESTS = 5
"""Fewest failed requests of the last minute that say something."""
PAUSED_S = 86_400.0
UNLABELLED_REQUESTS = 1000
"""Requests of an endpoint with a rollout after which the first label should have come."""


def endpoint_facts(reading: Reading) -> Iterator[Fact]:
    """Whether each endpoint answers, from the lanes' reports."""
    lanes = reading.statuses.fresh().lanes
    if reading.runs and not lanes:
        yield Fact("endpoints", "", Level.ATTENTION, "no lane reports, so nothing is known to answer", "baton status")
    for name in _names(reading):
        reports = {lane: report.status.endpoints.get(name, {}) for lane, report in lanes.items()}
        killed = sorted(lane for lane, report in lanes.items() if name in report.status.killed)
        if killed:
            do = f"baton endpoint get {name}"
            yield Fact(
                "endpoint", name, Level.ATTENTION, f"killed: its candidate gets nothing in {', '.join(killed)}", do
            )
        unready = sorted(lane for lane, arms in reports.items() if arms and arms["stable"].state != "READY")
        if unready:
            why = next(reports[lane]["stable"].reason or reports[lane]["stable"].state for lane in unready)
            yield Fact("endpoint", name, Level.ATTENTION, f"stable does not answer in {', '.join(unready)}: {why}",
                       "baton model list")  # fmt: skip
        recent = added(arm.recent for arms in reports.values() for arm in arms.values())
        if recent.errors >= FAILED_REQUESTS and recent.errors > FAILED_FRACTION * recent.requests:
            says = f"{recent.errors:,} of {recent.requests:,} requests of the last {recent.seconds:.0f} s failed"
            yield Fact("endpoint", name, Level.ATTENTION, says, f"baton metrics {name}")
        elif not unready and not killed and lanes:
            rate = recent.requests / recent.seconds if recent.seconds else 0.0
            share = _weight(reading, name)
            yield Fact("endpoint", name, Level.OK, f"answers {rate:.1f} requests a second{share}")


def _names(reading: Reading) -> list[str]:
    """Endpoints by the state, or, while it is away, by what lanes serve."""
    if reading.state is not None:
        return sorted(reading.state.endpoints)
    return sorted({name for lane in reading.statuses.lanes.values() for name in lane.status.endpoints})


def _weight(reading: Reading, name: str) -> str:
    endpoint: Endpoint | None = None if reading.state is None else reading.state.endpoints.get(name)
    if endpoint is None or endpoint.candidate is None:
        return ""
    return f", {endpoint.weight:g} % of the keys by {endpoint.candidate.bundle}"


def bias_facts(reading: Reading) -> Iterator[Fact]:
    """Bias of both arms of every active rollout. Stable alone beyond the bound is no matter for a person at night: the
    candidate is there to take its place."""
    if reading.state is None:
        yield Fact("bias", "", Level.UNKNOWN, "not known while the state cannot be read", "")
        return
    for name, stored in _active(reading):
        evidence = stored.status.get("evidence") or {}
        bias, low, high = (evidence.get(key) for key in ("bias", "bias_low", "bias_high"))
        steps = stored.spec.steps
        bound = steps[min(stored.state.step, len(steps) - 1)].bias_below
        if bias is None:
            yield Fact("bias", name, Level.OK, "not known yet: no rows with labels")
            continue
        both = f"candidate {bias:+.1%}{_range(low, high)}, stable {_signed(evidence.get('stable_bias'))}"
        both += "" if bound is None else f", bound ±{bound:.1%}"
        beyond = _beyond(bound, low, high)
        advice = f"baton metrics {name}" if beyond else ""
        yield Fact("bias", name, Level.ATTENTION if beyond else Level.OK, both, advice)


def _beyond(bound: float | None, low: float | None, high: float | None) -> bool:
    """Whether the whole interval lies outside the bound."""
    return bound is not None and low is not None and high is not None and (low > bound or high < -bound)


def _range(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" ({low:+.1%} to {high:+.1%})"


def _signed(value: float | None) -> str:
    return "not known" if value is None else f"{value:+.1%}"


def rollout_facts(reading: Reading) -> Iterator[Fact]:
    """What each active rollout waits for, and whether a person should look at it."""
    if reading.state is None:
        yield Fact("rollout", "", Level.UNKNOWN, "not known while the state cannot be read", "")
        return
    for name, stored in _active(reading):
        state, status = stored.state, stored.status
        code = status_of(state.phase, str(status.get("code", "")))
        says = f"{state.phase}, step {state.step} of {len(stored.spec.steps) - 1}, weight {state.weight:g} %"
        says += f": {stored.waiting}"
        since_s = (reading.now_ms - _since_ms(stored)) / 1000
        look = bool(status.get("alarm")) or bool(status.get("overdue")) or code is Code.PAUSED_BY_STEP_BACKS
        look = look or (state.phase == Phase.PAUSED and since_s > PAUSED_S)
        yield Fact("rollout", name, Level.ATTENTION if look else Level.OK, says, STATUSES[code].do if look else "")


def _since_ms(stored: StoredRollout) -> int:
    return stored.state.cause.time_ms if stored.state.cause is not None else stored.state.entered_ms


def approval_facts(reading: Reading) -> Iterator[Fact]:
    """Rollouts that wait for a person's word."""
    if reading.state is None:
        return
    waiting = [name for name, stored in _active(reading) if stored.status.get("code") == Code.WAITS_FOR_APPROVAL]
    for name in waiting:
        do = f"baton rollout approve {name} --reason ..."
        yield Fact("approval", name, Level.ATTENTION, "its next step waits for approval", do)
    if not waiting:
        yield Fact("approval", "", Level.OK, "none is waited for")


def freeze_facts(reading: Reading) -> Iterator[Fact]:
    """Whether rollouts are frozen. Somebody has ordered that and it ends by itself, so it is no fault."""
    if reading.state is None:
        yield Fact("freeze", "", Level.UNKNOWN, "not known while the state cannot be read", "")
        return
    freeze = reading.state.freeze
    yield Fact("freeze", "", Level.OK, "none" if freeze is None else str(freeze))


def label_facts(reading: Reading) -> Iterator[Fact]:
    """Labels of every endpoint, each by its own pace."""
    control = reading.statuses.control
    for name in _names(reading):
        if control is None or not control.fresh:
            yield Fact("labels", name, Level.UNKNOWN, "not known: control does not report", "")
            continue
        flows = control.status.labels.get(name, {})
        gone = {kind: flow for kind, flow in flows.items() if missing(flow)}
        advice = f"baton log tail --endpoint {name}"
        if gone:
            says = "; ".join(_gone(reading, kind, flow) for kind, flow in gone.items())
            yield Fact("labels", name, Level.ATTENTION, says, advice)
            continue
        seen = [flow.last_ms for flow in flows.values() if flow.last_ms]
        due = max((flow.due_requests for flow in flows.values()), default=0)
        if seen:
            yield Fact("labels", name, Level.OK, f"the last came {_ago(reading, max(seen))}")
        elif due > UNLABELLED_REQUESTS and name in dict(_active(reading)):
            says = f"none has come for {due:,} requests, and the rollout waits for them"
            yield Fact("labels", name, Level.ATTENTION, says, advice)
        else:
            yield Fact("labels", name, Level.OK, "none has come yet")


_KINDS = {"shown": "exposures", "labelled": "outcomes"}


def _gone(reading: Reading, kind: str, flow: LabelFlow) -> str:
    return (
        f"no {_KINDS.get(kind, kind)} for {flow.due_requests:,} requests, where one usually comes in "
        f"{max(1.0, flow.mean_gap):,.0f}; the last came {_ago(reading, flow.last_ms)}"
    )


def _ago(reading: Reading, then_ms: int) -> str:
    seconds = max(0.0, (reading.now_ms - then_ms) / 1000)
    when = datetime.fromtimestamp(then_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"{seconds:,.0f} s ago" if seconds < 600 else f"at {when}"


def _active(reading: Reading) -> Iterator[tuple[str, StoredRollout]]:
    rollouts = {} if reading.state is None else reading.state.rollouts
    return ((name, stored) for name, stored in sorted(rollouts.items()) if stored.state.active)

"""Alarms at the top of every page, most urgent first.

Outdated figures look like fresh ones. So the age of every figure that should be updated is checked.
"""

from __future__ import annotations

from dataclasses import dataclass

from serving.http.console.reader import Reading
from serving.http.console.wording import clock, span
from serving.rollout.state import ACTIVE
from serving.runtime.roster import ProcessState

__all__ = ["OLD_MS", "Alarm", "alarms", "endpoint_alarms"]

OLD_MS = 8_000
"""Age from which a reading counts as old; a new one comes every two seconds."""
OVERDUE_S = 15.0
"""Delay of a due look from which the rollout loop counts as stopped."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """An alarm. `bad`: it affects traffic or its control; otherwise it is a warning."""

    text: str
    bad: bool = True


def alarms(reading: Reading | None, error: str, now_ms: int, *, worker: bool) -> list[Alarm]:
    """Alarms of the whole installation. `worker`: whether the configuration has a transfer worker."""
    if reading is None:
        return [
            Alarm(f"The installation cannot be read: {error}")
            if error
            else Alarm("Reading for the first time …", False)
        ]
    found = []
    if now_ms - reading.time_ms > OLD_MS:
        because = f" ({error})" if error else ": the control process's loops do not answer"
        found.append(Alarm(f"These figures are {span((now_ms - reading.time_ms) / 1000)} old{because}."))
    found += _loop(reading, now_ms)
    if freeze := reading.freeze:
        until = f"{clock(freeze.until_ms, now_ms)} UTC"
        found.append(Alarm(f"Rollouts are frozen until {until} by {freeze.actor}: {freeze.reason}.", False))
    if reading.missing:
        lanes = [name for name in reading.missing if name != "shadow"]
        if lanes:
            found.append(Alarm(f"Not answering: {', '.join(lanes)}."))
        if "shadow" in reading.missing:
            found.append(Alarm("The shadow lane is gone: the other arm is not scored, so evidence stands still."))
    for name, lane in reading.statuses.fresh().lanes.items():
        if lane.status.blind:
            found.append(Alarm(f"Candidates get nothing in {name}: {lane.status.blind}."))
    found += _state_away(reading, now_ms)
    states = {process.name: process for process in reading.processes}
    if worker:
        found += _learner(reading, states.get("worker"))
    supervisor = states.get("supervisor")
    if supervisor is not None and not supervisor.well:
        found.append(Alarm(f"The supervisor is {supervisor.state}: {supervisor.why}. Nothing is started again."))
    for process in reading.processes:
        if process.restarts:
            last = f", last by {process.last_exit}" if process.last_exit else ""
            why = f": {process.why}" if process.why and not process.well else ""
            times = "once" if process.restarts == 1 else f"{process.restarts} times"
            found.append(Alarm(f"{process.name} was restarted {times}{last}{why}.", False))
    for damaged in reading.statuses.damaged:
        found.append(Alarm(f"The status file {damaged.file} is damaged: {damaged.reason}.", False))
    return found


def _learner(reading: Reading, process: ProcessState | None) -> list[Alarm]:
    """Alarm of a transfer worker that does not report."""
    report = reading.statuses.worker
    if report is not None and report.fresh:
        return []
    age = None if report is None else report.age_s
    since = f"has not reported for {span(age)}" if age is not None else "has not reported yet"
    why = f" ({process.why})" if process is not None and process.why else ""
    return [Alarm(f"The transfer worker {since}{why}: the student learns nothing new.", False)]


def _state_away(reading: Reading, now_ms: int) -> list[Alarm]:
    """Alarm of lanes, the shadow lane among them, that the state does not answer: the one that has waited longest speaks."""
    fresh = reading.statuses.fresh()
    found = {name: report.status.state_away for name, report in fresh.lanes.items()}
    found |= {name: report.status.state_away for name, report in fresh.shadows.items()}
    away = {name: since for name, since in found.items() if since is not None}
    if not away:
        return []
    longest = min(away.values(), key=lambda since: since.since_ms)
    return [Alarm(f"In {', '.join(away)} {longest.told(now_ms)}.")]


def _loop(reading: Reading, now_ms: int) -> list[Alarm]:
    """Alarms of the rollout loop: its process does not report, does not lead, or misses its looks."""
    control = reading.statuses.control
    if control is None or control.age_s is None or not control.fresh:
        age = None if control is None else control.age_s
        when = "has not reported yet" if age is None else f"last reported {span(age)} ago"
        return [Alarm(f"The control process {when}. No step is taken, up or down.")]
    if not control.status.leads:
        return [Alarm(f"Another control process moves the traffic: {control.status.leader or 'unknown'}.", False)]
    late = [
        (now_ms - view.rollout.next_look_ms) / 1000
        for view in reading.views.values()
        if view.rollout is not None and view.rollout.phase in ACTIVE and view.rollout.next_look_ms
    ]
    if max(late, default=0.0) > OVERDUE_S:
        return [
            Alarm(f"The rollout loop stands still: a look was due {span(max(late))} ago. No step is taken, up or down.")
        ]
    return []


def endpoint_alarms(reading: Reading, name: str) -> list[Alarm]:
    """Alarms of one endpoint."""
    view = reading.views.get(name)
    if view is None:
        return [Alarm(f"There is no endpoint {name}.")]
    found = []
    endpoint = view.endpoint
    if endpoint.killed:
        by = f" by {endpoint.killed_by}" if endpoint.killed_by else ""
        why = f": {endpoint.killed_reason}" if endpoint.killed_reason else ""
        found.append(Alarm(f"Killed{by}{why}. The candidate answers nothing until the switch is released."))
    if view.rollout is not None and view.rollout.alarm:
        found.append(Alarm(f"The rollout is held: {view.rollout.waiting}.", False))
    if view.rollout is not None and view.rollout.overdue:
        since = clock(view.rollout.entered_ms, reading.time_ms)
        found.append(Alarm(f"The rollout has not moved since {since} UTC, longer than its progress_deadline.", False))
    for arm, traffic in view.arms.items():
        if traffic.state == "UNAVAILABLE" and (arm == "stable" or endpoint.candidate is not None):
            found.append(
                Alarm(f"The {arm} arm cannot be served: {traffic.reason or 'no lane has it'}.", arm == "stable")
            )
    return found

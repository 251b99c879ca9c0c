"""Landing page: a table of all endpoints, the processes, and the labels."""

from __future__ import annotations

from urllib.parse import quote

from pipeline.traffic.log import EndpointStats, TrafficStats
from serving.http.console.live import Cell, Facts, LiveTable, panel
from serving.http.console.reader import Reading, View
from serving.http.console.wording import NONE, age, count, milliseconds, percent, signed_percent, span, weight
from serving.rollout.label_path import MOST_FRACTION, Arrived
from serving.rollout.state import Phase
from serving.runtime.roster import ProcessState
from serving.runtime.status import LabelStatus, LaneStatus, Report, ShadowStatus, Status

__all__ = ["EndpointsPanel", "LabelsPanel", "ProcessesPanel", "bound_of", "phase_of", "state_of"]

_COLUMNS = ("endpoint", "state", ">weight", "phase", ">bias", ">bound", ">answers/s", ">p99", "waits for")
_TONES = {Phase.PAUSED: "warn", Phase.DEGRADED: "warn", Phase.ABORTED: "muted", Phase.UNDONE: "muted"}


class EndpointsPanel:
    """Table of endpoints."""

    def __init__(self) -> None:
        with panel("Endpoints"):
            self._table = LiveTable(
                _COLUMNS, "Endpoints", "No endpoint yet: name one under endpoints: in baton.yaml.", "cards"
            )

    def tell(self, reading: Reading, now_ms: int) -> None:
        self._table.tell([_row(view) for view in reading.views.values()])


class ProcessesPanel:
    """Table of this machine's processes: state, last report, work that waits, and what ended one that was started again."""

    def __init__(self) -> None:
        with panel("Processes", classes="half"):
            columns = ("process", "state", ">reported", ">waiting", ">restarts", "last exit")
            self._table = LiveTable(columns, "Processes", "No process has reported yet.")

    def tell(self, reading: Reading, now_ms: int) -> None:
        reports = reading.statuses.all()
        self._table.tell([_process_row(process, reports.get(process.name)) for process in reading.processes])


class LabelsPanel:
    """Counts of labels and of their join with predictions; by endpoint what came of the labels of the last hour."""

    def __init__(self) -> None:
        with panel("Labels", "predictions wait for theirs until the attribution window is over", "half"):
            self._facts = Facts()
            columns = ("endpoint", ">labelled", ">late", ">delay", ">last", ">rows")
            self._table = LiveTable(columns, "Labels of the last hour", "No endpoint yet.")

    def tell(self, reading: Reading, now_ms: int) -> None:
        traffic = reading.traffic
        self._facts.tell(
            {
                "predictions": count(traffic.predictions),
                "labelled rows": count(traffic.labelled_rows),
                "joined up to": age(traffic.watermark_ms, now_ms),
                "open predictions": count(traffic.open_predictions),
                "labels without prediction": count(traffic.parked),
                "late": count(traffic.late),
                "refused": count(_refused(reading)),
            }
        )
        self._table.tell([_label_row(name, lanes, traffic, now_ms) for name, lanes in sorted(_labels(reading).items())])


def _labels(reading: Reading) -> dict[str, list[LabelStatus]]:
    """Labels by endpoint, as each lane sees them."""
    lanes = [lane.status.labels for lane in reading.statuses.fresh().lanes.values()]
    return {name: [labels[name] for labels in lanes if name in labels] for name in reading.views}


def _refused(reading: Reading) -> int:
    """Entries of feedback that were refused in the last hour: a lane says the same number for each endpoint."""
    lanes = [lane.status.labels.values() for lane in reading.statuses.fresh().lanes.values()]
    return sum(max((labels.refused for labels in lane), default=0) for lane in lanes)


def _label_row(name: str, lanes: list[LabelStatus], traffic: TrafficStats, now_ms: int) -> list[Cell | str]:
    labelled = Arrived.of([lane.labelled for lane in lanes])
    return [
        Cell(name, "strong"),
        count(labelled.entries),
        Cell(percent(labelled.late_fraction), "warn" if labelled.late_fraction >= MOST_FRACTION else ""),
        NONE if labelled.median_s is None else span(labelled.median_s),
        age(labelled.last_ms, now_ms) if labelled.last_ms else NONE,
        count(traffic.endpoints.get(name, EndpointStats()).labelled_rows),
    ]


def _process_row(process: ProcessState, report: Report[Status] | None) -> list[Cell | str]:
    state = process.doing if process.well and process.doing else process.state
    return [
        Cell(process.name, "strong"),
        Cell(state, "wide" if process.well else "bad strong wide"),
        NONE if process.age_s is None else f"{span(process.age_s)} ago",
        count(_waiting(report)),
        count(process.restarts),
        Cell(": ".join(filter(None, (process.last_exit, process.why))) or NONE, "wide"),
    ]


def _waiting(report: Report[Status] | None) -> int | None:
    """How much waits for a process."""
    if report is None:
        return None
    if isinstance(report.status, LaneStatus):
        return report.status.engine.pending
    return report.status.queue if isinstance(report.status, ShadowStatus) else None


def _row(view: View) -> list[Cell | str]:
    endpoint, rollout = view.endpoint, view.rollout
    word, tone = state_of(view)
    bound, bias = bound_of(view), rollout.evidence.get("bias") if rollout else None
    phase, phase_tone = phase_of(view)
    outside = "bad" if bound is not None and bias is not None and abs(bias) > bound else ""
    p99 = [arm.p99 for arm in view.arms.values() if arm.p99 is not None]
    return [
        Cell(endpoint.name, "strong", f"/endpoints/{quote(endpoint.name, safe='')}"),
        Cell(word, tone),
        weight(endpoint.weight),
        Cell(phase, phase_tone),
        Cell(signed_percent(bias), outside),
        NONE if bound is None else f"±{percent(bound)}",
        f"{sum(arm.rate for arm in view.arms.values()):.1f}",
        milliseconds(max(p99, default=None)),
        Cell(rollout.waiting if rollout else NONE, "wide"),
    ]


def state_of(view: View) -> tuple[str, str]:
    """One word for an endpoint, and its tone."""
    if view.endpoint.killed:
        return "killed", "bad strong"
    if view.arms["stable"].state != "READY":
        return "stable arm not ready", "bad strong"
    if view.endpoint.candidate is not None and view.arms["candidate"].state == "UNAVAILABLE":
        return "candidate not ready", "warn"
    return "answering", ""


def phase_of(view: View) -> tuple[str, str]:
    """The rollout's phase, and its tone."""
    if view.rollout is None:
        return "no rollout", "muted"
    return view.rollout.phase, _TONES.get(view.rollout.phase, "candidate")


def bound_of(view: View) -> float | None:
    """Bias bound that applies now: of the next step; at the last step, of that one."""
    rollout = view.rollout
    return None if rollout is None else rollout.steps[min(rollout.step + 1, len(rollout.steps) - 1)].bias_below

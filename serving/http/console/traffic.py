"""Panels on traffic: arms and versions, latency and errors, shadow lane, embedding tiers, transfer worker."""

from __future__ import annotations

from collections import Counter

from pipeline.bundle.teachers import in_words
from serving.http.console.charts import curves, line_options
from serving.http.console.live import Cell, Chart, Facts, LiveTable, Text, panel, show
from serving.http.console.reader import Reading, View
from serving.http.console.shell import EndpointPanel
from serving.http.console.wording import NONE, age, count, figure, milliseconds, percent, span
from serving.rollout.routing import is_observed
from serving.runtime.status import ShadowStatus

__all__ = ["ArmsPanel", "LatencyPanel", "ShadowPanel", "TiersPanel", "VersionsPanel", "WorkerPanel"]

ARMS = ("candidate", "stable")
MAX_REFUSED_VERSIONS = 8


class ArmsPanel(EndpointPanel):
    """Table of the bundle and version that answer for each arm."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        columns = ("arm", "bundle", ">answers", ">wanted", "lanes", "state")
        with panel("Arms"):
            self._table = LiveTable(columns, "Arms and versions")

    def draw(self, view: View, reading: Reading, now_ms: int) -> None:
        rows: list[list[Cell | str]] = []
        for arm in ARMS:
            spec = view.endpoint.candidate if arm == "candidate" else view.endpoint.stable
            if spec is None:
                continue
            traffic = view.arms[arm]
            versions = Counter(version for version in traffic.versions.values() if version)
            lanes = f"{sum(versions.values())} of {len(reading.statuses.lanes)}"
            if is_observed(spec.bundle):
                told = Cell("answered elsewhere", "wide")
                rows.append([_arm_cell(arm), spec.bundle, NONE, NONE, NONE, told])
                continue
            state = traffic.state.lower() + (f": {traffic.reason}" if traffic.reason else "")
            tone = {"READY": "wide", "LOADING": "wide warn"}.get(traffic.state, "wide bad")
            rows.append(
                [
                    _arm_cell(arm),
                    spec.bundle,
                    ", ".join(sorted(versions)) or NONE,
                    traffic.wanted or spec.version or "newest",
                    lanes,
                    Cell(state or "no lane reports", tone),
                ]
            )
        self._table.tell(rows)


def _arm_cell(arm: str) -> Cell:
    return Cell(arm, "candidate strong" if arm == "candidate" else "strong")


class VersionsPanel(EndpointPanel):
    """Table of the newest versions of both arms' bundles, with the verdicts of the gate and the lanes."""

    MOST = 4

    def __init__(self, name: str) -> None:
        super().__init__(name)
        with panel("Versions", "newest first"):
            columns = ("bundle", ">version", "kind", "may serve")
            self._table = LiveTable(columns, "Newest versions of both arms", "No version in the repository.")

    def draw(self, view: View, reading: Reading, now_ms: int) -> None:
        rows: list[list[Cell | str]] = []
        for spec in (view.endpoint.candidate, view.endpoint.stable):
            for model in reading.versions.get(spec.bundle if spec else "", ())[: self.MOST]:
                answers = "answers" if any(place.startswith(f"{self.name}/") for place in model.arms) else "yes"
                wrong = model.fault or "; ".join(model.reasons)
                kind = f"{model.architecture}, on {model.base}" if model.base else model.architecture
                may = Cell(f"refused: {wrong}", "wide bad") if wrong or not model.servable else Cell(answers, "wide")
                rows.append([model.bundle, model.version, kind, may])
        self._table.tell(rows)


class LatencyPanel(EndpointPanel):
    """Latency, errors and missed deadlines per arm."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        columns = ("arm", ">answers/s", ">p50", ">p99", ">errors", ">late")
        with panel("Latency and errors", "of the last minute, all lanes; line: p99 in ms"):
            self._table = LiveTable(columns, "Latency and errors per arm")
            self._chart = Chart("p99 latency per arm over time", line_options, "low")

    def draw(self, view: View, reading: Reading, now_ms: int) -> None:
        rows: list[list[Cell | str]] = []
        for arm in ARMS:
            traffic = view.arms[arm]
            asked = traffic.requests + traffic.errors + traffic.deadline_misses
            rows.append(
                [
                    Cell(arm, "candidate strong" if arm == "candidate" else "strong"),
                    f"{traffic.rate:.1f}",
                    milliseconds(traffic.p50),
                    milliseconds(traffic.p99),
                    _part(traffic.errors, asked),
                    _part(traffic.deadline_misses, asked),
                ]
            )
        self._table.tell(rows)
        points = () if view.track is None else view.track.latency.points
        show(self._chart.element, any(value is not None for _, values in points for value in values))
        if view.track is not None:
            self._chart.tell(curves(view.track.latency, "p99_stable", "p99_candidate", digits=2))


def _part(number: int, of: int) -> Cell:
    return Cell(
        f"{count(number)} ({percent(number / of)})" if number and of else count(number), "bad" if number else ""
    )


class ShadowPanel:
    """Counts of the shadow lane: scored predictions, and drops by reason."""

    def __init__(self) -> None:
        with panel("Shadow lane", "scores the arm that did not answer"):
            self._facts = Facts()
            self._table = LiveTable(("dropped because", ">in all", ">last minute"), "Shadow drops by reason", "Nothing was dropped.")  # fmt: skip

    def tell(self, reading: Reading, now_ms: int) -> None:
        report = reading.statuses.shadow
        shadow = ShadowStatus(time_ms=0) if report is None else report.status
        self._facts.tell(
            {
                "scored": count(shadow.scored + shadow.caught_up),
                "of them late": count(None if report is None else shadow.caught_up),
                "waiting": count(None if report is None else shadow.queue),
                "last scored": age(shadow.last_scored_ms, now_ms),
            }
        )
        reasons = {reason: number for reason, number in reading.statuses.shadow_drops().items() if number}
        rows: list[list[Cell | str]] = []
        for reason, number in sorted(reasons.items(), key=lambda item: -item[1]):
            recent = reading.recent_shadow_drops.get(reason, 0)
            rows.append([reason, count(number), Cell(count(recent), "warn" if recent else "")])
        self._table.tell(rows)


class TiersPanel:
    """Table of embedding lookups by the tier that answered."""

    def __init__(self, name: str) -> None:
        self._name = name
        with panel(
            "Embedding tiers", "share of lookups answered, since the lanes began; default: id not known", "half"
        ):
            columns = ("arm", "table", ">lookups", ">device", ">segment", ">redis", ">default", ">stale", ">failed")
            self._table = LiveTable(columns, "Embedding lookups by tier", "No lookups yet.")
            self._note = Text(tag="p", classes="note")

    def tell(self, reading: Reading, now_ms: int) -> None:
        if reading.cache is None:
            return
        rows = []
        for table in reading.cache.tables:
            if table["endpoint"] != self._name:
                continue
            ids = table["ids"] or 0
            failed = table["late"] + table["error"] + table["open"]
            tiers = [
                percent(table["hits"].get(tier, 0) / ids) if ids else NONE for tier in ("device", "segment", "redis")
            ]
            rest = [percent(table[case] / ids) if ids else NONE for case in ("default", "stale")]
            arm = Cell(table["arm"], "candidate" if table["arm"] == "candidate" else "")
            rows.append([arm, table["table"], count(ids), *tiers, *rest, Cell(count(failed), "warn" if failed else "")])
        self._table.tell(rows)
        shared = reading.cache.shared
        if shared is not None:
            wrong = f"; last failure: {shared['error']}" if shared.get("error") else ""
            self._note.tell(f"Redis {'answers' if shared.get('redis') else 'cannot be reached'}{wrong}")


class WorkerPanel:
    """State of the transfer worker: its learning, the versions it published, the versions the gate refused and why.

    Args:
        configured: whether the worker learns from this endpoint's traffic.
    """

    def __init__(self, *, configured: bool) -> None:
        self._configured = configured
        with panel("Transfer worker"):
            self._note = Text(tag="p", classes="note")
            self._facts = Facts()
            self._versions = LiveTable(("bundle", ">last version"), "Versions that the worker published last")
            self._refused = LiveTable(("refused version", "because"), "Versions that the gate refused", "The gate has refused nothing.")  # fmt: skip

    def tell(self, reading: Reading, now_ms: int) -> None:
        worker, process = reading.worker, reading.statuses.worker
        known = self._configured and worker is not None and worker.age_seconds is not None
        for part in (self._facts.element, self._versions.element, self._refused.element):
            show(part, known)
        if not self._configured:
            self._note.tell("The worker does not learn from this endpoint.")
            return
        if worker is None or worker.age_seconds is None:
            self._note.tell("The worker has not reported yet.")
            return
        running = process is not None and process.fresh
        since = worker.age_seconds if process is None or process.age_s is None else process.age_s
        self._note.tell("" if running else "Not running: this is its last report.", "warn")
        self._facts.tell(
            {
                "teacher": in_words(worker.teacher, worker.teacher_kind, worker.teacher_reason)
                if worker.teacher
                else NONE,
                "teacher's weight a": figure(worker.weight, 3),
                "replay r": figure(worker.replay_ratio, 3),
                "teacher step K": f"{worker.teacher_every} batches" if worker.teacher_every else NONE,
                "batches": count(worker.batches),
                "rows learned": count(worker.trained_rows),
                "of these without a teacher's score": count(worker.unguided_rows),
                "rows without features": count(worker.featureless),
                "entries behind": count(
                    max(0, reading.traffic.last_seq - max(worker.position, reading.traffic.begun_seq))
                ),
                "loss": figure(worker.loss),
                "last report": Cell(f"{span(since)} ago", "" if running else "bad"),
            }
        )
        self._versions.tell(sorted(worker.versions.items()))
        self._refused.tell(
            [
                [
                    f"{gone.bundle} {gone.version}",
                    Cell("; ".join(gone.reasons) or "its report has been removed", "wide"),
                ]
                for gone in worker.refused[: -MAX_REFUSED_VERSIONS - 1 : -1]
            ]
        )

"""What the transfer worker does: how hard it leans on the teacher, what it published, what the gate refused and why."""

from __future__ import annotations

from serving.http.console.live import Cell, Facts, LiveTable, Text, panel, show
from serving.http.console.reader import Reading
from serving.http.console.wording import NONE, count, figure, span

__all__ = ["WorkerPanel"]

MAX_REFUSED_VERSIONS = 8


class WorkerPanel:
    """The worker's panel.

    Args:
        name: of the endpoint. configured: whether the worker learns from this endpoint's traffic.
    """

    def __init__(self, name: str, *, configured: bool) -> None:
        self._configured = configured
        with panel("Transfer worker"):
            self._note = Text(tag="p", classes="note")
            self._facts = Facts("teacher's weight a", "replay r", "teacher step K", "batches", "rows learned", "entries behind", "loss", "last report")  # fmt: skip
            self._versions = LiveTable(("bundle", ">last version"), "Versions that the worker published last")
            self._refused = LiveTable(("refused version", "because"), "Versions that the gate refused", "The gate has refused nothing.")  # fmt: skip

    def tell(self, reading: Reading, now_ms: int) -> None:
        worker, process = reading.worker, reading.processes.worker or {}
        if not self._configured or worker is None or worker.age_seconds is None:
            self._note.tell(
                "The worker has not reported yet."
                if self._configured
                else "The worker does not learn from this endpoint."
            )
            for part in (self._facts.element, self._versions.element, self._refused.element):
                show(part, False)
            return
        for part in (self._facts.element, self._versions.element, self._refused.element):
            show(part, True)
        running, since = bool(process.get("fresh")), process.get("age_s", worker.age_seconds)
        self._note.tell("" if running else "Not running: these are its last words.", "warn")
        self._facts.tell("teacher's weight a", figure(worker.weight, 3))
        self._facts.tell("replay r", figure(worker.replay_ratio, 3))
        self._facts.tell("teacher step K", f"{worker.teacher_every} batches" if worker.teacher_every else NONE)
        self._facts.tell("batches", count(worker.batches))
        self._facts.tell("rows learned", count(worker.trained_rows))
        last = reading.processes.traffic.get("last_seq", 0)
        self._facts.tell("entries behind", count(max(0, last - worker.position)))
        self._facts.tell("loss", figure(worker.loss))
        self._facts.tell("last report", f"{span(since)} ago", "" if running else "bad")
        self._versions.tell(sorted(worker.versions.items()))
        self._refused.tell(
            [
                [f"{one.bundle} {one.version}", Cell("; ".join(one.reasons) or "its report has been removed", "wide")]
                for one in worker.refused[: -MAX_REFUSED_VERSIONS - 1 : -1]
            ]
        )

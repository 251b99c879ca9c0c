"""The transfer worker: its own process; reads labelled traffic, co-distils, publishes.

    labelled log -> batches (stream) -> co-distillation (codistill) -> checkpoint -> calibrate, judge, publish (line)

The place in the log is committed together with the models (checkpoint), so a worker killed at any moment goes on from a
state in which every row up to its place has been trained on exactly once. It knows no server: it reads a traffic log
and writes bundles; serving finds them by itself.
"""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.bundle import GateReport
from pipeline.clock import Clock, SystemClock
from pipeline.errors import InvalidInput, NotReady
from pipeline.row_format import RowFormat
from pipeline.traffic.log import TrafficLog
from pipeline.verified import NOTES
from pipeline.versions import Repository
from transfer.adapt import AdaptSettings
from transfer.checkpoint import Checkpoints, Place
from transfer.codistill import CoDistiller
from transfer.gate import GateLimits
from transfer.line import Line
from transfer.model import ClickModel
from transfer.recalibrate import HeldRows
from transfer.replay_store import ReplayRows
from transfer.stream import StreamBatch, read_batches

__all__ = ["Worker", "WorkerSettings"]

POLL = 0.2
IDLE_SHARE = 0.1
"""Most of its time that a worker without a full batch spends on reading the rows of the next one again."""
CHECKPOINT_EVERY = 300.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerSettings:
    """What the worker is told; see the `worker` section of the configuration for each."""

    endpoint: str
    teacher: str
    student: str
    folder: Path
    segments: Path
    status: Path
    batch_rows: int = 4096
    adapt: AdaptSettings = field(default_factory=AdaptSettings)
    retained: Path | None = None
    holdout: float = 0.05
    publish_interval: float = 60.0
    publish_batches: int = 20
    teacher_publish_interval: float = 600.0
    gate: GateLimits = field(default_factory=GateLimits)
    gate_rows: int = 20_000
    compact_after: int = 16
    rows: RowFormat | None = None
    seed: int = 0


class Worker:
    """Learns from `traffic` what the student of an endpoint needs to take over from its teacher.

    Args:
        anchor: gives the student version at which the current rollout step began, or None.

    Raises:
        InvalidInput: the student's bundle is frozen, teacher and student are one bundle or do not take the same fields,
            or the folder holds the state of other models.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        traffic: TrafficLog,
        repository: Repository,
        *,
        anchor: Callable[[], str | None] = lambda: None,
        clock: Clock | None = None,
    ) -> None:
        self._settings = settings
        self._traffic = traffic
        self._anchor = anchor
        self._clock = clock or SystemClock()
        if settings.teacher == settings.student:
            raise InvalidInput(
                f"endpoint {settings.endpoint!r}: teacher and student are both bundle {settings.student!r}; "
                "the student needs a name of its own"
            )
        self._checkpoints = Checkpoints(settings.folder)
        self._repository = repository
        self._student = self._line("student", settings.student, repository)
        self._teacher = self._line("teacher", settings.teacher, repository)
        if self._student.model.frozen:
            raise InvalidInput(
                f"bundle {settings.student} has no training state: it serves but cannot learn; "
                "make the student with `baton transfer`, or leave the worker out of the config"
            )
        difference = self._student.model.schema.inputs_match(self._teacher.model.schema)
        if difference:
            raise InvalidInput(f"{settings.student} and {settings.teacher} take different fields: {difference}")
        self._held = HeldRows(settings.gate_rows, ("student", "teacher"))
        self.place = Place()
        self._distiller = CoDistiller(
            self._teacher.model,
            self._student.model,
            ReplayRows(settings.retained) if settings.retained else None,
            settings=settings.adapt,
            seed=settings.seed,
            teacher_learns=not self._teacher.model.frozen,
        )
        self._restore()
        now = self._clock.monotonic()
        self._last_publish = {"student": now, "teacher": now}
        self._last_commit = now
        self._committed = self.place.position
        self._goes_on_from = {line.name: list(line.chain) for line in self._lines}
        self._last_report: dict[str, GateReport] = {}
        self._last_loss: float | None = None

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set, then commit what was learned."""
        while not stop.is_set():
            began = self._clock.monotonic()
            try:
                learned = self.step(stop)
            except NotReady as error:
                log.warning("waiting: %s", error)
                learned = False
            if not learned:
                stop.wait(max(POLL, (self._clock.monotonic() - began) / IDLE_SHARE))
        self.commit()

    def step(self, stop: threading.Event | None = None) -> bool:
        """Learn the full batches that are there, publishing when due; whether there were any."""
        s = self._settings
        schema = self._student.model.schema
        learned = False
        batches = read_batches(
            self._traffic, s.endpoint, schema, self.place.position, rows=s.batch_rows, holdout=s.holdout
        )
        for batch in batches:
            self._learn(batch)
            learned = True
            self._publish_if_due()
            if self._clock.monotonic() - self._last_commit >= CHECKPOINT_EVERY:
                self._last_commit = self._clock.monotonic()  # one that fails is tried again after as long
                self.commit()
            self._write_status()
            if stop is not None and stop.is_set():
                break
        if not learned:
            self._write_status()
        return learned

    def commit(self) -> None:
        """Write a checkpoint of everything up to the present place."""
        lines = {line.role: line.state() for line in self._lines}
        self.place.extra["lines"] = lines
        self.place.extra["adaptation"] = self._distiller.adaptation.state()
        arrays: dict[str, Any] = {"held": self._held.state()}
        for line in self._lines:
            header, tensors = line.model.state_dict()
            self.place.extra[f"{line.role}_model"] = header
            arrays[line.role] = tensors
            arrays[f"{line.role}_recent"] = line.recent.state()
        self._checkpoints.save(self.place, arrays)
        self._committed = self.place.position
        self._goes_on_from = {line.name: list(line.chain) for line in self._lines}
        self._last_commit = self._clock.monotonic()

    @property
    def _lines(self) -> tuple[Line, ...]:
        """The lines that learn."""
        return (self._student,) if self._teacher.model.frozen else (self._student, self._teacher)

    def _learn(self, batch: StreamBatch) -> None:
        number = self.place.batches + 1
        if len(batch.train):
            passed = self._distiller.learn(batch, number)
            # A late label is no second row: it brings the difference of the labels, and a probability of 0.
            late = ~np.isnan(batch.train.previous)
            labels = np.where(late, batch.train.labels - batch.train.previous, batch.train.labels)
            self._student.recent.add(np.where(late, np.float32(-np.inf), passed.student), labels)
            scored = np.isfinite(passed.teacher)
            self._teacher.recent.add(np.where(late, np.float32(-np.inf), passed.teacher)[scored], labels[scored])
            self._held.add(
                batch.held.rows,
                batch.held.labels,
                {"student": passed.held_student, "teacher": passed.held_teacher},
                self.place.trained_rows,
            )
            self._last_loss = passed.loss
        self.place.position = batch.last
        self.place.batches = number
        self.place.trained_rows += len(batch.train)
        self.place.held_rows += len(batch.held)

    def _publish_if_due(self) -> None:
        s = self._settings
        now = self._clock.monotonic()
        due = [
            line
            for line, interval in ((self._student, s.publish_interval), (self._teacher, s.teacher_publish_interval))
            if line in self._lines
            and now - self._last_publish[line.role] >= interval
            and self.place.batches - line.published_batch >= s.publish_batches
        ]
        if not due or self._held.labels.sum() < s.gate.min_positives:
            return
        for line in due:
            self._last_publish[line.role] = now  # what fails is tried again after as long
        try:
            self.commit()
            for line in due:
                anchor = self._anchor() if line is self._student else None
                self._last_report[line.role] = line.publish(
                    self._held, self.place.trained_rows, self.place.batches, anchor, self._clock.wall_ms()
                )
                self._last_publish[line.role] = self._clock.monotonic()
        except NotReady as error:
            log.error("nothing is published now: %s", error)

    def _line(self, role: str, name: str, repository: Repository) -> Line:
        s = self._settings
        chain = repository.newest(name, verify=True, notes=s.segments / name / NOTES)
        model = ClickModel.from_bundle(chain, chain[-1])
        model.stored = s.rows or model.stored
        versions = [bundle.manifest.version for bundle in chain]
        return Line(role, name, model, repository, s.segments, s.gate, s.compact_after, versions)

    def _restore(self) -> None:
        found = self._checkpoints.load()
        if found is None:
            return
        place, arrays = found
        lines = place.extra["lines"]
        names = {line.role: line.name for line in self._lines}
        if any(lines[role]["name"] != name for role, name in names.items() if role in lines):
            raise InvalidInput(
                f"{self._settings.folder} holds the state of another pair of models ({lines}); "
                "give this worker a folder of its own or remove that one"
            )
        for line in self._lines:
            there = self._repository.versions(line.name)
            gone = [version for version in lines[line.role]["chain"] if version not in there]
            if gone:
                raise InvalidInput(
                    f"{self._settings.folder} goes on from versions {', '.join(gone)} of {line.name}, which are not in "
                    "the repository any more; bring them back, or remove that folder to start from the newest version"
                )
        self.place = place
        self._held.restore(arrays.get("held", {}))
        self._distiller.adaptation.restore(place.extra["adaptation"])
        for line in self._lines:
            line.model.load_state(place.extra[f"{line.role}_model"], arrays[line.role])
            line.recent.restore(arrays[f"{line.role}_recent"])
            line.restore(lines[line.role])
        log.info("going on from position %d after %d batches", place.position, place.batches)

    def _write_status(self) -> None:
        newest = self.place
        status = {
            "time_ms": self._clock.wall_ms(),
            "position": newest.position,
            "committed": self._committed,
            "batches": newest.batches,
            "trained_rows": newest.trained_rows,
            "held_rows": newest.held_rows,
            "loss": self._last_loss if math.isfinite(self._last_loss or 0.0) else None,
            "weight": self._distiller.adaptation.a,
            "replay_ratio": self._distiller.adaptation.replay,
            "teacher_every": self._distiller.adaptation.every,
            "versions": {line.name: line.version for line in self._lines},
            # Versions that it needs to go on, from here or after a crash from its last checkpoint.
            "chains": {
                line.name: sorted({*line.chain, *self._goes_on_from[line.name]}, key=int) for line in self._lines
            },
            "refused": {line.name: line.refused for line in self._lines},
            "reports": {role: report.model_dump() for role, report in self._last_report.items()},
        }
        staging = self._settings.status.with_suffix(".tmp")
        try:
            staging.parent.mkdir(parents=True, exist_ok=True)
            staging.write_text(json.dumps(status))
            staging.rename(self._settings.status)
        except OSError as error:
            log.warning("%s cannot be written: %s", self._settings.status, error.strerror)

"""The transfer worker: a process that reads labelled traffic, co-distils and publishes.

    labelled log -> batches (stream) -> co-distillation (codistill) -> checkpoint -> calibrate, judge, publish (lineage)

The place in the log is committed together with the models (resume), so a worker killed at any moment goes on from a
state in which every row up to its place has been trained on exactly once. A model that diverges is set back to its last
good state. It knows no server: it reads a traffic log and writes bundles, which serving finds by itself. A worker has one
teacher and one student; `transfer.online.arms` makes another worker when they change.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.bundle.bundle import GateReport
from pipeline.bundle.row_format import RowFormat
from pipeline.bundle.teachers import IMPORTED, REMOTE, teacher_kind
from pipeline.bundle.verified import NOTES
from pipeline.bundle.versions import Repository
from pipeline.clock import Clock, SystemClock
from pipeline.errors import DataError, Diverged, InvalidInput, NotReady
from pipeline.reports import write_report
from pipeline.traffic.log import TrafficLog
from transfer.bundles.publish import load
from transfer.click_model.device import DeviceChoice, device_for
from transfer.click_model.model import ClickModel
from transfer.model_zoo import ZOO_ALONE, Architectures
from transfer.online.adapt import AdaptSettings
from transfer.online.checkpoint import Checkpoints, Place
from transfer.online.codistill import CoDistiller, Passed, logit_of
from transfer.online.lineage import LOGGED, Lineage
from transfer.online.recalibrate import HeldRows
from transfer.online.replay_store import ReplayRows
from transfer.online.resume import Recovery
from transfer.online.stream import Fields, StreamBatch, StreamRows, Tail, read_batches
from transfer.online.teacher import open_teacher
from transfer.online.tenure import Alone, Tenure
from transfer.online.waits import Waits
from transfer.online.weight_schedule import WeightSchedule
from transfer.quality.gate import GateLimits

__all__ = ["Worker", "WorkerSettings", "report"]

POLL_S = 0.2
IDLE_FRACTION = 0.1
"""Largest fraction of its time that a worker without a full batch spends on reading the rows of the next one again."""
CHECKPOINT_EVERY_S = 300.0
MAX_ASIDE_BATCHES = 3
"""Batches in a row that are set aside as bad; after that the student counts as diverged."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerSettings:
    """Settings of a worker; the `worker` section of the configuration describes each."""

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
    device: DeviceChoice = "cpu"
    seed: int = 0
    architectures: Architectures = ZOO_ALONE


def report(path: Path, status: Mapping[str, Any]) -> None:
    """Write the worker's status file; a disk that is full costs the file alone."""
    try:
        write_report(path, json.dumps(status))
    except OSError as error:
        log.warning("%s cannot be written: %s", path, error.strerror)


class Worker:
    """Trains the student of an endpoint, and its teacher where that learns here, on labelled traffic.

    Args:
        anchor: reads the student version at which the current rollout step began, or None.
        begin: position of the log to start after, where the folder holds no state yet.
        tenure: without it nothing is published.

    Raises:
        InvalidInput: the student's bundle cannot learn, teacher and student are one bundle or contradict each other in a
            field, or the folder holds the state of other models.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        traffic: TrafficLog,
        repository: Repository,
        *,
        anchor: Callable[[], str | None] = lambda: None,
        clock: Clock | None = None,
        begin: int = 0,
        tenure: Tenure | None = None,
    ) -> None:
        self._settings = settings
        self._tenure = tenure or Alone()
        self._traffic = traffic
        self._anchor = anchor
        self._clock = clock or SystemClock()
        if settings.teacher == settings.student:
            raise InvalidInput(
                f"endpoint {settings.endpoint!r}: teacher and student are both bundle {settings.student!r}; "
                "the student needs a name of its own"
            )
        self._student = self._open_student(repository)
        self._guide = open_teacher(
            repository, settings.teacher, settings.segments / settings.teacher / NOTES, settings.architectures
        )
        self._teacher: Lineage | None = None
        if self._guide.model is not None:
            self._teacher = self._lineage("teacher", self._guide.model, self._guide.chain, repository)
        self._fields = self._fields_of_both()
        least = settings.gate.min_positives
        self._held = HeldRows(settings.gate_rows, ("student", "teacher", LOGGED), least)
        # A teacher with fields of its own needs its own form of the same rows.
        self._held_by_teacher = (
            self._held if self._fields.teacher is None else HeldRows(settings.gate_rows, ("teacher",), least)
        )
        self.place = Place(position=begin)
        self._distiller = CoDistiller(
            self._guide.model,
            self._student.model,
            ReplayRows(settings.retained) if settings.retained else None,
            settings=settings.adapt,
            seed=settings.seed,
        )
        self._recovery = Recovery(
            Checkpoints(settings.folder),
            repository,
            self._lineages,
            self._held,
            self._distiller,
            settings.architectures,
            None if self._held_by_teacher is self._held else self._held_by_teacher,
        )
        self.place = self._recovery.restore() or self.place
        self._weight_schedule = WeightSchedule(settings.folder / "steering.jsonl", self.place.batches)
        now = self._clock.monotonic()
        self._last_publish = {"student": now, "teacher": now}
        self._last_commit = now
        self._committed = self.place.position
        self._goes_on_from = {lineage.name: list(lineage.chain) for lineage in self._lineages}
        self._last_report: dict[str, GateReport] = {}
        self._last_loss: float | None = None
        self._aside_in_row = 0
        self._tail = Tail(0, self.place.position, 0)
        self._waits = Waits(self._clock)

    def run(self, leave: Callable[[], bool], wait: Callable[[float], object]) -> None:
        """Work until `leave` is true, then commit. `wait` sleeps for a number of seconds, or less when the worker is to stop."""
        while not leave():
            began = self._clock.monotonic()
            try:
                learned = self.step(leave)
            except NotReady as error:
                self._waits.note("log", f"the traffic log or the disk: {error}")
                self.write_status()
                learned = False
            if not learned:
                wait(max(POLL_S, (self._clock.monotonic() - began) / IDLE_FRACTION))
        self.commit()

    def step(self, leave: Callable[[], bool] = lambda: False) -> bool:
        """Learn the full batches of the log, publishing when due; whether there were any."""
        learned = False
        self._publish([lineage for lineage in self._lineages if lineage.role in self.place.publishing], commit=False)
        for batch in self._batches():
            self._learn(batch)
            learned = True
            self._publish_if_due()
            if self._clock.monotonic() - self._last_commit >= CHECKPOINT_EVERY_S:
                self._last_commit = self._clock.monotonic()  # a failed one is tried again after the same time
                self.commit()
            self.write_status()
            if leave():
                break
        self._waits.end("log")
        if learned:
            self._waits.end("rows")
        else:
            rows = self._settings.batch_rows
            self._waits.note("rows", f"labelled rows: {self._tail.rows} of the {rows} of the next batch are there")
            self.write_status()
        return learned

    def _batches(self) -> Iterator[StreamBatch]:
        s = self._settings
        self._tail = yield from read_batches(
            self._traffic, s.endpoint, self._fields, self.place.position, rows=s.batch_rows, holdout=s.holdout
        )
        # Nothing up to there is for this worker, however often it is read.
        self.place.position = self._tail.last
        self.place.featureless += self._tail.featureless

    def retire_teacher(self, retired: bool) -> None:
        """Whether the student serves all traffic for good. It then learns from labels alone and its teacher stops learning."""
        if retired != self._distiller.adaptation.retired:
            log.info("the teacher %s %s", self._guide.name, "retires" if retired else "teaches again")
            self._distiller.retire_teacher(retired)

    def commit(self) -> None:
        """Write a checkpoint of everything up to the present place. A diverged model is set back first."""
        for lineage in self._lineages:
            if not lineage.model.finite():
                self._recovery.heal(lineage, "its weights are not finite")
        self._recovery.commit(self.place)
        self._committed = self.place.position
        self._goes_on_from = {lineage.name: list(lineage.chain) for lineage in self._lineages}
        self._last_commit = self._clock.monotonic()

    @property
    def _lineages(self) -> tuple[Lineage, ...]:
        """The lineages that learn."""
        return (self._student,) if self._teacher is None else (self._student, self._teacher)

    def _learn(self, batch: StreamBatch) -> None:
        number = self.place.batches + 1
        passed = self._learned(batch, number) if len(batch.train) else None
        if passed is not None:
            # A late label is no second row: it brings the difference of the labels, and a probability of 0.
            late = ~np.isnan(batch.train.previous)
            labels = np.where(late, batch.train.labels - batch.train.previous, batch.train.labels)
            counts = batch.train.stands_for
            self._student.recent.add(np.where(late, np.float32(-np.inf), passed.student), labels, counts)
            if self._teacher is not None:
                scored = np.isfinite(passed.teacher)
                teacher = np.where(late, np.float32(-np.inf), passed.teacher)[scored]
                self._teacher.recent.add(teacher, labels[scored], counts[scored])
            self._hold(batch.held, passed)
            self._last_loss = passed.loss
            self._weight_schedule.add(passed.adapted)
            self.place.trained_rows += len(batch.train)
        self.place.position = batch.last
        self.place.featureless += batch.featureless
        self.place.batches = number
        self.place.held_rows += len(batch.held)

    def _learned(self, batch: StreamBatch, number: int) -> Passed | None:
        """The result of learning a batch; None for one that is set aside."""
        try:
            try:
                passed = self._distiller.learn(batch, number)
            except Diverged as error:
                # Is it the batch or the student? A student with finite weights may have diverged all the same.
                if self._student.model.finite() and self._aside_in_row < MAX_ASIDE_BATCHES:
                    raise
                self._recovery.heal(self._student, str(error))
                passed = self._distiller.learn(batch, number)
        except (DataError, Diverged) as error:
            self._aside_in_row += 1
            self.place.set_aside += 1
            log.warning("batch %d, up to position %d of the log, is set aside: %s", number, batch.last, error)
            return None
        self._aside_in_row = 0
        self.place.unguided_rows += passed.unguided
        if self._teacher is not None and not math.isfinite(passed.teacher_loss or 0.0):
            self._recovery.heal(self._teacher, "its loss is not finite")
        return passed

    def _hold(self, held: StreamRows, passed: Passed) -> None:
        first = np.isnan(held.previous)
        index = np.flatnonzero(first)
        logits = {
            "student": passed.held_student[first],
            "teacher": passed.held_teacher[first],
            LOGGED: logit_of(held.stable[first]),
        }
        forms = {
            id(self._held): (self._held, held.rows),
            id(self._held_by_teacher): (self._held_by_teacher, held.for_teacher),
        }
        if self._held_by_teacher is self._held:
            forms = {id(self._held): (self._held, held.rows)}
        for kept, rows in forms.values():
            kept.revise(held.keys[~first], held.labels[~first])
            kept.add(
                rows.take(index), held.labels[first], logits, self.place.trained_rows, held.keys[first],
                held.stands_for[first],
            )  # fmt: skip

    def _publish_if_due(self) -> None:
        s = self._settings
        now = self._clock.monotonic()
        due = [
            lineage
            for lineage, interval in ((self._student, s.publish_interval), (self._teacher, s.teacher_publish_interval))
            if lineage is not None
            and not (lineage is self._teacher and self._distiller.adaptation.retired)
            and now - self._last_publish[lineage.role] >= interval
            and self.place.batches - lineage.published_batch >= s.publish_batches
        ]
        if not due:
            return
        scarce, there = self._held.rarer
        if there < s.gate.min_positives:
            self._waits.note(
                "clicks",
                f"{scarce} for the gate of the next version: {there} of {s.gate.min_positives} are there, among "
                f"{len(self._held)} held-out rows",
            )
            return
        self._waits.end("clicks")
        # A worker killed from here on publishes them first after its restart: what is learned after a publication depends
        # on the new calibration, so the publication must not be left out.
        self.place.publishing = [lineage.role for lineage in due]
        self._publish(due, commit=True)

    def _publish(self, due: Sequence[Lineage], *, commit: bool) -> None:
        """Publish the next versions of lineages from the state as it is, which the newest checkpoint holds or, with
        `commit`, will hold."""
        for lineage in due:
            self._last_publish[lineage.role] = (
                self._clock.monotonic()
            )  # a failed one is tried again after the same time
        try:
            if commit:
                self.commit()
            for lineage in due:
                if not self._tenure.holds():
                    raise NotReady(f"another worker of endpoint {self._settings.endpoint!r} has taken over")
                anchor = self._anchor() if lineage is self._student else None
                held = self._held if lineage is self._student else self._held_by_teacher
                self._last_report[lineage.role] = lineage.publish(
                    held, self.place.trained_rows, self.place.batches, anchor, self._clock.wall_ms()
                )
                self._last_publish[lineage.role] = self._clock.monotonic()
                if lineage is self._student and self._last_report[lineage.role].passed:
                    self._tenure.published(self.place.position)
        except NotReady as error:
            log.error("nothing is published now: %s", error)
        finally:
            self.place.publishing = []

    def _open_student(self, repository: Repository) -> Lineage:
        s = self._settings
        chain = repository.newest(s.student, verify=True, notes=s.segments / s.student / NOTES)
        manifest = chain[-1].manifest
        advice = "make the student with `baton transfer`, or leave the worker out of the config"
        if teacher_kind(manifest, lambda architecture: architecture not in (IMPORTED, REMOTE)) != "learns":
            why = "was imported" if manifest.architecture == IMPORTED else "has no training state"
            why = "is answered by another server" if manifest.architecture == REMOTE else why
            raise InvalidInput(f"bundle {s.student} {why}: it serves but cannot learn; {advice}")
        model = load(chain, s.architectures)
        if model.frozen:
            raise InvalidInput(f"bundle {s.student} has no training state: it serves but cannot learn; {advice}")
        return self._lineage("student", model, [bundle.manifest.version for bundle in chain], repository)

    def _lineage(self, role: str, model: ClickModel, versions: Sequence[str], repository: Repository) -> Lineage:
        s = self._settings
        model.stored = s.rows or model.stored
        model.to(device_for(s.device))
        name = s.student if role == "student" else s.teacher
        return Lineage(role, name, model, repository, s.segments, s.gate, s.compact_after, list(versions))

    def _fields_of_both(self) -> Fields:
        """The fields of student and teacher.

        Raises:
            InvalidInput: a field of both is not the same in both.
        """
        own, teacher = self._student.model.schema, self._guide.schema
        if teacher is None:
            return Fields(own, None, {self._settings.student: own})
        difference = own.inputs_match(teacher)
        if difference:
            raise InvalidInput(f"{self._settings.student} contradicts {self._settings.teacher}: {difference}")
        apart = self._guide.model is not None and teacher.columns != own.columns
        known = {self._settings.student: own, self._settings.teacher: teacher}
        return Fields(own, teacher if apart else None, known)

    def write_status(self) -> None:
        """Write the status file."""
        place = self.place
        status = {
            "time_ms": self._clock.wall_ms(),
            "pid": os.getpid(),
            "state": "waiting" if self._waits.text else "learning",
            "waiting": self._waits.text,
            "position": place.position,
            "committed": self._committed,
            "batches": place.batches,
            "trained_rows": place.trained_rows,
            "held_rows": place.held_rows,
            "set_aside": place.set_aside,
            "unguided_rows": place.unguided_rows,
            "featureless": place.featureless,
            "teacher": self._guide.status(),
            "healed": {lineage.name: lineage.healed for lineage in self._lineages},
            "teacher_retired": self._distiller.adaptation.retired,
            "loss": self._last_loss if math.isfinite(self._last_loss or 0.0) else None,
            "weight": self._distiller.adaptation.teacher_weight,
            "replay_ratio": self._distiller.adaptation.replay,
            "teacher_every": self._distiller.adaptation.every,
            "versions": {lineage.name: lineage.version for lineage in self._lineages},
            # Versions that it needs to go on, from here or after a crash from its last checkpoint.
            "chains": {
                lineage.name: sorted({*lineage.chain, *self._goes_on_from[lineage.name]}, key=int)
                for lineage in self._lineages
            },
            "refused": {lineage.name: lineage.refused for lineage in self._lineages},
            "reports": {role: report.model_dump() for role, report in self._last_report.items()},
        }
        report(self._settings.status, status)

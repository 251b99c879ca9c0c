"""The experiment `crossadapt`: a teacher, its student and alternatives, on the same rows.

    history | retained window | stream                     | test
    teacher ------------------> every run: test, then train | every run: test alone

Per seed one teacher is trained on history and window; then each run of `runs` learns the stream and is judged.
Next stop: `report` (tables and JSON) and `plots`.
"""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from pipeline.arrays import F32
from pipeline.errors import InvalidInput
from transfer.click_model.model import ClickModel
from transfer.click_model.state import state_of
from transfer.data.log import Log
from transfer.data.memory import MemoryLog
from transfer.experiment.learners import Judged
from transfer.experiment.runs import RUNS, STANDARD, Start, Task
from transfer.model_zoo import Architectures, parse_arch
from transfer.offline.held import measure
from transfer.offline.train import train
from transfer.quality.figures import Decile, deciles
from transfer.quality.measured import PeakMemory, Stopwatch

__all__ = ["Point", "RunResult", "Split", "crossadapt"]

Tell = Callable[[str], None]
Metrics = dict[str, float | None]

STREAM_BATCH_ROWS = 512
"""Least rows per step on the stream: below it a step costs more in calls than in work, most of all co-distillation's."""
CURVE_POINTS = 24
"""Of a curve along the stream."""


@dataclass(frozen=True, slots=True)
class Split:
    """Ends of the parts of the log, as fractions of its rows in time order; the test part ends with the log."""

    history: float = 0.4
    retained: float = 0.8
    stream: float = 0.9

    def __post_init__(self) -> None:
        edges = (0.0, self.history, self.retained, self.stream, 1.0)
        if not all(a < b for a, b in pairwise(edges)):
            raise InvalidInput(f"the parts of the log end at {edges[1:]}; they must follow each other", "split")


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a curve along the stream: rows up to it, Unix milliseconds, seconds trained, metrics of the rows since the
    point before, and a, r, K where the run has them."""

    rows: int
    time_ms: int
    train_seconds: float
    auc: float | None
    logloss: float | None
    bias: float | None
    weights: dict[str, float]


@dataclass(frozen=True, slots=True)
class RunResult:
    """Results of one run of one seed; metrics as of `transfer.offline.train.measure`."""

    name: str
    seed: int
    stream: Metrics
    test: Metrics
    stage1: Metrics | None
    train_seconds: float
    rows_per_second: float
    peak_mb: float
    curve: list[Point] = field(default_factory=list)
    deciles: list[Decile] = field(default_factory=list)


def crossadapt(
    log: Log,
    teacher_arch: str,
    student_arch: str,
    *,
    seeds: Sequence[int],
    runs: Sequence[str] = STANDARD,
    split: Split | None = None,
    clock: Callable[[], float] = time.perf_counter,
    tell: Tell = lambda _: None,
) -> Iterator[RunResult]:
    """The results of all runs, one after another.

    Args:
        log: rows in time order; kept in memory while the runs walk them.
        teacher_arch, student_arch: as in `dnn-8`: a name of the zoo or `package.module:Class`, and the vectors' width.
        seeds: a teacher and all runs for each.
        runs: their names, of `RUNS`.
        split: of the log.
        clock: seconds that training is measured in.
        tell: takes one line of progress.

    Raises:
        InvalidInput: an unknown run or architecture, no seeds.
        DataError: a part of the log has no rows or labels of one class.
    """
    split = split or Split()
    unknown = [name for name in runs if name not in RUNS]
    if unknown or not runs or not seeds:
        raise InvalidInput(f"runs are {', '.join(RUNS)}, and there must be a seed; got {list(runs)}, {seeds}", "runs")
    teacher_kind, teacher_width = parse_arch(teacher_arch)
    student_kind, student_width = parse_arch(student_arch)
    architectures = Architectures([teacher_kind, student_kind])  # a wrong name is refused before anything is trained
    kept = log if isinstance(log, MemoryLog) else MemoryLog(log)
    _warm_up(kept)
    for seed in seeds:
        tell(f"seed {seed}: teacher {teacher_arch} on {kept.rows_between(0, split.retained):,} rows")
        watch = Stopwatch(clock)
        with watch.running():
            teacher = train(
                kept, teacher_kind, width=teacher_width, stop=split.retained, seed=seed, architectures=architectures
            )
        task = Task(
            log=kept,
            retained=(split.history, split.retained),
            stream_rows=kept.rows_between(split.retained, split.stream),
            arch=student_kind,
            architectures=architectures,
            width=student_width,
            teacher=state_of(teacher),
            teacher_seconds=watch.seconds,
            seed=seed,
            batch=stream_batch(kept.rows_between(split.retained, split.stream)),
        )
        for name in runs:
            result = _run(name, task, split, clock)
            tell(_line(result))
            yield result


def stream_batch(rows: int) -> int:
    """Rows per step on a stream of so many: a power of two from `STREAM_BATCH_ROWS` that gives 20 to 40 steps, up to the worker's."""
    return min(max(STREAM_BATCH_ROWS, 1 << ((rows // 20).bit_length() - 1)), 4096)


def _run(name: str, task: Task, split: Split, clock: Callable[[], float]) -> RunResult:
    gc.collect()
    memory, watch = PeakMemory(), Stopwatch(clock)
    start = RUNS[name](task, watch)
    model = start.learner.model
    stage1 = measure(*_scores(model, task.log, split.retained, split.stream)) if start.transferred else None
    stream, curve = _follow(start, task, split, watch)
    test = _scores(model, task.log, split.stream, 1.0)
    seconds = watch.seconds + start.seconds_before
    return RunResult(
        name=name,
        seed=task.seed,
        stream=measure(*stream),
        test=measure(*test),
        stage1=stage1,
        train_seconds=seconds,
        rows_per_second=model.rows_trained / seconds,
        peak_mb=memory.megabytes,
        curve=curve,
        deciles=deciles(test[0], test[1], stands_for=test[2]),
    )


def _warm_up(log: MemoryLog) -> None:
    """Load kernels and start threads before any run is measured."""
    model = ClickModel.create(log.schema, "deepfm", 4, seed=0)
    for chunk in itertools.islice(log.chunks(0.0, 1.0, 256), 20):
        model.step(chunk.rows, chunk.labels)
    model.scores(chunk.rows)


def _follow(start: Start, task: Task, split: Split, watch: Stopwatch) -> tuple[_Scored, list[Point]]:
    """Scores and labels of the whole stream, each row judged before it was learned, and the curve."""
    every, rows, first = max(1, task.stream_rows // CURVE_POINTS), 0, 0
    judged: list[Judged] = []
    curve: list[Point] = []

    def point(time_ms: int) -> None:
        part = measure(*_joined(judged[first:]))
        seconds = watch.seconds + start.seconds_before
        curve.append(Point(rows, time_ms, seconds, part["auc"], part["logloss"], part["bias"], judged[-1].weights))

    for chunk in task.log.chunks(split.retained, split.stream, task.batch):
        judged.append(start.learner.learn(chunk, watch))
        rows += len(chunk)
        if rows >= (len(curve) + 1) * every:
            point(int(chunk.time_ms[-1]))
            first = len(judged)
    start.learner.finish(watch)
    return _joined(judged), curve


_Scored = tuple[F32, F32, F32]
"""Scores and labels of rows, and what they stand for."""


def _joined(judged: Sequence[Judged]) -> _Scored:
    scores, labels, stand_for = zip(*((j.scores, j.labels, j.stands_for) for j in judged), strict=True)
    return np.concatenate(scores), np.concatenate(labels), np.concatenate(stand_for)


def _scores(model: ClickModel, log: Log, start: float, stop: float) -> _Scored:
    scored = ((model.scores(chunk.rows), chunk.labels, chunk.stands_for) for chunk in log.chunks(start, stop))
    scores, labels, stand_for = zip(*scored, strict=True)
    return np.concatenate(scores), np.concatenate(labels), np.concatenate(stand_for)


def _line(r: RunResult) -> str:
    def text(metrics: Metrics) -> str:
        return " ".join(f"{k} {v:.4f}" for k, v in metrics.items() if k in ("auc", "logloss", "bias") and v is not None)

    return f"seed {r.seed}: {r.name:<16} stream {text(r.stream)}  test {text(r.test)}  {r.train_seconds:.1f} s"

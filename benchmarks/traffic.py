"""`baton bench traffic`: throughput of the traffic log, from answer to labelled row.

A lane process writes predictions and, for each, feedback (all exposed, clicks final for a fifth of the rows) through
`TrafficWriter`; this process joins and reads the labelled log at the same time, as control and worker do. Everything
goes as fast as it can, or at `rate` predictions per second, to see how long an acknowledgement takes then. The figure
is labelled rows per second from the first row read to the last. Once into SQLite and, where redis-server is installed,
into a Redis of the bench's own, with and without a wait for the disk at each acknowledgement.
"""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
import time
from collections import deque
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from benchmarks.hierarchy.redis_server import PrivateRedis
from benchmarks.report import Progress, Report
from pipeline.clock import SystemClock
from pipeline.errors import BatonError
from pipeline.features import Features, IdPart
from pipeline.redis.address import RedisAddress
from pipeline.traffic.local.log import LocalTrafficLog
from pipeline.traffic.log import FeedbackEntry, FeedbackReply, Outcome, TrafficLog
from pipeline.traffic.prediction import PredictionIds
from pipeline.traffic.record import PredictionRecord, pack
from pipeline.traffic.redis.log import RedisTrafficLog
from pipeline.traffic.writer import TrafficWriter

__all__ = ["run"]

KEY = bytes(32)
WINDOW_MS = 200
IDLE_S = 0.02
LEAST = 20_000.0
"""Labelled rows per second on two cores, in requests of 100 rows or more."""


def record(prediction_id: str, time_ms: int, n: int, fields: int, context: int, rng: np.random.Generator) -> bytes:
    columns = np.arange(fields, dtype=np.int32)
    big = 1 << 62
    parts = (
        IdPart(columns[:context], rng.integers(-big, big, (1, context))),
        IdPart(columns[context:], rng.integers(-big, big, (n, fields - context))),
    )
    scores = rng.random(n, np.float32)
    return pack(PredictionRecord(prediction_id, time_ms, "ranker", "stable", "teacher", 1, Features(n, parts), scores))


def open_log(path: Path, ids: PredictionIds) -> TrafficLog:
    """Traffic log in the Redis on the socket `path`, or in the SQLite file `path`."""
    if path.suffix == ".sock":
        return RedisTrafficLog(RedisAddress(f"unix://{path}"), ids, WINDOW_MS)
    return LocalTrafficLog(path, ids, WINDOW_MS)


def lane(
    path: Path,
    seconds: float,
    n: int,
    fields: int,
    context: int,
    rate: float,
    result: multiprocessing.Queue[dict[str, float]],
) -> None:
    clock = SystemClock()
    ids = PredictionIds(KEY, 1)
    log = open_log(path, ids)
    writer = TrafficWriter(log, clock)
    rng = np.random.default_rng(1)
    waiting: deque[Future[list[FeedbackReply]]] = deque()
    acknowledged: list[float] = []
    predictions = 0
    begin = time.monotonic()
    while time.monotonic() < begin + seconds:
        if rate:
            time.sleep(max(0.0, begin + predictions / rate - time.monotonic()))
        prediction_id = ids.new(clock.wall_ms())
        if not writer.offer(record(prediction_id, clock.wall_ms(), n, fields, context, rng)):
            time.sleep(0.001)
            continue
        predictions += 1
        clicked = rng.choice(n, n // 5, replace=False).tolist()
        entry = FeedbackEntry(prediction_id, (), [Outcome(i, 1.0, final=True) for i in clicked], exposed_all=True)
        started = time.monotonic()
        future = writer.feedback([entry])
        future.add_done_callback(lambda _, started=started: acknowledged.append(time.monotonic() - started))  # type: ignore[misc]
        waiting.append(future)
        while len(waiting) > 256:
            waiting.popleft().result()
    for future in waiting:
        future.result()
    writer.close()
    log.close()
    p50, p99 = np.percentile(acknowledged, [50, 99])
    result.put(
        {
            "predictions": predictions,
            "dropped": sum(writer.counters().dropped.values()),
            "p50_ms": 1e3 * float(p50),
            "p99_ms": 1e3 * float(p99),
        }
    )


def run(
    seconds: float = 10.0,
    rows: int = 100,
    rate: float = 0.0,
    fields: int = 39,
    context: float = 0.6,
    progress: Progress = lambda _: None,
) -> Report:
    """Labelled rows per second, and times of acknowledgements.

    Args:
        seconds: of writing.
        rows: of each prediction.
        rate: predictions per second; 0: as many as go.
        fields: of each row.
        context: fraction of the fields that is written once per prediction.
    """
    report = Report("traffic")
    context_fields = int(fields * context)
    least = None if rate or rows < 100 else LEAST
    with tempfile.TemporaryDirectory() as home:
        progress(f"traffic: {seconds:.0f} s of predictions with {rows} rows into SQLite")
        path = Path(home) / "traffic"
        _measure(report, f"traffic/rows={rows}", path, seconds, rows, rate, fields, context_fields, least)
        if not PrivateRedis.installed():
            progress("traffic: redis-server is not installed; nothing is measured over Redis")
            return report
        for sync in ("everysec", "always"):
            progress(f"traffic: the same into Redis, appendfsync {sync}")
            folder = Path(home) / f"redis-{sync}"
            with PrivateRedis(folder, "--appendonly", "yes", "--appendfsync", sync):
                case = f"traffic/redis/{sync}/rows={rows}"
                _measure(report, case, folder / "r.sock", seconds, rows, rate, fields, context_fields)
            shutil.rmtree(folder)
    return report


def _measure(
    report: Report,
    case: str,
    path: Path,
    seconds: float,
    rows: int,
    rate: float,
    fields: int,
    context: int,
    at_least: float | None = None,
) -> None:
    log = open_log(path, PredictionIds(KEY))
    processes = multiprocessing.get_context("spawn")
    result = processes.Queue()
    child = processes.Process(target=lane, args=(path, seconds, rows, fields, context, rate, result), name="bench-lane")
    child.start()
    clock = SystemClock()
    after = labelled = 0
    start = joining = 0.0
    outcome = None
    while outcome is None or labelled < outcome["predictions"] * rows:
        if outcome is None and not child.is_alive() and result.empty():
            raise BatonError("the process that writes predictions failed; its message is above")
        before = time.monotonic()
        log.join(clock.wall_ms())
        joining += time.monotonic() - before
        batch = log.labelled(after)
        if batch:
            start = start or time.monotonic()
            after = batch[-1].seq
            labelled += sum(len(entry.indices) for entry in batch)
        else:
            time.sleep(IDLE_S)
        if outcome is None and not result.empty():
            outcome = result.get()
    taken = time.monotonic() - start
    child.join()
    stored = log.stats(clock.wall_ms()).bytes
    log.close()
    report.add(case, "labelled", labelled / taken, "rows/s", at_least=at_least)
    report.add(case, "predictions", outcome["predictions"] / seconds, "predictions/s")
    report.add(case, "dropped", outcome["dropped"], "predictions")
    report.add(case, "acknowledgement p50", outcome["p50_ms"], "ms")
    report.add(case, "acknowledgement p99", outcome["p99_ms"], "ms")
    report.add(case, "join", joining, "s")
    report.add(case, "stored", stored / max(1, labelled), "bytes/row")

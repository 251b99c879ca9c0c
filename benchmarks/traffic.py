"""How fast the traffic log takes requests from answer to labelled row: predictions, feedback, join, reading back.

    python -m benchmarks.traffic [--seconds 10] [--rows 100] [--fields 39] [--context 0.6] [--rate 200]

A lane process writes predictions and, for each, feedback (all exposed, clicks final for a fifth of the rows) through
`TrafficWriter`; this process joins and reads the labelled log at the same time, as control and worker do. Everything
goes as fast as it can, or at `--rate` predictions per second, to see how long an acknowledgement takes then. The figure
is labelled rows per second from the first row read to the last.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections import deque
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from pipeline.clock import SystemClock
from pipeline.features import Features, IdPart
from pipeline.prediction import PredictionIds
from pipeline.traffic.log import FeedbackEntry, FeedbackReply, Outcome
from pipeline.traffic.record import PredictionRecord, pack
from pipeline.traffic.sqlite import SqliteTrafficLog
from pipeline.traffic.writer import TrafficWriter

KEY = bytes(32)
WINDOW_MS = 200


def record(prediction_id: str, time_ms: int, n: int, fields: int, context: int, rng: np.random.Generator) -> bytes:
    columns = np.arange(fields, dtype=np.int32)
    big = 1 << 62
    parts = (
        IdPart(columns[:context], rng.integers(-big, big, (1, context))),
        IdPart(columns[context:], rng.integers(-big, big, (n, fields - context))),
    )
    scores = rng.random(n, np.float32)
    return pack(PredictionRecord(prediction_id, time_ms, "ranker", "stable", "teacher", 1, Features(n, parts), scores))


def lane(
    path: Path,
    seconds: float,
    n: int,
    fields: int,
    context: int,
    rate: float,
    result: multiprocessing.Queue[dict[str, object]],
) -> None:
    clock = SystemClock()
    ids = PredictionIds(KEY, 1)
    log = SqliteTrafficLog(path, ids, WINDOW_MS)
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
    counters = writer.counters()
    p50, p99 = np.percentile(acknowledged, [50, 99])
    result.put(
        {
            "predictions": predictions,
            "dropped": dict(counters.dropped),
            "commits": counters.commits,
            "ack_p50_ms": round(1e3 * p50, 1),
            "ack_p99_ms": round(1e3 * p99, 1),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--fields", type=int, default=39)
    parser.add_argument("--context", type=float, default=0.6, help="share of the fields that are context")
    parser.add_argument("--rate", type=float, default=0.0, help="predictions per second; 0: as fast as it can")
    arguments = parser.parse_args()
    context = int(arguments.fields * arguments.context)
    with tempfile.TemporaryDirectory() as home:
        path = Path(home) / "traffic.db"
        log = SqliteTrafficLog(path, PredictionIds(KEY), WINDOW_MS)
        processes = multiprocessing.get_context("spawn")
        result = processes.Queue()
        child = processes.Process(
            target=lane,
            args=(path, arguments.seconds, arguments.rows, arguments.fields, context, arguments.rate, result),
        )
        child.start()
        clock = SystemClock()
        after = rows = 0
        start = joining = 0.0
        outcome = None
        while outcome is None or rows < outcome["predictions"] * arguments.rows:
            before = time.monotonic()
            log.join(clock.wall_ms())
            joining += time.monotonic() - before
            batch = log.labelled(after)
            if batch:
                start = start or time.monotonic()
                after = batch[-1].seq
                rows += sum(len(entry.indices) for entry in batch)
            else:
                time.sleep(0.02)
            if outcome is None and not result.empty():
                outcome = result.get()
        taken = time.monotonic() - start
        child.join()
        stats = log.stats(clock.wall_ms())
        log.close()
    print(
        json.dumps(
            {
                **outcome,
                "rows": rows,
                "seconds": round(taken, 2),
                "rows_per_second": round(rows / taken),
                "join_seconds": round(joining, 2),
                "megabytes": round(stats.bytes / 1e6),
            }
        )
    )


if __name__ == "__main__":
    main()

"""`log/forgotten`, `log/forget`, `log/stats`: what a write, an erasure and a count cost in a log that has grown."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.log.settings import Settings
from benchmarks.log.traffic import Traffic, opened
from benchmarks.report import Progress, Report, interleaved, median
from pipeline.traffic.log import TrafficLog

__all__ = ["exponent", "forgotten", "grown"]

ROWS, FIELDS, CONTEXT = 2, 4, 2
"""Small predictions: their number is what counts."""
BATCH, ROUNDS, TRIES = 64, 40, 5
FORGOTTEN_AT_MOST, EXPONENT_AT_MOST = 1.5, 0.1
OF_A_USER = 10
LEAST_S = 1e-6


def exponent(sizes: tuple[int, int], costs: tuple[float, float]) -> float:
    """The e of a cost that grows as size^e.

    >>> exponent((10, 1000), (2.0, 2.0)), exponent((10, 1000), (1.0, 100.0))
    (0.0, 1.0)
    """
    small, large = (max(LEAST_S, cost) for cost in costs)
    return math.log(large / small) / math.log(sizes[1] / sizes[0])


def forgotten(report: Report, settings: Settings, progress: Progress) -> None:
    """Add `log/forgotten`: appends to a log in which many users were forgotten, and to one in which none was."""
    case = "log/forgotten"
    progress(f"{case}: {settings.keys:,} users are forgotten")
    with (
        tempfile.TemporaryDirectory(prefix="baton-bench-log-") as name,
        opened(Path(name) / "many") as (many, ids),
        opened(Path(name) / "none") as (none, other_ids),
    ):
        for key in range(1, settings.keys + 1):
            many.forget(key, many.now_ms())

        def append(log: TrafficLog, traffic: Traffic) -> Callable[[int], float]:
            def timed(turn: int) -> float:
                records = [traffic.record(turn * BATCH + n, log.now_ms())[1] for n in range(BATCH)]
                started = time.perf_counter()
                log.append_predictions(records)
                return 1e6 * (time.perf_counter() - started) / BATCH

            return timed

        found = interleaved(
            {
                "many": append(many, Traffic(ids, ROWS, FIELDS, CONTEXT)),
                "none": append(none, Traffic(other_ids, ROWS, FIELDS, CONTEXT)),
            },
            ROUNDS,
        )
    report.add(
        f"{case}/keys={settings.keys}",
        "append",
        median(found["many"]),
        "us/prediction",
        limit=median(found["none"]),
        at_most=FORGOTTEN_AT_MOST,
    )


def grown(report: Report, settings: Settings, progress: Progress) -> None:
    """Add `log/forget` and `log/stats`: both at two sizes of one log of open predictions."""
    costs: dict[str, list[float]] = {"log/forget": [], "log/stats": []}
    with tempfile.TemporaryDirectory(prefix="baton-bench-log-") as name, opened(Path(name)) as (log, ids):
        traffic, written = Traffic(ids, ROWS, FIELDS, CONTEXT), 0
        for size in settings.predictions:
            progress(f"{' and '.join(costs)}: a log of {size:,} predictions")
            users = [1 + written + user for user in range(TRIES)]
            now = log.now_ms()
            for user in users:  # half of a user's predictions are old, half of them new
                log.append_predictions([traffic.record(n, now, routing_hash=user)[1] for n in range(OF_A_USER // 2)])
            traffic.predictions(log, size - written, now)
            written = size
            for user in users:
                log.append_predictions([traffic.record(n, now, routing_hash=user)[1] for n in range(OF_A_USER // 2)])
            erased = [_timed(partial(log.forget, user, log.now_ms())) for user in users]
            counted = [_timed(lambda: log.stats(log.now_ms())) for _ in range(TRIES)]
            costs["log/forget"].append(median(erased))
            costs["log/stats"].append(median(counted))
    for case, (small, large) in costs.items():
        for size, cost in zip(settings.predictions, (small, large), strict=True):
            report.add(f"{case}/predictions={size}", "time", 1e3 * cost, "ms")
        power = exponent(settings.predictions, (small, large))
        report.add(case, "growth", power, "exponent of size", at_most=EXPONENT_AT_MOST)


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started

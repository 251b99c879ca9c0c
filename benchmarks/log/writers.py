"""`log/writers`: many lanes write at once while this process joins, at a rate and as fast as they can.

Each is a process with a `TrafficWriter`, as lanes have; a tenth of the predictions get labels. A commit is timed where the
writer waits for it. A turn of the join is one of its transactions, from where it asks for it until it is on disk.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.log.settings import Settings
from benchmarks.log.traffic import WINDOW_S, Traffic, config_of, opened
from benchmarks.report import Progress, Report
from pipeline.clock import SystemClock
from pipeline.errors import BatonError
from pipeline.traffic.log import TrafficLog
from pipeline.traffic.prediction import PredictionIds
from pipeline.traffic.writer import TrafficWriter, WriterLimits
from serving.wiring.state import installation_secret
from serving.wiring.traffic import open_traffic_log

__all__ = ["writers"]

CASE = "log/writers"
LABELLED_EVERY = 10
JOINED_AT_ONCE = 1000
IDLE_S = 0.02
START_LIMIT_S = 120.0
JOIN_LIMIT_FACTOR = 10
"""How many times as long as it was written the join may take before the bench gives up."""
JOINED, WORST_COMMIT_S, WORST_TURN_S = 0.95, 1.0, 1.0


class TimedLog:
    """A traffic log whose commits are timed; everything else is its own."""

    def __init__(self, log: TrafficLog) -> None:
        self._log = log
        self.worst_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def append_predictions(self, records: Any) -> None:
        """As the log does."""
        started = time.monotonic()
        try:
            self._log.append_predictions(records)
        finally:
            self.worst_s = max(self.worst_s, time.monotonic() - started)


def lane(home: Path, number: int, seconds: float, candidates: int, rate: float, begin: Any, told: Any) -> None:
    """Body of a process that writes."""
    config, clock = config_of(home), SystemClock()
    ids = PredictionIds(installation_secret(config), number)
    with closing(open_traffic_log(config, number)) as log:
        timed = TimedLog(log)
        traffic = Traffic(ids, candidates)
        limits = WriterLimits(config.traffic.buffer, delay_s=config.traffic.commit_interval)
        begin.wait(START_LIMIT_S)
        writer = TrafficWriter(timed, clock, limits)
        started, sent = time.monotonic(), 0
        while (now := time.monotonic()) < started + seconds:
            if rate and sent / rate > now - started:
                time.sleep(sent / rate - (now - started))
            made, blob = traffic.record(sent, clock.wall_ms())
            if not writer.offer(blob):
                time.sleep(0.001)
                continue
            if sent % LABELLED_EVERY == 0:
                writer.feedback([traffic.feedback(sent, made)])
            sent += 1
        writer.close()
        counters = writer.counters()
        told.put((counters.committed, sent - counters.committed, timed.worst_s, time.monotonic()))


def writers(report: Report, settings: Settings, progress: Progress) -> None:
    """Add both cases."""
    for rate in (settings.rate, 0.0):
        _measure(report, settings, rate, progress)


def _measure(report: Report, settings: Settings, rate: float, progress: Progress) -> None:
    case = f"{CASE}/writers={settings.writers}/" + (f"rate={rate:g}" if rate else "unlimited")
    progress(f"{case}: {settings.seconds:g} s of predictions of {settings.candidates} candidates")
    context = multiprocessing.get_context("spawn")
    begin, told = context.Barrier(settings.writers + 1), context.Queue()
    with tempfile.TemporaryDirectory(prefix="baton-bench-log-") as name, opened(Path(name)) as (log, _):
        children = [
            context.Process(
                target=lane,
                args=(
                    Path(name),
                    number,
                    settings.seconds,
                    settings.candidates,
                    rate / settings.writers,
                    begin,
                    told,
                ),
                name=f"bench-lane-{number}",
            )
            for number in range(1, settings.writers + 1)
        ]
        for child in children:
            child.start()
        try:
            begin.wait(START_LIMIT_S)
            started = time.monotonic()
            turns = [0.0]
            _time_turns(log, turns)
            ends = _joined_until_all_end(log, children, told)
            written = sum(committed for committed, _, _, _ in ends)
            ended = max(at for _, _, _, at in ends)
            if rate:
                while time.monotonic() < ended + WINDOW_S:  # the last ones are due then
                    _join(log)
            else:
                _join_the_rest(log, ended + JOIN_LIMIT_FACTOR * (ended - started))
            took = time.monotonic() - ended
            joined = written - log.stats(log.now_ms()).open_predictions
        except threading.BrokenBarrierError:
            raise BatonError(f"{case}: a process that writes did not start; its message is above") from None
        finally:
            for child in children:
                child.terminate()
                child.join()
    if rate:
        report.add(case, "joined", joined, "predictions", limit=written, at_least=JOINED)
        report.add(case, "worst commit", max(worst for _, _, worst, _ in ends), "s", at_most=WORST_COMMIT_S)
    else:
        report.add(case, "joined", joined, "predictions", limit=written, at_least=1.0)
        report.add(case, "joined after the end", took, "s", limit=ended - started, at_most=1.0)
        report.add(case, "worst turn of the join", max(turns), "s", at_most=WORST_TURN_S)
        report.add(case, "worst commit", max(worst for _, _, worst, _ in ends), "s")
    report.add(case, "written", written / (ended - started), "predictions/s")
    report.add(case, "dropped", sum(dropped for _, dropped, _, _ in ends), "predictions")


def _time_turns(log: TrafficLog, turns: list[float]) -> None:
    """Note how long each transaction of the join takes; no verb tells it, for it concerns nobody but this bench."""
    file = log._file  # type: ignore[attr-defined]
    write = file.write

    @contextmanager
    def timed(durable: bool) -> Iterator[Any]:
        started = time.monotonic()
        with write(durable) as db:
            yield db
        turns.append(time.monotonic() - started)

    file.write = timed


def _join(log: TrafficLog) -> None:
    if not log.join(log.now_ms(), JOINED_AT_ONCE):
        time.sleep(IDLE_S)


def _joined_until_all_end(log: TrafficLog, children: list[Any], told: Any) -> list[Any]:
    ends: list[Any] = []
    while len(ends) < len(children):
        _join(log)
        while not told.empty():
            ends.append(told.get())
        if any(child.exitcode for child in children):
            raise BatonError("a process that writes predictions failed; its message is above")
    return ends


def _join_the_rest(log: TrafficLog, until: float) -> None:
    while time.monotonic() < until:
        _join(log)
        if log.stats(log.now_ms()).open_predictions == 0:
            return

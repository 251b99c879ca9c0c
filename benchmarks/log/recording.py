"""`log/recording`: throughput of a server that records every answer over that of the same server without recording."""

from __future__ import annotations

from benchmarks.load.run import run
from benchmarks.log.settings import Settings
from benchmarks.report import Progress, Report, interleaved, median
from benchmarks.site import ENDPOINT, must_be_good, written

__all__ = ["recording"]

CASE = "log/recording"
ROWS, INFLIGHT = 100, 8
"""Requests of 100 candidates: 13 KB a record."""
LEAST = 0.95
SAMPLES = {"recorded": 1.0, "unrecorded": 0.0}
"""Share of the answers that is recorded."""


def recording(report: Report, settings: Settings, progress: Progress) -> None:
    """Add the case. The server starts anew for each turn of each setting."""
    with written(["deepfm"], settings.table_rows, {ENDPOINT: "deepfm"}) as site:

        def throughput(name: str, turn: int) -> float:
            progress(f"{CASE}: turn {turn + 1} of {settings.rounds}, {name}")
            with site.serving({"traffic": {"sample": {"rate": SAMPLES[name]}}}):
                outcome = run(site.spec("rank", ENDPOINT, ROWS, inflight=INFLIGHT, seconds=settings.seconds))
                must_be_good(outcome, name)
                return outcome.throughput

        cases = {name: (lambda turn, name=name: throughput(name, turn)) for name in SAMPLES}
        found = interleaved(cases, settings.rounds)
    report.add(
        CASE, "throughput", median(found["recorded"]), "requests/s", limit=median(found["unrecorded"]), at_least=LEAST
    )

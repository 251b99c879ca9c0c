"""`baton bench lanes`: throughput by split of the cores into lanes, workers and network threads.

`baton serve` is started anew for every split in every turn; the same load runs against each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from benchmarks.load.run import run as run_load
from benchmarks.report import Progress, Report, cores, interleaved, median
from benchmarks.site import must_be_good, written
from pipeline.errors import InvalidInput

__all__ = ["Split", "run", "splits_of"]

MOST_THREADS = 2
"""Most threads per core of a split."""


class Split(NamedTuple):
    """Split of the cores: settings of the section `engine`."""

    lanes: int
    workers: int
    network_threads: int

    @classmethod
    def parse(cls, text: str) -> Split:
        """Parse a split such as `2x1x1`. Raises: InvalidInput."""
        parts = text.split("x")
        if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise InvalidInput(f"--split {text!r} is LANESxWORKERSxTHREADS, for example 2x1x1", "split")
        return cls(*map(int, parts))

    def __str__(self) -> str:
        return f"lanes={self.lanes}/workers={self.workers}/network_threads={self.network_threads}"


def splits_of(cores: int) -> list[Split]:
    """Splits worth trying on so many cores.

    >>> [tuple(split) for split in splits_of(2)]
    [(1, 1, 1), (1, 1, 2), (1, 2, 1), (1, 4, 1), (2, 1, 1), (2, 2, 1)]
    """
    return [
        Split(lanes, workers, threads)
        for lanes in sorted({1, max(1, cores // 2), max(1, cores - 1), cores})
        for workers in sorted({1, 2, max(1, cores // lanes), max(1, 2 * cores // lanes)})
        for threads in sorted({1, max(1, cores // lanes)})
        if lanes * workers * threads <= MOST_THREADS * cores and (threads == 1 or workers == 1)
    ]


def run(
    splits: Sequence[Split] = (),
    model: str = "deepfm",
    rows: Sequence[int] = (1, 100),
    inflight: int = 8,
    seconds: float = 2.0,
    rounds: int = 3,
    table_rows: int = 400_000,
    progress: Progress = lambda _: None,
) -> Report:
    """Rows per second and p99 of every split by `Rank`, best first; ratios are to the best.

    Args:
        splits: to try; none: `splits_of` this machine's cores.
        model: architecture.
        rows: candidates per request.
        inflight: calls in flight.
        seconds: of each measurement.
        rounds: turns.
        table_rows: ids in all tables.
    """
    splits = splits or splits_of(cores())
    rates: dict[tuple[Split, int], list[float]] = {}
    slowest: dict[tuple[Split, int], list[float]] = {}
    with written([model], table_rows, {"ranker": model}) as site:

        def case(split: Split) -> Callable[[int], float]:
            def measure(turn: int) -> float:
                progress(f"lanes: turn {turn + 1}, {split}")
                with site.serving({"engine": split._asdict()}):
                    for n in rows:
                        outcome = run_load(site.spec("rank", "ranker", n, inflight=inflight, seconds=seconds))
                        must_be_good(outcome, f"{split}, {n} rows")
                        rates.setdefault((split, n), []).append(outcome.throughput * n)
                        slowest.setdefault((split, n), []).append(outcome.quantile_ms(0.99))
                return 0.0

            return measure

        interleaved({str(split): case(split) for split in splits}, rounds)
    report = Report("lanes")
    for n in rows:
        found = {split: median(rates[split, n]) for split in splits}
        best = max(found.values())
        for split in sorted(splits, key=lambda s: -found[s]):
            name = f"{split}/rank/{model}/rows={n}/inflight={inflight}"
            report.add(name, "throughput", found[split], "rows/s", limit=best)
            report.add(name, "p99", median(slowest[split, n]), "ms")
    return report

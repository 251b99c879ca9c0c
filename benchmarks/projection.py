"""`baton bench projection`: S1A on a large table, from one width to another in shards, against the memory of the larger table.

A process of its own measures each direction. The teacher's rows lie in a mapped file, as in a bundle, and are let go shard
by shard; the student's rows are in memory, as in training. Memory is the peak beyond what the process held before.
"""

from __future__ import annotations

import json
import mmap
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.report import Progress, Report
from pipeline.arrays import F32, I64
from transfer.offline.projection import fit_projection
from transfer.quality.measured import PeakMemory

__all__ = ["run"]

BUDGET_S, PEAK = 60.0, 1.3
"""Budgets for 10 million rows: wall time on two cores, and peak memory against the larger table."""
SHARD_ROWS = 1 << 18


def run(rows: int = 10_000_000, progress: Progress = lambda _: None) -> Report:
    """Seconds and peak memory of both directions, 16 to 32 and 32 to 16."""
    report = Report("projection")
    for narrow, wide in ((16, 32), (32, 16)):
        case = f"s1a/rows={rows}/{narrow}->{wide}"
        progress(case)
        call = [sys.executable, "-m", "benchmarks.projection", str(rows), str(narrow), str(wide)]
        found = json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout)
        report.add(case, "time", found["seconds"], "s", at_most=BUDGET_S)
        report.add(case, "peak memory", found["peak_mb"], "MB", limit=found["table_mb"], at_most=PEAK)
    return report


def measure(rows: int, teacher_width: int, student_width: int) -> dict[str, float]:
    """Project one table, in this process."""
    rng = np.random.default_rng(0)
    with TemporaryDirectory(prefix="baton-bench-") as folder:
        path = Path(folder) / "rows"
        with path.open("wb") as file:
            for start in range(0, rows, SHARD_ROWS):
                file.write(rng.standard_normal((min(SHARD_ROWS, rows - start), teacher_width), np.float32).tobytes())
        counts = rng.integers(1, 100, rows)
        before = PeakMemory().megabytes
        memory, began = PeakMemory(), time.perf_counter()
        projection = fit_projection(_shards(path, teacher_width, counts), teacher_width, student_width)
        target = np.empty((rows, student_width), np.float32)
        at = 0
        for shard, _ in _shards(path, teacher_width, counts):
            target[at : at + len(shard)] = projection(shard)
            at += len(shard)
        seconds = time.perf_counter() - began
        larger = 4e-6 * rows * max(teacher_width, student_width)
        return {"seconds": seconds, "peak_mb": memory.megabytes - before, "table_mb": larger}


def _shards(path: Path, width: int, counts: I64) -> Iterator[tuple[F32, I64]]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for start in range(0, len(counts), SHARD_ROWS):
            rows = np.frombuffer(mapped, np.float32, min(SHARD_ROWS, len(counts) - start) * width, 4 * start * width)
            yield rows.reshape(-1, width).copy(), counts[start : start + SHARD_ROWS]
            del rows
            mapped.madvise(mmap.MADV_DONTNEED)


if __name__ == "__main__":
    print(json.dumps(measure(*map(int, sys.argv[1:]))))

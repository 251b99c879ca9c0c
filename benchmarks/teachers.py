"""`baton bench teachers`: rows per second of a pool of teachers by members, against one teacher in this process.

Members are processes of this machine, so the growth ends at its cores; the difference between a member and the teacher in
this process is the transport of rows and logits between processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.report import Progress, Report, interleaved, median
from pipeline.errors import BatonError
from pipeline.features import Rows
from transfer.bundles.publish import save
from transfer.click_model.model import ClickModel
from transfer.data.generator import GeneratedLog
from transfer.teachers.pool import TeacherPool
from transfer.teachers.process import BundleTeacher, ProcessMember

__all__ = ["run"]

ARCH, WIDTH = "dcnv2", 16
CHUNK_ROWS = 16_384


def run(
    members: tuple[int, ...] = (1, 2, 3, 4),
    rows: int = 200_000,
    rounds: int = 3,
    progress: Progress = lambda _: None,
) -> Report:
    """Rows per second, as medians of `rounds` turns.

    Args:
        members: numbers of processes.
        rows: scored in each turn.
    """
    torch.set_num_threads(1)
    report = Report("teachers")
    log = GeneratedLog(rows=rows, seed=0)
    chunks = [chunk.rows for chunk in log.chunks(0.0, 1.0, CHUNK_ROWS)]
    teacher = ClickModel.create(log.schema, ARCH, WIDTH, seed=0)
    expected = [teacher.calibrated_logits(chunk) for chunk in chunks]
    with TemporaryDirectory(prefix="baton-bench-") as folder:
        path = Path(folder) / "teacher"
        save(teacher, path, "teacher")
        pools: dict[str, TeacherPool] = {}
        cases: dict[str, Callable[[int], float]] = {
            f"alone/{ARCH}": _timed(chunks, lambda: [teacher.calibrated_logits(chunk) for chunk in chunks])
        }
        try:
            for count in members:
                progress(f"teachers: starting {count}")
                pool = pools[f"pool/{ARCH}/members={count}"] = TeacherPool()
                for at in range(count):
                    pool.join(ProcessMember(f"{count}-{at}", BundleTeacher(path)))
            for name, pool in pools.items():
                for found, wanted in zip(pool.score(iter(chunks)), expected, strict=True):
                    if not np.array_equal(found, wanted):
                        raise BatonError(f"{name} gives other logits than the teacher alone")
                cases[name] = _timed(chunks, _scoring(pool, chunks))
            progress(f"teachers: {len(cases)} cases in {rounds} turns")
            found_rates = {name: median(values) for name, values in interleaved(cases, rounds).items()}
        finally:
            for pool in pools.values():
                pool.close()
    alone = found_rates[f"alone/{ARCH}"]
    for name, rate in found_rates.items():
        report.add(name, "throughput", rate, "rows/s", limit=alone)
    first = found_rates[f"pool/{ARCH}/members={members[0]}"]
    for count in members[1:]:
        name = f"pool/{ARCH}/members={count}"
        report.add(name, "growth", found_rates[name], "rows/s", limit=first)
    return report


def _scoring(pool: TeacherPool, chunks: list[Rows]) -> Callable[[], object]:
    return lambda: list(pool.score(iter(chunks)))


def _timed(chunks: list[Rows], score: Callable[[], object]) -> Callable[[int], float]:
    rows = sum(len(chunk) for chunk in chunks)

    def measure(_: int) -> float:
        began = time.perf_counter()
        score()
        return rows / (time.perf_counter() - began)

    return measure

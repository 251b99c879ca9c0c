"""Time until a version can answer: `Model.load` on a base and on 1 to 16 deltas over it.

`load_seconds` of a version that was loaded before is what a lane pays after a restart or when it goes back. `first`
builds the base's segment, `new` that of a delta just published, and `unverified` is the first load after a start of the
machine, which reads bundle and segment once more.
"""

from __future__ import annotations

import time

import numpy as np

from benchmarks.hierarchy.tables import BUNDLE, Tables
from benchmarks.report import Progress, Report, median
from pipeline.bundle.verified import NOTES
from pipeline.embedding.segment.file import CHECKED
from pipeline.model.model import Model

__all__ = ["DELTAS", "measure_loads"]

DELTAS = 16
TOUCHED_FRACTION = 0.001
"""Of the rows that each delta changes."""
ROUNDS = 5
READY = 3.0
"""Budget: seconds until a version is ready whose segments are there."""


def measure_loads(report: Report, tables: Tables, progress: Progress) -> None:
    """Publish deltas over the tables' own and time loading each version twice."""
    progress(f"embedding: loading versions of {tables.count:,} x {tables.width}")
    rng = np.random.default_rng(2)
    setting = f"rows={tables.count}/width={tables.width}"
    version = tables.base.manifest.version
    report.add(f"load/{setting}/first", "load_seconds", _load(tables, version), "s")
    _forget(tables)
    report.add(f"load/{setting}/unverified", "load_seconds", _load(tables, version), "s", at_most=READY)
    for deltas in range(DELTAS + 1):
        if deltas == 1:
            version = tables.delta.manifest.version
        elif deltas:
            touched = rng.choice(tables.count, max(1, int(tables.count * TOUCHED_FRACTION)), replace=False)
            version = tables.publish(np.sort(touched)).manifest.version
        if deltas:
            report.add(f"load/{setting}/deltas={deltas}/new", "load_seconds", _load(tables, version), "s")
        again = median([_load(tables, version) for _ in range(ROUNDS)])
        report.add(f"load/{setting}/deltas={deltas}", "load_seconds", again, "s", at_most=READY)


def _forget(tables: Tables) -> None:
    """Remove the cache of verified files, as a restart of the machine does."""
    folder = tables.folder / "segments" / BUNDLE
    for note in (*folder.glob(f"{NOTES}/*"), *folder.glob(f"*/{CHECKED}")):
        note.unlink()


def _load(tables: Tables, version: str) -> float:
    began = time.perf_counter()
    Model.load(tables.repository, BUNDLE, version, segments=tables.folder / "segments")
    return time.perf_counter() - began

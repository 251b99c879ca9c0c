"""`baton bench context`: gain of computing the context once per request; in process, one thread, no sockets.

The same requests are scored from parts that hold the context once (as `Rank` sends it, split network) and from rows that
repeat it (as the Open Inference Protocol sends it, whole network), in blocks taken in turns and timed by processor time.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.models import Candidates, Vocabulary, write_model
from benchmarks.report import Progress, Report, interleaved, median
from pipeline.bundle.versions import Repository
from pipeline.features import Features, Rows
from pipeline.model.model import Model

__all__ = ["run"]

REQUESTS = 16
TABLE_ROWS = 1_000_000
LIMIT = "whole"


def run(
    architectures: Sequence[str] = ("deepfm", "dcnv2"),
    rows: Sequence[int] = (100, 500),
    *,
    turns: int = 40,
    table_rows: int = TABLE_ROWS,
    progress: Progress = lambda _: None,
) -> Report:
    """Served rows per second of processor time, split against whole, for each architecture and number of candidates.

    Cases: `context/ARCH/rows=N`: checked, embedded and scored; `.../network`: the networks alone; `.../difference`: the
    largest one between the scores of both.
    """
    report = Report("context")
    vocabulary = Vocabulary.make(table_rows)
    with tempfile.TemporaryDirectory() as folder:
        repository = Repository(Path(folder) / "bundles")
        for arch in architectures:
            progress(f"{arch}: writing a model of {table_rows:,} rows")
            write_model(repository, vocabulary, arch)
            model = Model.load(repository, arch, segments=Path(folder) / "segments", device="cpu")
            model.warm()
            for n in rows:
                progress(f"{arch}: {n} rows")
                _compare(report, model, Candidates.draw(vocabulary, n, REQUESTS), f"context/{arch}/rows={n}", turns)
    return report


def _compare(report: Report, model: Model, candidates: Candidates, case: str, turns: int) -> None:
    n = int(candidates.picks.shape[1])
    shared, repeated = [], []
    for ids in candidates.hashed:
        rows = Rows(ids, np.empty((n, 0), np.float32))
        repeated.append(Features.from_rows(rows))
        shared.append(Features.from_context(model.schema, rows))

    def score(requests: list[Features]) -> Callable[[int], float]:
        def block(_: int) -> float:
            start = time.process_time()
            for features in requests:
                features.check(model.schema)
                model.score(features)
            return n * len(requests) / (time.process_time() - start)

        return block

    def network(features: Features) -> Callable[[int], float]:
        def block(_: int) -> float:
            inputs = model.embed(features)
            start = time.process_time()
            for _ in range(REQUESTS):
                model.infer(inputs)
            return n * REQUESTS / (time.process_time() - start)

        return block

    found = interleaved({"split": score(shared), LIMIT: score(repeated)}, turns)
    report.add(case, "throughput", median(found["split"]), "rows/s", limit=median(found[LIMIT]))
    found = interleaved({"split": network(shared[0]), LIMIT: network(repeated[0])}, turns)
    report.add(f"{case}/network", "throughput", median(found["split"]), "rows/s", limit=median(found[LIMIT]))
    worst = max(float(np.abs(model.score(a) - model.score(b)).max()) for a, b in zip(shared, repeated, strict=True))
    report.add(f"{case}/difference", "score", worst, "probability", at_most=1e-6)

"""`baton bench levels`: bias of models of a log that lacks rows, on the full traffic that followed, whose truth is known.

A generated log with a click in ten rows is thinned to a tenth of its rows without a click. `dataset.yaml` says so in each of
the ways that there are; a last one lacks nothing and counts clicks five times in the loss. Each log trains a model on its
first half and teaches another one on the rows after it. Both are judged on the last tenth of the traffic, nothing of which is
thrown away, by the sum of its true click probabilities, so labels bring no noise to the judgement.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from benchmarks.report import Progress, Report
from transfer.data import GeneratedLog, Log, LogChunk, open_log
from transfer.offline.distill import transfer_offline
from transfer.offline.train import train
from transfer.offline.window import Window

__all__ = ["run"]

TEACHER, STUDENT, WIDTH = "deepfm", "dcnv2", 8
TRAINED, TAUGHT, JUDGED = 0.5, 0.8, 0.9
BASE_RATE, KEPT_FRACTION, CLICK_WEIGHT = 0.1, 0.1, 5.0
MAX_BIAS = 0.02
FULL, THIN = "full.parquet", "thin.parquet"
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "keep": (THIN, {"sampling": {"keep": KEPT_FRACTION, "where": {"clicked": 0}}}),
    "probability": (THIN, {"sampling": {"probability": {"column": "kept"}}}),
    "inverse": (THIN, {"sampling": {"inverse": {"column": "stands_for"}}}),
    "weight": (FULL, {"sample_weight": {"column": "importance"}}),
}
"""What a log says: its file, and the keys of its descriptor."""


def run(rows: int = 2_000_000, first: int = 0, seeds: int = 4, progress: Progress = lambda _: None) -> Report:
    """Bias of both models of every log, for each seed of log, thinning and models.

    Args:
        rows: of the traffic.
        first, seeds: the first seed, and how many.
    """
    torch.set_num_threads(1)
    report = Report("levels")
    for seed in range(first, first + seeds):
        with TemporaryDirectory(prefix="baton-levels-") as folder:
            progress(f"levels: the log, seed {seed}")
            expected = _write(rows, seed, Path(folder))
            traffic = _open(Path(folder), "weight")  # the log that lacks nothing
            for way in WAYS:
                log = _open(Path(folder), way)
                teacher = train(log, TEACHER, width=WIDTH, stop=TRAINED, seed=seed)
                student, _ = transfer_offline(Window(teacher, log, TRAINED, TAUGHT), STUDENT, width=WIDTH, seed=seed)
                for kind, model in (("trained", teacher), ("transferred", student)):
                    scores = (model.scores(c.rows).sum(dtype=np.float64) for c in traffic.chunks(JUDGED, 1.0))
                    bias = float(sum(scores)) / expected - 1
                    case = f"{kind}/{way}/seed={seed}"
                    progress(f"levels: {case}: {bias:+.2%}")
                    report.add(case, "bias", bias, "of clicks")
                    report.add(case, "|bias|", abs(bias), "of clicks", at_most=MAX_BIAS)
    return report


def _open(folder: Path, way: str) -> Log:
    """The log that says in one way what its rows stand for."""
    file, said = WAYS[way]
    path = folder / f"{way}.yaml"
    kinds = GeneratedLog(1).schema.fields
    fields = [f.model_dump(include={"name", "role", "kind", "transform", "separator"}) for f in kinds]
    described = {
        "name": way, "files": [file], "label": {"column": "clicked", "positive": [1], "negative": [0]},
        "request": "request", "time": {"column": "time", "unit": "ms"}, "fields": fields, **said,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(described))
    return open_log(path, folder / "cache")


def _write(rows: int, seed: int, folder: Path) -> float:
    """Write the traffic and the log that lacks rows; the sum of the true click probabilities of the traffic's last part."""
    log, rng = GeneratedLog(rows, seed, base_rate=BASE_RATE, drift=0.0), np.random.default_rng([seed, 0xDEB])
    first = np.concatenate([c.request[:1] for c in log.chunks(JUDGED, 1.0)])[0]
    expected = 0.0
    writers: dict[str, pq.ParquetWriter] = {}
    for chunk in log.chunks():
        assert chunk.truth is not None
        expected += float(chunk.truth[chunk.request >= first].sum(dtype=np.float64))
        table = _table(chunk)
        kept = (chunk.labels > 0) | (rng.random(len(chunk)) < KEPT_FRACTION)
        for name, part in ((FULL, table), (THIN, table.filter(pa.array(kept)))):
            if name not in writers:
                writers[name] = pq.ParquetWriter(folder / name, table.schema)
            writers[name].write_table(part)
    for writer in writers.values():
        writer.close()
    return expected


def _table(chunk: LogChunk) -> pa.Table:
    """Rows as a team would write them: what is an id here is a value there."""
    schema, clicked = GeneratedLog(1).schema, chunk.labels.astype(np.int64)
    columns: dict[str, Any] = {f.name: chunk.rows.ids[:, at] for at, f in enumerate(schema.ids)}
    columns |= {f.name: chunk.rows.numbers[:, at] for at, f in enumerate(schema.numbers)}
    columns |= {
        f.name: pa.ListArray.from_arrays(bag.offsets, bag.values)
        for f, bag in zip(schema.bags, chunk.rows.bags, strict=True)
    }
    kept = np.where(clicked > 0, 1.0, KEPT_FRACTION)
    return pa.table(
        {
            **columns, "clicked": clicked, "request": chunk.request, "time": chunk.time_ms, "kept": kept,
            "stands_for": 1 / kept, "importance": np.where(clicked > 0, CLICK_WEIGHT, 1.0),
        }
    )  # fmt: skip

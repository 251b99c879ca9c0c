"""`baton bench analysis`: cost of reading labels, and of a pass over them after millions of labelled rows.

Entries of the labelled log are made in memory (predictions of `rows` rows with a field in parts, both arms' scores and
labels) and fed to the analysis as the controller feeds them, in batches of the log's reader; only that is timed. Then
comes what a pass does with all of it: AUC differences worked out, guards and bounds tested with the sample rollout's
rules and a guard on two segments, and the snapshot that people and programs are shown. The limit of a pass is the AUC of
both arms by sorting all rows once, what a rescan would begin with.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import numpy as np
import psutil

from benchmarks.report import Progress, Report, median
from pipeline.features import Features, IdPart
from pipeline.hashing import hash_value
from pipeline.metrics import auc
from pipeline.schema import FieldSpec, Schema
from pipeline.traffic.log import Labelled, Scores
from pipeline.traffic.record import PredictionRecord, pack
from serving.rollout.analysis import new_analysis
from serving.rollout.look import Look
from serving.rollout.spec import Rollout
from serving.rollout.state import begin

__all__ = ["run"]

SPEC = Rollout.parse("""
endpoint: ranker
candidate: {bundle: student}
steps: [{weight: 5, bias_below: 0.05}, {weight: 50, bias_below: 0.02}, {weight: 100, bias_below: 0.02}]
guards: {segments: [{field: tab, values: [0, 1], bias_below: 0.1}]}
analysis: {segments: [tab], evidence_span: 0s}
""")
TABS = 40
FIELDS = 39
BATCH = 256
BLOCK_ROWS = 1250
STAYS = 4
PASSES = 5
PASS_BUDGET, MEMORY_BUDGET = 2.0, 500.0
_MADE = 512
"""Distinct predictions; the log repeats them with other times, which is all that sums can tell."""


def schema(bundle: str) -> Schema:
    names = ["tab", *(f"f{number}" for number in range(1, FIELDS))]
    return Schema(fields=tuple(FieldSpec(name=name, role="context", kind="id") for name in names))


def entries(total: int, rows: int, rng: np.random.Generator) -> Iterator[list[Labelled]]:
    """Batches of the labelled log, `total` rows in all."""
    columns, shown = np.arange(FIELDS, dtype=np.int32), np.arange(rows, dtype=np.int32)
    tabs = np.array([hash_value("tab", number) for number in range(TABS)])
    made = []
    for _ in range(_MADE):
        truth = 1 / (1 + np.exp(-rng.normal(-1.65, 1.0, rows)))
        stable, candidate = (np.clip(truth * rng.lognormal(0, 0.2, rows), 0, 0.999).astype("f4") for _ in range(2))
        ids = rng.integers(1, 1 << 62, (1, FIELDS))
        ids[0, 0] = tabs[int(TABS * rng.random() ** 2)]
        labels = (rng.random(rows) < truth).astype(np.float32)
        made.append((Features(rows, (IdPart(columns, ids),)), stable, candidate, labels))
    none, unknown = np.full(rows, -1, np.int32), np.full(rows, np.nan, np.float32)
    for first in range(1, total // rows + 1, BATCH):
        batch = []
        for seq in range(first, min(first + BATCH, total // rows + 1)):
            features, stable, candidate, labels = made[seq % _MADE]
            at = seq * rows * SPEC.analysis.block_ms // BLOCK_ROWS
            record = PredictionRecord(str(seq), at, "ranker", "stable", "teacher", 1, features, stable, seq)
            other = (Scores("candidate", "student", 1, candidate),)
            batch.append(Labelled(seq, str(seq), "ranker", 0, at, shown, labels, none, unknown, pack(record), other))
        yield batch


def run(total: int = 10_000_000, rows: int = 100, progress: Progress = lambda _: None) -> Report:
    """Time of reading and of a pass, and memory, after `total` labelled rows.

    Args:
        total: labelled rows.
        rows: of each prediction.
    """
    progress(f"analysis: {total:,} labelled rows, {rows} per prediction")
    process, rng = psutil.Process(os.getpid()), np.random.default_rng(1)
    feed = entries(total, rows, rng)
    waiting = next(feed)
    before = process.memory_info().rss
    analysis = new_analysis(SPEC, 0, schema)
    spanned = total * SPEC.analysis.block_ms // BLOCK_ROWS
    for stay in range(STAYS):
        analysis.begin_phase(stay, SPEC.steps[stay].weight, stay * spanned // STAYS)
    reading = 0.0
    while waiting:
        started = time.perf_counter()
        analysis.add(waiting)
        reading += time.perf_counter() - started
        waiting = next(feed, [])
    looks, tells = [], []
    for _ in range(PASSES):
        started = time.perf_counter()
        look = Look(SPEC, begin(SPEC, 1, 0, 0), analysis.refresh())
        next(look.breaches(), None)
        look.not_yet()
        looked = time.perf_counter()
        analysis.snapshot()
        looks.append(looked - started)
        tells.append(time.perf_counter() - looked)
    grown = (process.memory_info().rss - before) / 1e6
    labels, scores = rng.random(total) < 0.2, rng.random((2, total), np.float32)
    started = time.perf_counter()
    for arm in scores:
        auc(labels, arm)
    sorting = time.perf_counter() - started
    report = Report("analysis")
    case = f"analysis/rows={total}"
    report.add(case, "pass", median(looks) + median(tells), "s", at_most=PASS_BUDGET)
    report.add(case, "pass against sorting all rows", median(looks) + median(tells), "s", limit=sorting)
    report.add(case, "look", median(looks), "s")
    report.add(case, "snapshot", median(tells), "s")
    report.add(case, "memory", grown, "MB", at_most=MEMORY_BUDGET)
    report.add(case, "read", total / reading, "rows/s")
    report.add(case, "blocks", analysis.table.select(0).blocks, "blocks")
    return report

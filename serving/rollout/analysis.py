"""Sums of labelled rows: per block for the evidence, per stay at a step for display. One pass over the log, O(rows).

Both arms score every exposed row (one answers, the shadow lane scores with the other), so all comparisons are paired.
Rows whose arm the caller chose, and rows with a score that is not finite, are left out and counted; rows without a pair of
scores lower the coverage. Nothing is
kept on disk: after a restart the log is read again from the place that the rollout's state names.

Read next: `figures` computes the displayed figures from these sums; `blocks` and `evidence` decide.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.arrays import F64, I64, Mask
from pipeline.metrics import BinnedAuc, row_logloss
from pipeline.schema import Schema
from pipeline.traffic.log import Labelled
from pipeline.traffic.record import PredictionRecord, unpack
from serving.rollout import blocks
from serving.rollout.blocks import BlockTable
from serving.rollout.figures import (
    PhaseFigures,
    PhaseSums,
    RolloutFigures,
    field_stability,
    phase_figures,
    slice_figures,
)
from serving.rollout.outcome import count_outcome
from serving.rollout.slices import Slices
from serving.rollout.spec import Rollout

__all__ = ["RolloutAnalysis", "new_analysis"]


BLOCK_BINS = 1024
"""Bins of the AUC histograms of one block and arm: 1/32 of log-odds each. Ties hit both arms alike."""
REVISABLE_BLOCKS = 128
"""Newest blocks whose AUC difference still changes with late labels; in older blocks only the other sums do."""
_REMEMBERED_PREDICTIONS = 100_000


class RolloutAnalysis:
    """Accumulated sums of one endpoint's labelled log for one candidate bundle.

    Args:
        endpoint: rows of other endpoints are skipped.
        bundle: of the candidate; scores of another candidate do not form a pair.
        block_ms: length of a block.
        confidence: of the limits in `snapshot`.
        after: place in the labelled log to start after.
        slices: slices of the traffic to sum separately; None: none.
    """

    def __init__(
        self,
        endpoint: str,
        bundle: str,
        block_ms: int,
        confidence: float = 0.95,
        after: int = 0,
        slices: Slices | None = None,
    ) -> None:
        self.endpoint, self.bundle, self.slices = endpoint, bundle, slices
        self.table = BlockTable(block_ms)
        self.seq = after
        self.overridden = self.exposed = self.paired = self.not_finite = 0
        self._error = (1.0 - confidence) / 2.0
        self._phases: list[PhaseSums] = []
        self._histograms: OrderedDict[int, tuple[BinnedAuc, BinnedAuc]] = OrderedDict()
        self._touched: set[int] = set()
        self._settled = -1
        self._lost: OrderedDict[str, None] = OrderedDict()

    def begin_phase(self, step: int, weight: float, entered_ms: int) -> None:
        """Rows predicted from `entered_ms` on belong to a stay at `step` with `weight`."""
        self._phases.append(PhaseSums(step, weight, entered_ms))
        self.table.outcome = self._phases[-1].outcome

    def add(self, entries: Sequence[Labelled]) -> None:
        """Count entries in the order of the log; those at or before the present place are skipped."""
        batch = _Batch()
        for entry in entries:
            if entry.seq <= self.seq:
                continue
            self.seq = entry.seq
            self._collect(batch, entry)
        if batch.labels:
            self._count(batch)

    def refresh(self) -> BlockTable:
        """The table of blocks, with the AUC differences of all changed blocks computed."""
        for block in self._touched:
            stable, candidate = self._histograms[block]
            self.table.line(block)[blocks.AUC_DELTA] = candidate.value() - stable.value()
        self._touched.clear()
        return self.table

    def phase_figures(self, at: int) -> PhaseFigures:
        """Figures of stay number `at`, in the order of `begin_phase`."""
        until = self._phases[at + 1].entered_ms if at + 1 < len(self._phases) else None
        chosen = self.table.select(self._phases[at].entered_ms, until_ms=until)
        return phase_figures(self._phases[at], self._phases[0], chosen, self._error)

    def snapshot(self) -> RolloutFigures:
        """All figures for display."""
        return RolloutFigures(
            seq=self.seq,
            newest_ms=self.table.newest_ms,
            exposed=self.exposed,
            paired=self.paired,
            overridden=self.overridden,
            not_finite=self.not_finite,
            coverage=self.paired / self.exposed if self.exposed else None,
            phases=tuple(self.phase_figures(at) for at in range(len(self._phases))),
            segments=slice_figures(self.table, self.slices, self._error),
            psi=field_stability(self.table, self.slices, [phase.entered_ms for phase in self._phases]),
        )

    def _collect(self, batch: _Batch, entry: Labelled) -> None:
        record = unpack(entry.record)
        if record.endpoint != self.endpoint or record.arm == "direct" or not len(entry.indices):
            return
        fresh = np.isnan(entry.previous)  # rows that were not written before
        rows, first = int(fresh.sum()), entry.revision == 0
        if record.overridden:
            self.overridden += rows
            return
        block = entry.time_ms // self.table.block_ms
        line = self.table.line(block)
        self.exposed += rows
        line[blocks.EXPOSED] += rows
        phase = self._phase_of(entry.time_ms)
        if phase >= 0:
            count_outcome(self._phases[phase].outcome, record, entry)
        pair = self._pair(record, entry)
        if pair is None:
            if first:
                _remember(self._lost, entry.prediction_id)
            return
        if not first and entry.prediction_id in self._lost:
            return  # its first labels were counted without a pair, so there is nothing to take back
        stable, candidate, version = pair
        sound = np.isfinite(stable) & np.isfinite(candidate)
        if not sound.all():  # such a row has no pair: it lowers the coverage and is in no other sum
            self.not_finite += int((fresh & ~sound).sum())
            entry = _rows_of(entry, sound)
            stable, candidate, fresh = stable[sound], candidate[sound], fresh[sound]
            rows = int(fresh.sum())
        if not len(fresh):
            return
        self.paired += rows
        line[blocks.VERSION] = min(line[blocks.VERSION], version)
        mark = (block, phase, record.arm == "candidate")
        parts = {} if self.slices is None else self.slices.of(record.features, entry.indices)
        batch.append(entry.labels, stable, candidate, parts, *mark, 1.0)
        if rows < len(fresh):
            again = ~fresh
            kept = {name: codes if len(codes) == 1 else codes[again] for name, codes in parts.items()}
            batch.append(entry.previous[again], stable[again], candidate[again], kept, *mark, -1.0)

    def _pair(self, record: PredictionRecord, entry: Labelled) -> tuple[Any, Any, int] | None:
        """(stable's scores, the candidate's, the candidate's version) on the exposed rows, None without both."""
        wanted = "stable" if record.arm == "candidate" else "candidate"
        other = next((s for s in reversed(entry.other) if s.arm == wanted), None)
        if other is None:
            return None
        own, theirs = record.scores[entry.indices], other.scores[entry.indices]
        if record.arm == "candidate":
            return (theirs, own, record.version) if record.bundle == self.bundle else None
        return (own, theirs, other.version) if other.bundle == self.bundle else None

    def _phase_of(self, time_ms: int) -> int:
        for at in range(len(self._phases) - 1, -1, -1):
            if time_ms >= self._phases[at].entered_ms:
                return at
        return -1

    def _count(self, batch: _Batch) -> None:
        y, stable, candidate, block, phase, served, sign = batch.arrays()
        losses = (row_logloss(y, stable), row_logloss(y, candidate))
        bins = (_FINE.bin_of(stable), _FINE.bin_of(candidate))
        for number in np.unique(block):
            at = block == number
            self._count_block(
                int(number), y[at], stable[at], candidate[at], losses[1][at] - losses[0][at], served[at], sign[at]
            )
            pair = self._histograms.get(int(number))
            if pair is None and number > self._settled:  # a late label gets no empty histogram
                pair = self._histograms[int(number)] = (BinnedAuc(bins=BLOCK_BINS), BinnedAuc(bins=BLOCK_BINS))
                if (
                    len(self._histograms) > REVISABLE_BLOCKS
                ):  # by what was read alone, so that reading again gives the same
                    self._settle(next(iter(self._histograms)))
            if pair is not None:
                self._touched.add(int(number))
                for histogram, fine in zip(pair, bins, strict=True):
                    histogram.update_bins(y[at], fine[at] // (_FINE.bins // BLOCK_BINS), sign[at])
        for number in np.unique(phase):
            if number >= 0:
                stay = self._phases[int(number)]
                at = phase == number
                stay.stable.update_rows(y[at], stable[at], losses[0][at], bins[0][at], sign[at])
                stay.candidate.update_rows(y[at], candidate[at], losses[1][at], bins[1][at], sign[at])
                at = at & served
                if at.any():
                    stay.served.update_rows(y[at], candidate[at], losses[1][at], bins[1][at], sign[at])
        if self.slices is not None:
            columns = np.stack([sign, sign * y, sign * stable, sign * candidate, sign * (losses[1] - losses[0])])
            for field in self.slices.fields:
                self._count_slices(field, self.slices.bounded(field, batch.codes(field)), block, columns)

    def _count_slices(self, field: str, codes: I64, block: I64, columns: F64) -> None:
        """Add `columns` `[5, n]` to the lines of each row's slice and block."""
        part, which = np.unique(codes, return_inverse=True)
        number, when = np.unique(block, return_inverse=True)
        cell = which * len(number) + when
        sums = np.stack([np.bincount(cell, column, len(part) * len(number)) for column in columns], axis=1)
        for at in np.unique(cell).tolist():
            part_key = (field, int(part[at // len(number)]))
            table = self.table.slices.setdefault(part_key, BlockTable(self.table.block_ms))
            line, at_block = sums[at], int(number[at % len(number)])
            into = table.line(at_block)
            into[_SLICE_COLUMNS] += line
            into[blocks.VERSION] = min(into[blocks.VERSION], self.table.line(at_block)[blocks.VERSION])

    def _settle(self, block: int) -> None:
        """Compute a block's AUC difference for the last time."""
        stable, candidate = self._histograms.pop(block)
        self._touched.discard(block)
        self.table.line(block)[blocks.AUC_DELTA] = candidate.value() - stable.value()
        self._settled = max(self._settled, block)

    def _count_block(
        self, block: int, y: F64, stable: F64, candidate: F64, loss_delta: F64, served: Mask, sign: F64
    ) -> None:
        line = self.table.line(block)
        line[blocks.ROWS] += sign.sum()
        line[blocks.CLICKS] += sign @ y
        line[blocks.STABLE] += sign @ stable
        line[blocks.CANDIDATE] += sign @ candidate
        line[blocks.LOSS_DELTA] += sign @ loss_delta
        line[blocks.SERVED_ROWS] += sign @ served
        line[blocks.SERVED_CLICKS] += (sign * y) @ served
        line[blocks.SERVED] += (sign * candidate) @ served


def new_analysis(spec: Rollout, after: int, schema: Callable[[str], Schema]) -> RolloutAnalysis:
    """The analysis of a rollout file, from a place in the labelled log on.

    Raises:
        InvalidInput: the field of a slice is not among the inputs of the candidate.
    """
    named = [(guard.field, value) for guard, value in spec.named_slices]
    slices = None
    if named or spec.analysis.segments:
        slices = Slices(schema(spec.candidate.bundle), spec.analysis.segments, named)
    return RolloutAnalysis(
        spec.endpoint, spec.candidate.bundle, spec.analysis.block_ms, spec.analysis.confidence, after, slices
    )


class _Batch:
    """Rows of several entries, counted together."""

    def __init__(self) -> None:
        self.labels: list[Any] = []
        self._stable: list[Any] = []
        self._candidate: list[Any] = []
        self._parts: list[Mapping[str, I64]] = []
        self._marks: list[tuple[int, int, int, bool, float]] = []

    def append(
        self, labels: Any, stable: Any, candidate: Any, parts: Mapping[str, I64], block: int,
        phase: int, served: bool, sign: float,
    ) -> None:  # fmt: skip
        self.labels.append(labels)
        self._stable.append(stable)
        self._candidate.append(candidate)
        self._parts.append(parts)
        self._marks.append((len(labels), block, phase, served, sign))

    def codes(self, field: str) -> I64:
        """Slice of each row by a field, `[n]`."""
        sizes = [mark[0] for mark in self._marks]
        return np.concatenate(
            [np.broadcast_to(parts[field], size) for parts, size in zip(self._parts, sizes, strict=True)]
        )

    def arrays(self) -> tuple[F64, F64, F64, I64, I64, Mask, F64]:
        sizes, block, phase, served, sign = zip(*self._marks, strict=True)
        return (
            np.concatenate(self.labels).astype(np.float64),
            np.concatenate(self._stable).astype(np.float64),
            np.concatenate(self._candidate).astype(np.float64),
            np.repeat(np.array(block, np.int64), sizes),
            np.repeat(np.array(phase, np.int64), sizes),
            np.repeat(np.array(served, np.bool_), sizes),
            np.repeat(np.array(sign, np.float64), sizes),
        )


_FINE = BinnedAuc()
_SLICE_COLUMNS = [blocks.ROWS, blocks.CLICKS, blocks.STABLE, blocks.CANDIDATE, blocks.LOSS_DELTA]


def _rows_of(entry: Labelled, rows: Mask) -> Labelled:
    """An entry with the rows of a mask `[m]` alone."""
    return replace(
        entry,
        indices=entry.indices[rows],
        labels=entry.labels[rows],
        positions=entry.positions[rows],
        previous=entry.previous[rows],
    )


def _remember(ids: OrderedDict[str, None], prediction_id: str) -> None:
    ids[prediction_id] = None
    if len(ids) > _REMEMBERED_PREDICTIONS:
        ids.popitem(last=False)

"""Labelled rows to sums: per block for evidence, per phase for people. One pass over the log, O(rows), nothing rescanned.

Both arms score every exposed row (one answers, the shadow lane does the other), so all comparisons are paired. Rows
whose arm the caller chose are left out and counted; rows that only one arm scored count against coverage. It keeps
nothing on disk: after a restart it reads the log again from the place that the rollout's state names.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.metrics import BinnedAuc, Sums, row_logloss
from pipeline.traffic.log import Labelled
from pipeline.traffic.record import PredictionRecord, unpack
from serving.rollout import blocks
from serving.rollout.blocks import BlockTable

__all__ = ["Analysis", "ArmFigures", "PhaseFigures", "Snapshot"]

F64 = npt.NDArray[np.float64]

BLOCK_BINS = 1024
"""Bins of the AUC histograms of one block and arm: 1/32 of log-odds each. Ties hit both arms alike."""
REVISABLE = 128
"""Newest blocks whose AUC difference still follows late labels; older ones follow them in all other sums."""
_REMEMBERED = 100_000


@dataclass(frozen=True, slots=True)
class ArmFigures:
    """One arm on the rows of a phase; `low` and `high` are the limits of its bias. None where there is no figure yet."""

    rows: int
    auc: float | None
    auc_bound: float | None
    logloss: float | None
    bias: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class PhaseFigures:
    """The rows predicted during one stay at a step. `rows` have both arms' scores; `labels` are the clicks on them."""

    step: int
    weight: float
    entered_ms: int
    rows: int
    labels: float
    served_by_candidate: int
    stable: ArmFigures
    candidate: ArmFigures
    served: ArmFigures
    """The candidate on the rows that it answered itself."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PhaseFigures:
        """The inverse of `dataclasses.asdict`."""
        arms = {name: ArmFigures(**data[name]) for name in ("stable", "candidate", "served")}
        return cls(**{**data, **arms})


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the analysis knows now, as plain numbers."""

    seq: int
    newest_ms: int | None
    exposed: int
    paired: int
    overridden: int
    coverage: float | None
    phases: tuple[PhaseFigures, ...]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


class _Phase:
    def __init__(self, step: int, weight: float, entered_ms: int) -> None:
        self.step, self.weight, self.entered_ms = step, weight, entered_ms
        self.stable, self.candidate, self.served = Sums(), Sums(), Sums()


class Analysis:
    """Accumulates one endpoint's labelled log for one candidate bundle.

    Args:
        endpoint: rows of others are passed over.
        bundle: the candidate's; scores of another candidate are no pair.
        block_ms: length of a block.
        confidence: of the limits in `snapshot`.
        after: place in the labelled log to start after.
    """

    def __init__(self, endpoint: str, bundle: str, block_ms: int, confidence: float = 0.95, after: int = 0) -> None:
        self.endpoint, self.bundle = endpoint, bundle
        self.table = BlockTable(block_ms)
        self.seq = after
        self.overridden = self.exposed = self.paired = 0
        self._error = (1.0 - confidence) / 2.0
        self._phases: list[_Phase] = []
        self._histograms: OrderedDict[int, tuple[BinnedAuc, BinnedAuc]] = OrderedDict()
        self._touched: set[int] = set()
        self._lost: OrderedDict[str, None] = OrderedDict()

    def begin_phase(self, step: int, weight: float, entered_ms: int) -> None:
        """Rows predicted from `entered_ms` on belong to a stay at `step` with `weight`."""
        self._phases.append(_Phase(step, weight, entered_ms))

    def add(self, entry: Labelled) -> None:
        """Count one entry of the labelled log."""
        self.add_many([entry])

    def add_many(self, entries: Sequence[Labelled]) -> None:
        """Count entries in the order of the log; those at or before the present place are passed over."""
        batch = _Batch()
        for entry in entries:
            if entry.seq <= self.seq:
                continue
            self.seq = entry.seq
            self._collect(batch, entry)
        if batch.labels:
            self._count(batch)

    def refresh(self) -> BlockTable:
        """The table of blocks with the AUC differences of all touched blocks worked out."""
        for block in self._touched:
            pair = self._histograms.get(block)
            if pair is not None:
                stable, candidate = pair
                self.table.line(block)[blocks.AUC_DELTA] = candidate.value() - stable.value()
        self._touched.clear()
        while len(self._histograms) > REVISABLE:
            self._histograms.popitem(last=False)
        return self.table

    def phase_figures(self, at: int) -> PhaseFigures:
        """Figures of the phase number `at` (as begun here)."""
        phase = self._phases[at]
        until = self._phases[at + 1].entered_ms if at + 1 < len(self._phases) else None
        chosen = self.table.select(phase.entered_ms, until_ms=until)
        return PhaseFigures(
            step=phase.step,
            weight=phase.weight,
            entered_ms=phase.entered_ms,
            rows=phase.candidate.rows,
            labels=phase.candidate.clicks,
            served_by_candidate=phase.served.rows,
            stable=_figures(phase.stable, chosen.bias_limits("stable", self._error)),
            candidate=_figures(phase.candidate, chosen.bias_limits("candidate", self._error)),
            served=_figures(phase.served, chosen.served_limits(self._error)),
        )

    def snapshot(self) -> Snapshot:
        """Everything for display."""
        return Snapshot(
            seq=self.seq,
            newest_ms=self.table.newest_ms,
            exposed=self.exposed,
            paired=self.paired,
            overridden=self.overridden,
            coverage=self.paired / self.exposed if self.exposed else None,
            phases=tuple(self.phase_figures(at) for at in range(len(self._phases))),
        )

    def _collect(self, batch: _Batch, entry: Labelled) -> None:
        record = unpack(entry.record)
        if record.endpoint != self.endpoint or record.arm == "direct" or not len(entry.indices):
            return
        rows, first = len(entry.indices), entry.revision == 0
        if record.overridden:
            self.overridden += rows if first else 0
            return
        block = record.time_ms // self.table.block_ms
        if first:
            self.exposed += rows
            self.table.line(block)[blocks.EXPOSED] += rows
        pair = self._pair(record, entry)
        if pair is None:
            if first:
                _remember(self._lost, entry.prediction_id)
            return
        if not first and entry.prediction_id in self._lost:
            return  # its first labels were counted without a pair, so there is nothing to take back
        if first:
            self.paired += rows
        stable, candidate, version = pair
        line = self.table.line(block)
        line[blocks.VERSION] = min(line[blocks.VERSION], version)
        phase = self._phase_of(record.time_ms)
        served = record.arm == "candidate"
        batch.append(entry.labels, stable, candidate, block, phase, served, 1.0)
        replaced = ~np.isnan(entry.previous)
        if not first and replaced.any():
            batch.append(entry.previous[replaced], stable[replaced], candidate[replaced], block, phase, served, -1.0)

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
            if pair is None and self._recent(int(number)):
                pair = self._histograms[int(number)] = (BinnedAuc(bins=BLOCK_BINS), BinnedAuc(bins=BLOCK_BINS))
            if pair is not None:
                self._touched.add(int(number))
                for histogram, fine in zip(pair, bins, strict=True):
                    _add(histogram, fine[at] // (_FINE.bins // BLOCK_BINS), y[at], sign[at])
        for number in np.unique(phase):
            if number >= 0:
                here = self._phases[int(number)]
                at = phase == number
                _sum(here.stable, y[at], stable[at], losses[0][at], bins[0][at], sign[at])
                _sum(here.candidate, y[at], candidate[at], losses[1][at], bins[1][at], sign[at])
                at = at & served
                if at.any():
                    _sum(here.served, y[at], candidate[at], losses[1][at], bins[1][at], sign[at])

    def _recent(self, block: int) -> bool:
        """New blocks get histograms; a block whose histograms were dropped does not get empty ones by a late label."""
        return bool(np.isnan(self.table.line(block)[blocks.AUC_DELTA]))

    def _count_block(
        self, block: int, y: F64, stable: F64, candidate: F64, loss_delta: F64, served: npt.NDArray[np.bool_], sign: F64
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


class _Batch:
    """Rows of several entries, to be counted in one go."""

    def __init__(self) -> None:
        self.labels: list[Any] = []
        self._stable: list[Any] = []
        self._candidate: list[Any] = []
        self._marks: list[tuple[int, int, int, bool, float]] = []

    def append(
        self, labels: Any, stable: Any, candidate: Any, block: int, phase: int, served: bool, sign: float
    ) -> None:
        self.labels.append(labels)
        self._stable.append(stable)
        self._candidate.append(candidate)
        self._marks.append((len(labels), block, phase, served, sign))

    def arrays(self) -> tuple[F64, F64, F64, npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_], F64]:
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


def _add(histogram: BinnedAuc, bins: npt.NDArray[np.intp], y: F64, sign: F64) -> None:
    histogram.positives += np.bincount(bins, sign * y, histogram.bins)
    histogram.negatives += np.bincount(bins, sign * (1.0 - y), histogram.bins)


def _sum(sums: Sums, y: F64, p: F64, losses: F64, bins: npt.NDArray[np.intp], sign: F64) -> None:
    sums.rows += round(float(sign.sum()))
    sums.clicks += float(sign @ y)
    sums.predicted += float(sign @ p)
    sums.losses += float(sign @ losses)
    _add(sums.binned, bins, y, sign)


def _figures(sums: Sums, limits: Any) -> ArmFigures:
    return ArmFigures(
        rows=sums.rows,
        auc=_finite(sums.auc),
        auc_bound=_finite(sums.binned.bound()),
        logloss=_finite(sums.logloss),
        bias=_finite(sums.bias),
        low=_finite(limits.low),
        high=_finite(limits.high),
    )


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _remember(ids: OrderedDict[str, None], prediction_id: str) -> None:
    ids[prediction_id] = None
    if len(ids) > _REMEMBERED:
        ids.popitem(last=False)

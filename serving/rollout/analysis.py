"""Sums of labelled rows: per block for the evidence, per stay at a step for display. One pass over the log, O(rows).

Both arms score every exposed row (one answers, the shadow lane scores with the other), so all comparisons are paired.
Rows whose arm the caller chose, rows with a score that is not finite, and rows of a key that has too many of them (`cap`) are
left out and counted; rows without a pair of scores lower the coverage. All sums are integers of fixed scale (`scale`): `save` and `restore` keep them bit for bit, so a
restart goes on at the place in the log up to which they count.

Read next: `blocks` merges what is old; `figures` computes the displayed figures; `look` and `evidence` decide.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xxhash

from pipeline.arrays import F64, I64, Mask
from pipeline.metrics import BinnedAuc, row_logloss
from pipeline.schema import Schema
from pipeline.traffic.log import Labelled
from pipeline.traffic.record import PredictionRecord, unpack
from serving.rollout.figures import (
    PhaseFigures,
    RolloutFigures,
    field_stability,
    phase_figures,
    slice_figures,
)
from serving.rollout.spec import Rollout
from serving.rollout.sums import selection
from serving.rollout.sums.auc import BLOCK_BINS, BlockAuc
from serving.rollout.sums.blocks import MAX_BLOCKS, MAX_TABLE_ROWS, PART, BlockTable
from serving.rollout.sums.cap import KeyCap
from serving.rollout.sums.outcome import BeforeSums, count_outcome
from serving.rollout.sums.packed import pack_sums, unpack_sums
from serving.rollout.sums.scale import NAT_UNITS, SQUARE_UNITS, UNITS, checked, fixed
from serving.rollout.sums.slices import Slices
from serving.rollout.sums.stay import StaySums

__all__ = ["RolloutAnalysis", "new_analysis", "new_cap", "new_table"]

_REMEMBERED_PREDICTIONS = 65_536
_BATCH_ROWS = 1 << 18


class RolloutAnalysis:
    """Accumulated sums of one endpoint's labelled log for one candidate bundle.

    Args:
        endpoint: rows of other endpoints are skipped.
        bundle: of the candidate; scores of another candidate do not form a pair.
        block_ms: length of a block.
        confidence: of the limits in `snapshot`.
        after: place in the labelled log to start after.
        slices: slices of the traffic to sum separately; None: none.
        table: that the blocks are kept in; None: a new one of the usual size.
        cap: on the rows of a key; None: none.
        weights: of the steps, for outcomes of keys from before the candidate answered (`BeforeSums`).

    Attributes:
        seq: place in the labelled log up to which the sums count.
        stays: at steps, the last ones; `begin_phase` adds one, `end_phases` drops the first.
        whole: False once rows could not be counted: the sums lack them, and have to be read again.
    """

    def __init__(
        self,
        endpoint: str,
        bundle: str,
        block_ms: int,
        confidence: float = 0.95,
        after: int = 0,
        slices: Slices | None = None,
        table: BlockTable | None = None,
        cap: KeyCap | None = None,
        weights: Sequence[float] = (),
    ) -> None:
        self.endpoint, self.bundle, self.slices = endpoint, bundle, slices
        self.table = BlockTable(block_ms) if table is None else table
        self.cap = cap
        self.before = BeforeSums(weights)
        self.seq, self.whole = after, True
        self.overridden = self.exposed = self.paired = self.not_finite = self.left_out = 0
        self.stays: list[StaySums] = []
        self._error = (1.0 - confidence) / 2.0
        self._auc = BlockAuc(self.table)
        self._first: StaySums | None = None
        self._second_ms: int | None = None
        self._lost: OrderedDict[int, None] = OrderedDict()
        self._batch = _Batch()
        self._refused, self._refused_from_ms = range(0), 0

    def begin_phase(self, step: int, weight: float, entered_ms: int) -> None:
        """Rows predicted from `entered_ms` on belong to a stay at `step` with `weight`."""
        self._flush()
        stay = StaySums(step, weight, entered_ms)
        stay.outcome.before = self.before.at(weight)
        if self._first is None:
            self._first = stay
        elif self._second_ms is None:
            self._second_ms = entered_ms
        self.stays.append(stay)
        self.table.outcome = stay.outcome

    def end_phases(self, count: int) -> None:
        """Drop the sums of the first stays; rows of theirs that come later are in the table alone."""
        self._flush()
        del self.stays[:count]

    def begin_evidence(self, from_ms: int, version: int) -> None:
        """Evidence begins anew, see `BlockTable.begin`."""
        self._flush()
        self.table.begin(from_ms, version)

    def refuse(self, versions: range, from_ms: int) -> None:
        """Rows of these versions of the candidate, predicted from `from_ms` on, are no rows of the rollout: lanes went on with
        one for a moment after a breach had returned to the version before it."""
        self._refused, self._refused_from_ms = versions, from_ms

    def add(self, entries: Sequence[Labelled], records: Sequence[PredictionRecord] | None = None) -> None:
        """Count entries in the order of the log; those at or before the present place are skipped.

        Rows are collected and counted together, when their block ends or somebody looks: a rollout with few rows a second
        costs no more for each of them than one with many.

        Args:
            records: of the entries, where the caller has unpacked them.
        """
        for at, entry in enumerate(entries):
            if entry.seq <= self.seq:
                continue
            self.seq = entry.seq
            self._collect(entry, unpack(entry.record) if records is None else records[at])

    def passed(self, seq: int) -> None:
        """The log up to this place has no other entries of this endpoint than those that were added."""
        self.seq = max(self.seq, seq)

    def refresh(self) -> BlockTable:
        """The table of blocks, with the AUC differences of all changed blocks computed."""
        self._flush()
        self._auc.refresh()
        return self.table

    def phase_figures(self, at: int) -> PhaseFigures:
        """Figures of stay number `at` of `stays`."""
        self._flush()
        stay = self.stays[at]
        until = self.stays[at + 1].entered_ms if at + 1 < len(self.stays) else None
        assert self._first is not None
        return phase_figures(stay, self._first, self.table.select(stay.entered_ms, until), self._error)

    def snapshot(self) -> RolloutFigures:
        """All figures for display."""
        self._flush()
        return RolloutFigures(
            seq=self.seq,
            newest_ms=self.table.newest_ms,
            exposed=self.exposed,
            paired=self.paired,
            overridden=self.overridden,
            not_finite=self.not_finite,
            left_out=self.left_out,
            coverage=self.paired / self.exposed if self.exposed else None,
            phases=tuple(self.phase_figures(at) for at in range(len(self.stays))),
            segments=slice_figures(self.table, self.slices, self._error),
            psi=field_stability(self.table, self.slices, self._entered()),
        )

    def save(self, identity: Sequence[int] = ()) -> bytes:
        """All sums, packed, for `restore`. `identity`: of what they belong to."""
        self._flush()
        table_head, arrays = self.table.save()
        stays = self.stays if self._first is None or self._first in self.stays else [self._first, *self.stays]
        saved = [stay.save() for stay in stays]
        for at, (_, of_stay) in enumerate(saved):
            arrays |= {f"stay{at}_{name}": array for name, array in of_stay.items()}
        arrays |= self._auc.save() | ({} if self.cap is None else self.cap.save())
        arrays["before"] = self.before.sums
        arrays["lost"] = np.array([*self._lost], np.uint64).view(np.int64)
        counts = (self.exposed, self.paired, self.overridden, self.not_finite, self.left_out)
        head = {
            "identity": [*identity], "seq": self.seq, "table": table_head, "counts": counts, "stays": [head for head, _ in saved],
            "live": len(self.stays), "second_ms": self._second_ms, "before": self.before.weights,
            "slices": None if self.slices is None else self.slices.save(),
        }  # fmt: skip
        return pack_sums(head, arrays)

    def restore(self, packed: bytes, identity: Sequence[int] = ()) -> bool:
        """Fill a new analysis with the result of `save`; False, and nothing is done, where they belong to something else, or
        another version packed them."""
        found = unpack_sums(packed)
        if found is None or found[0].get("identity") != [*identity]:
            return False
        head, arrays = found
        if arrays["blocks"].shape[1] != selection.COLUMNS:
            return False
        self.seq = head["seq"]
        self.exposed, self.paired, self.overridden, self.not_finite, self.left_out = head["counts"]
        self.table.restore(head["table"], arrays)
        self._auc.restore(arrays)
        if self.cap is not None:
            self.cap.restore(arrays)
        names = ("arms", "outcome")
        stays = [
            StaySums.restore(of_stay, {name: arrays[f"stay{at}_{name}"] for name in names})
            for at, of_stay in enumerate(head["stays"])
        ]
        self._first, self._second_ms = next(iter(stays), None), head["second_ms"]
        self.stays = stays[len(stays) - head["live"] :]
        if "before" in arrays:
            self.before.restore(head["before"], arrays["before"])
        for stay in stays:
            stay.outcome.before = self.before.at(stay.weight)
        if self.stays:
            self.table.outcome = self.stays[-1].outcome
        self._lost = OrderedDict.fromkeys(arrays["lost"].view(np.uint64).tolist())
        if self.slices is not None:
            self.slices.restore(head["slices"])
        return True

    def save_evidence(self) -> bytes:
        """The sums that a verdict rests on, packed, for `explain`: without stays, and without slices that are only shown."""
        named = None if self.slices is None else self.slices.named
        table_head, arrays = self.refresh().save(named if named is not None else ())
        busy = {} if self.cap is None else self.cap.save_busy()
        outcome = self.table.outcome
        known = {} if outcome.before is None else {"outcome_before": outcome.before}
        return pack_sums({"seq": self.seq, "table": table_head}, arrays | busy | known | {"outcome": outcome.sums})

    def _entered(self) -> list[int]:
        """Entries of the first stay, of the one after it, and of the last one."""
        if self._first is None or self._second_ms is None:
            return []
        return [self._first.entered_ms, self._second_ms, self.stays[-1].entered_ms]

    def _collect(self, entry: Labelled, record: PredictionRecord) -> None:
        if record.endpoint != self.endpoint or record.arm == "direct":
            return
        fresh = np.isnan(entry.previous)  # rows that were not written before
        rows, first = int(fresh.sum()), entry.revision == 0
        if record.overridden:
            self.overridden += rows
            return
        if self._refused and entry.time_ms >= self._refused_from_ms and self._version(record, entry) in self._refused:
            return
        phase = self._phase_of(entry.time_ms)
        if phase >= 0:  # outcomes are sums by group of keys, so their limits account for a busy one
            counted = count_outcome(self.stays[phase].outcome, record, entry)
            if counted is not None and self._untouched(entry.time_ms):
                self.before.add(record.routing_hash, record.bucket, counted)
        if not len(entry.indices):  # answered and never shown: no evidence on rows
            return
        block = entry.time_ms // self.table.block_ms
        line = self._line(block)
        if self.cap is not None:
            self.cap.count(block, record.routing_hash, rows)
            if self.cap.leaves_out(block, record.routing_hash, _hash(entry.prediction_id)):
                line[selection.LEFT_OUT] += rows
                self.left_out += rows
                return
        self.exposed += rows
        line[selection.EXPOSED] += rows
        pair = self._pair(record, entry)
        if pair is None:
            if first:
                self._remember(entry.prediction_id)
            return
        if not first and _hash(entry.prediction_id) in self._lost:
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
        line[selection.REQUESTS] += first
        again = ~fresh
        change = float(entry.labels.sum(dtype=np.float64)) - float(entry.previous[again].sum(dtype=np.float64))
        line[selection.REQUEST_SQUARES] += int(fixed(change * change, SQUARE_UNITS))
        line[selection.VERSION] = min(line[selection.VERSION], version)
        mark = (block, phase, record.arm == "candidate")
        parts = {} if self.slices is None else self.slices.of(record.features, entry.indices)
        self._batch.append(entry.labels, stable, candidate, parts, *mark, 1)
        if rows < len(fresh):
            kept = {name: codes if len(codes) == 1 else codes[again] for name, codes in parts.items()}
            self._batch.append(entry.previous[again], stable[again], candidate[again], kept, *mark, -1)
        if self._batch.rows >= _BATCH_ROWS:
            self._flush()

    def _line(self, block: int) -> I64:
        """Line of a block. All that was read before is counted before blocks merge, so batches do not matter."""
        if block not in self.table.single:
            self._flush()
            self._auc.settle(max(block, self.table.open))
        row = self.table.row_of(block)  # may put `sums` into a larger array
        line: I64 = self.table.sums[row]
        return line

    def _version(self, record: PredictionRecord, entry: Labelled) -> int | None:
        """The candidate's version that scored a prediction."""
        if record.arm == "candidate":
            return record.version
        return next((other.version for other in reversed(entry.other) if other.arm == "candidate"), None)

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

    def _untouched(self, time_ms: int) -> bool:
        """Whether the candidate had answered nobody then."""
        first, second_ms = self._first, self._second_ms
        return first is not None and first.weight == 0 and (second_ms is None or time_ms < second_ms)

    def _phase_of(self, time_ms: int) -> int:
        for at in range(len(self.stays) - 1, -1, -1):
            if time_ms >= self.stays[at].entered_ms:
                return at
        return -1

    def _flush(self) -> None:
        """Count what was collected."""
        batch, self._batch = self._batch, _Batch()
        if batch.rows:
            self.whole, before = False, self.whole
            self._count(batch)
            self.whole = before

    def _count(self, batch: _Batch) -> None:
        y, stable, candidate, block, phase, served, sign = batch.arrays()
        losses = (row_logloss(y, stable), row_logloss(y, candidate))
        bins = (_FINE.bin_of(stable), _FINE.bin_of(candidate))
        clicks, of_stable, of_candidate = (sign * fixed(values, UNITS) for values in (y, stable, candidate))
        loss_of = tuple(sign * fixed(values, NAT_UNITS) for values in losses)
        columns = {
            selection.ROWS: sign,
            selection.CLICKS: clicks,
            selection.STABLE: of_stable,
            selection.CANDIDATE: of_candidate,
            selection.LOSS_DELTA: loss_of[1] - loss_of[0],
            selection.SERVED_ROWS: sign * served,
            selection.SERVED_CLICKS: clicks * served,
            selection.SERVED: of_candidate * served,
            selection.SERVED_STABLE: of_stable * served,
            selection.SQUARES: sign * fixed(y * y, UNITS),
        }
        stacked, names = np.stack([*columns.values()]), [*columns]
        for number in np.unique(block).tolist():
            at = block == number
            row = self.table.row_of(number)
            line = self.table.sums[row]
            line[names] += stacked[:, at].sum(axis=1)
            checked(line[selection.EXTRA :])
            coarse = tuple(fine[at] // (_FINE.bins // BLOCK_BINS) for fine in bins)
            self._auc.add(number, (coarse[0], coarse[1]), sign[at], clicks[at])
        for number in np.unique(phase).tolist():
            if number >= 0:
                stay = self.stays[number]
                at = phase == number
                stay.stable.add(bins[0][at], sign[at], clicks[at], of_stable[at], loss_of[0][at])
                stay.candidate.add(bins[1][at], sign[at], clicks[at], of_candidate[at], loss_of[1][at])
                at = at & served
                if at.any():
                    stay.served.add(bins[1][at], sign[at], clicks[at], of_candidate[at], loss_of[1][at])
        if self.slices is not None:
            for field in self.slices.fields:
                codes = self.slices.bounded(field, batch.codes(field))
                self._count_slices(field, codes, block, stacked[: len(PART) - 1])

    def _count_slices(self, field: str, codes: I64, block: I64, columns: I64) -> None:
        """Add `columns` `[len(PART) - 1, n]` to the lines of each row's slice and block."""
        part, first, which = np.unique(codes, return_index=True, return_inverse=True)
        places = np.zeros(len(part), np.intp)
        for at in np.argsort(first).tolist():
            places[at] = self.table.part_of((field, int(part[at])))
        number, when = np.unique(block, return_inverse=True)
        rows = np.array([self.table.row_of(each) for each in number.tolist()])
        cell, shape = when * len(part) + which, (len(number), len(part))
        for at, values in enumerate(columns):
            # In floats, which are exact here: a batch is too small for a sum beyond 2^53.
            sums = np.bincount(cell, values, len(number) * len(part)).astype(np.int64)
            self.table.parts[rows[:, None], places[None, :], at] += sums.reshape(shape)

    def _remember(self, prediction_id: str) -> None:
        self._lost[_hash(prediction_id)] = None
        if len(self._lost) > _REMEMBERED_PREDICTIONS:
            self._lost.popitem(last=False)


def new_analysis(
    spec: Rollout, after: int, schema: Callable[[str], Schema], table: BlockTable | None = None
) -> RolloutAnalysis:
    """The analysis of a rollout file, from a place in the labelled log on.

    Args:
        table: that the blocks are kept in; None: one as `new_table` makes it.

    Raises:
        InvalidInput: the field of a slice is not among the inputs of the candidate.
    """
    named = [(guard.field, value) for guard, value in spec.named_slices]
    slices = None
    if named or spec.analysis.segments:
        slices = Slices(schema(spec.candidate.bundle), spec.analysis.segments, named)
    return RolloutAnalysis(
        spec.endpoint,
        spec.candidate.bundle,
        spec.analysis.block_ms,
        spec.analysis.confidence,
        after,
        slices,
        new_table(spec) if table is None else table,
        new_cap(spec),
        [step.weight for step in spec.steps if step.weight > 0],
    )


def new_cap(spec: Rollout) -> KeyCap | None:
    """The cap on the rows of a key that a rollout file asks for; None: none."""
    return KeyCap(spec.analysis.key_cap, spec.analysis.block_ms) if spec.analysis.key_cap > 0 else None


def new_table(spec: Rollout, most_blocks: int = MAX_BLOCKS, most_rows: int = MAX_TABLE_ROWS) -> BlockTable:
    """An empty table of blocks for a rollout file."""
    window = -(-spec.analysis.window_ms // spec.analysis.block_ms)
    return BlockTable(spec.analysis.block_ms, window + 1, most_blocks, most_rows)


class _Batch:
    """Rows of several entries, counted together."""

    def __init__(self) -> None:
        self.rows = 0
        self._labels: list[Any] = []
        self._stable: list[Any] = []
        self._candidate: list[Any] = []
        self._parts: list[Mapping[str, I64]] = []
        self._marks: list[tuple[int, int, int, bool, int]] = []

    def append(
        self, labels: Any, stable: Any, candidate: Any, parts: Mapping[str, I64], block: int,
        phase: int, served: bool, sign: int,
    ) -> None:  # fmt: skip
        self.rows += len(labels)
        self._labels.append(labels)
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

    def arrays(self) -> tuple[F64, F64, F64, I64, I64, Mask, I64]:
        sizes, block, phase, served, sign = zip(*self._marks, strict=True)
        return (
            np.concatenate(self._labels).astype(np.float64),
            np.concatenate(self._stable).astype(np.float64),
            np.concatenate(self._candidate).astype(np.float64),
            np.repeat(np.array(block, np.int64), sizes),
            np.repeat(np.array(phase, np.int64), sizes),
            np.repeat(np.array(served, np.bool_), sizes),
            np.repeat(np.array(sign, np.int64), sizes),
        )


_FINE = BinnedAuc()


def _hash(prediction_id: str) -> int:
    return xxhash.xxh3_64_intdigest(prediction_id.encode())


def _rows_of(entry: Labelled, rows: Mask) -> Labelled:
    """An entry with the rows of a mask `[m]` alone."""
    return replace(
        entry,
        indices=entry.indices[rows],
        labels=entry.labels[rows],
        positions=entry.positions[rows],
        previous=entry.previous[rows],
    )

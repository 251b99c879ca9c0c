"""Embedding tables of unbounded ids that training grows: id -> row, with optimiser state beside each row.

All tables of a model share one width, so they share one index and one block of rows; every row knows its table. Gradients
are collected per row touched and applied to those rows only. It knows nothing of networks, losses or files.
Next stop: `transfer.model`, which puts a network on top.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.bundle import Table
from pipeline.embedding.kernels import IdIndex
from pipeline.errors import InvalidInput
from pipeline.features import Rows
from pipeline.hashing import PAD
from pipeline.row_format import RowFormat, check_rows, decode_rows, encode_rows
from pipeline.schema import Schema
from transfer import kernels

__all__ = ["Lookup", "TableSettings", "Tables"]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class TableSettings:
    """How rows learn.

    Gradients are sums over the rows of a batch (not means), so that a step does not depend on the size of the batch.
    """

    optimiser: Literal["adagrad", "adam"] = "adagrad"
    rate: float = 0.03
    linear_rate: float = 0.03
    initial_square: float = 0.1
    """Where Adagrad's accumulators start: larger means smaller first steps for ids that are seen once or twice."""
    noise: float = 0.01
    """Deviation of a new row around its table's default row."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """Slots of a batch: `ids` int64 `[n, k]`, one `(column of the network, offsets, slots)` per bag; -1 is unknown."""

    n: int
    ids: I64
    bags: tuple[tuple[int, I32, I64], ...]


class _Block:
    """Values of one width with their optimiser state, by slot."""

    def __init__(self, width: int, settings: TableSettings, rate: float, capacity: int) -> None:
        self.rate, self._settings = rate, settings
        self.values: F32 = np.zeros((capacity, width), np.float32)
        self.squares: F32 = np.full(capacity, self._start, np.float32)
        adam = settings.optimiser == "adam"
        self.momentum: F32 = np.zeros((capacity if adam else 0, width), np.float32)
        self.steps: I64 = np.zeros(capacity if adam else 0, np.int64)

    @property
    def _start(self) -> float:
        return self._settings.initial_square if self._settings.optimiser == "adagrad" else 0.0

    def grow(self, capacity: int) -> None:
        self.values = _grown(self.values, capacity)
        self.squares = _grown(self.squares, capacity, self._start)
        if self._settings.optimiser == "adam":
            self.momentum, self.steps = _grown(self.momentum, capacity), _grown(self.steps, capacity)

    def apply(self, batch: I64, sums: F32, scale: float) -> None:
        if self._settings.optimiser == "adagrad":
            kernels.adagrad(batch, sums, scale, self.rate, self.values, self.squares)
        else:
            kernels.adam(batch, sums, scale, self.rate, self.values, self.squares, self.momentum, self.steps)

    def arrays(self, used: int) -> Arrays:
        return {key: getattr(self, key)[:used].copy() for key in ("values", "squares", "momentum", "steps")}

    def load(self, arrays: Mapping[str, npt.NDArray[Any]], capacity: int) -> None:
        for key in ("values", "squares", "momentum", "steps"):
            setattr(self, key, arrays[key].copy())
        self.grow(capacity)


class Tables:
    """All embedding tables of one model.

    Args:
        schema: with widths set (`Schema.with_width`).
        width: d.
        linear: whether every id also has a weight.
        settings: rates and optimiser.
        seed: of the noise on new rows.
    """

    def __init__(self, schema: Schema, width: int, *, linear: bool, settings: TableSettings, seed: int) -> None:
        self.names = sorted({f.table_name for f in schema.embedded})
        self.width, self.linear, self.settings, self.seed = width, linear, settings, seed
        column = {f.name: c for c, f in enumerate(schema.embedded)}
        table = {f.name: self.names.index(f.table_name) for f in schema.embedded}
        self._fields = len(schema.embedded)
        self._columns = np.array([column[f.name] for f in schema.ids], np.int32)
        self._tables = np.array([table[f.name] for f in schema.ids], np.int32)
        self._bags = [(column[f.name], table[f.name]) for f in schema.bags]
        # An id that stands in fields of different tables is a row in each of them.
        rng = np.random.default_rng(0x7AB1E5)
        self._salts = np.concatenate([[0], rng.integers(-(2**63), 2**63 - 1, max(0, len(self.names) - 1))])
        self._salts = self._salts.astype(np.int64)
        self.default: F32 = np.zeros((len(self.names), width), np.float32)
        self.default_linear: F32 = np.zeros(len(self.names), np.float32)
        self._clear(1024)

    def _clear(self, capacity: int) -> None:
        self._index = IdIndex(capacity)
        self._capacity = capacity
        self._rows = _Block(width=self.width, settings=self.settings, rate=self.settings.rate, capacity=capacity)
        self._weights = _Block(1, self.settings, self.settings.linear_rate, capacity if self.linear else 0)
        self.ids: I64 = np.zeros(capacity, np.int64)
        self.tags: I32 = np.zeros(capacity, np.int32)
        self.counts: I64 = np.zeros(capacity, np.int64)
        self.seen: I64 = np.zeros(capacity, np.int64)
        self._touched: npt.NDArray[np.bool_] = np.zeros(capacity, np.bool_)
        self._place: I32 = np.full(capacity, -1, np.int32)
        self._batch: I64 = np.zeros(0, np.int64)
        self._sums: F32 = np.zeros((0, self.width), np.float32)
        self._linear_sums: F32 = np.zeros(0, np.float32)
        self._collected = 0
        self._news: list[I64] = []

    def __len__(self) -> int:
        """Rows of all tables together."""
        return len(self._index)

    @property
    def rows(self) -> F32:
        """Vectors by slot, float32 `[len(self), d]`, a view."""
        return self._rows.values[: len(self)]

    @property
    def weights(self) -> F32:
        """Weights by slot, float32 `[len(self)]`, a view; empty without weights per id."""
        return self._weights.values[: len(self)].reshape(-1)

    def slots_of(self, name: str) -> I64:
        """Slots of one table's rows, int64, in order of arrival."""
        found: I64 = np.flatnonzero(self.tags[: len(self)] == self._table_index(name)).astype(np.int64)
        return found

    # --- reading -----------------------------------------------------------------------------------------------------

    def lookup(self, rows: Rows, *, create: bool) -> Lookup:
        """Slots of a batch; with `create`, ids never seen get rows at their table's default, plus noise."""
        ids = self._slots(np.ascontiguousarray(rows.ids), self._tables, create)
        bags = []
        for bag, (column, table) in zip(rows.bags, self._bags, strict=True):
            values, offsets = bag.values, bag.offsets.astype(np.int32, copy=False)
            if not values.all():
                values, offsets = _without_padding(values, offsets)
            slots = self._slots(values.reshape(-1, 1), np.array([table], np.int32), create)
            bags.append((column, offsets, slots.reshape(-1)))
        return Lookup(len(rows.ids) if rows.ids.shape[1] else len(rows), ids, tuple(bags))

    def gather(self, lookup: Lookup, stored: RowFormat = "float32") -> tuple[F32, F32 | None]:
        """Pooled vectors float32 `[n, F, d]` and weights `[n, F]` of a batch, as serving computes them from rows that are
        stored in a format.

        Raises:
            InvalidInput: one of the batch's rows cannot be stored in it.
        """
        values, weights = self._rows.values, self._weights.values.reshape(-1)
        if stored != "float32":
            lookup, slots = _apart(lookup)
            values = np.ascontiguousarray(decode_rows(*encode_rows(values[slots], stored)))
            weights = weights[slots] if self.linear else weights
        out = np.empty((lookup.n, self._fields, self.width), np.float32)
        linear = np.empty((lookup.n if self.linear else 0, self._fields), np.float32)
        kernels.gather_ids(
            lookup.ids, self._tables, self._columns, values, self.default, weights, self.default_linear, out, linear
        )  # fmt: skip
        for (column, offsets, places), (_, table) in zip(lookup.bags, self._bags, strict=True):
            kernels.gather_bag(
                places, offsets, table, column, values, self.default, weights, self.default_linear, out, linear
            )
        return out, linear if self.linear else None

    # --- learning ----------------------------------------------------------------------------------------------------

    def collect(self, lookup: Lookup, grad: F32 | None, linear_grad: F32 | None, now: int) -> None:
        """Add a batch's gradients to those collected since the last `apply`.

        Args:
            lookup: of the batch, made with `create`.
            grad, linear_grad: `[n, F, d]` and `[n, F]`, sums over rows (not means); None where not used.
            now: stored as the time the ids were last seen, in rows trained.
        """
        self._reserve_sums(lookup.ids.size + sum(len(slots) for _, _, slots in lookup.bags))
        vectors = np.empty((0, self._fields, self.width), np.float32) if grad is None else np.ascontiguousarray(grad)
        weights = np.empty((0, self._fields), np.float32)
        if linear_grad is not None:
            weights = np.ascontiguousarray(linear_grad)
        self._collected = kernels.collect_ids(
            lookup.ids, self._columns, vectors, weights, self._place, self._batch, self._collected, self._sums,
            self._linear_sums, self.counts, self.seen, now,
        )  # fmt: skip
        for column, offsets, slots in lookup.bags:
            self._collected = kernels.collect_bag(
                slots, offsets, column, vectors, weights, self._place, self._batch, self._collected, self._sums,
                self._linear_sums, self.counts, self.seen, now,
            )  # fmt: skip

    def apply(self, scale: float = 1.0) -> None:
        """One optimiser step on the rows collected, gradients times `scale`; then start over."""
        batch = self._batch[: self._collected]
        self._rows.apply(batch, self._sums, scale)
        if self.linear:
            self._weights.apply(batch, self._linear_sums.reshape(-1, 1), scale)
        self._mark(batch)
        self._place[batch] = -1
        self._collected = 0

    def set_rows(self, name: str, table: Table) -> None:
        """Write rows of one table, adding ids it lacks; their optimiser state starts over. They count as touched."""
        index = self._table_index(name)
        slots = self._slots(table.ids.reshape(-1, 1), np.array([index], np.int32), create=True).reshape(-1)
        if len(slots) and slots.min() < 0:
            raise InvalidInput(f"table {name!r} holds id {PAD}, which only pads", name)
        self._rows.values[slots] = table.rows
        self.counts[slots] = table.counts
        if self.linear and table.linear is not None:
            self._weights.values[slots, 0] = table.linear
        self._mark(slots)

    def load_rows(self, name: str, table: Table) -> None:
        """Write rows of one table from a bundle: as `set_rows`, but they count as published already."""
        before = self.touched()
        self.set_rows(name, table)
        self.take_touched()
        self._mark(before)

    def default_to_mean(self, *, least_count: int = 1) -> None:
        """Set every table's default row to the mean of its rows seen at least `least_count` times."""
        for t, name in enumerate(self.names):
            slots = self.slots_of(name)
            slots = slots[self.counts[slots] >= least_count]
            if len(slots):
                self.default[t] = self._rows.values[slots].mean(0, dtype=np.float64)
                if self.linear:
                    self.default_linear[t] = self._weights.values[slots].mean(dtype=np.float64)

    # --- publishing and saving ---------------------------------------------------------------------------------------

    def touched(self) -> I64:
        """Slots changed since `take_touched`, sorted; the cost follows their number."""
        return np.sort(np.concatenate(self._news)) if self._news else np.zeros(0, np.int64)

    def take_touched(self) -> I64:
        """Like `touched`, and start over."""
        slots = self.touched()
        self._touched[slots] = False
        self._news = []
        return slots

    def put_back(self, slots: I64) -> None:
        """Mark slots as touched again, for a publication that failed."""
        self._mark(slots)

    def export(self, name: str, slots: I64 | None = None) -> Table:
        """Rows of one table, copied and sorted by id: all of them, or those among `slots`."""
        if slots is None:
            slots = self.slots_of(name)
        else:
            slots = slots[self.tags[slots] == self._table_index(name)]
        slots = slots[np.argsort(self.ids[slots])]
        linear = self._weights.values[slots, 0] if self.linear else None
        return Table(self.ids[slots], self._rows.values[slots], self.counts[slots], linear)

    def check_stored(self, stored: RowFormat, slots: I64 | None = None) -> None:
        """Whether rows, all of them or those at `slots`, can be stored in a format.

        Raises:
            InvalidInput: they cannot.
        """
        if stored != "float32":
            check_rows(self.rows if slots is None else self.rows[slots], stored)

    def state(self) -> Arrays:
        """Everything, copied, as a flat dict of arrays."""
        used, collected = len(self), self._collected
        arrays: Arrays = {
            "ids": self.ids[:used].copy(),
            "tags": self.tags[:used].copy(),
            "counts": self.counts[:used].copy(),
            "seen": self.seen[:used].copy(),
            "touched": self.touched(),
            "default": self.default.copy(),
            "default_linear": self.default_linear.copy(),
            "batch": self._batch[:collected].copy(),
            "sums": self._sums[:collected].copy(),
            "linear_sums": self._linear_sums[:collected].copy(),
        }
        arrays |= {f"rows.{key}": value for key, value in self._rows.arrays(used).items()}
        return arrays | {f"weights.{key}": value for key, value in self._weights.arrays(used).items()}

    def load_state(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take the state of tables made with the same schema, width and settings."""
        used = len(arrays["ids"])
        self._clear(max(1024, used))
        self.ids[:used], self.tags[:used] = arrays["ids"], arrays["tags"]
        self._index.insert(self.ids[:used] ^ self._salts[self.tags[:used]])
        self.counts[:used], self.seen[:used] = arrays["counts"], arrays["seen"]
        self._rows.load({k: arrays[f"rows.{k}"] for k in ("values", "squares", "momentum", "steps")}, self._capacity)
        if self.linear:
            block = {k: arrays[f"weights.{k}"] for k in ("values", "squares", "momentum", "steps")}
            self._weights.load(block, self._capacity)
        self.default[:], self.default_linear[:] = arrays["default"], arrays["default_linear"]
        self._mark(arrays["touched"])
        collected = len(arrays["batch"])
        self._reserve_sums(collected)
        self._batch[:collected], self._sums[:collected] = arrays["batch"], arrays["sums"]
        self._linear_sums[:collected] = arrays["linear_sums"]
        self._place[arrays["batch"]] = np.arange(collected, dtype=np.int32)
        self._collected = collected

    # --- inside ------------------------------------------------------------------------------------------------------

    def _slots(self, ids: I64, tables: I32, create: bool) -> I64:
        keys = np.empty(ids.shape, np.int64)
        kernels.salted(ids, self._salts[tables], keys)
        if not create:
            return self._index.find(keys)
        before = len(self._index)
        slots: I64 = self._index.insert(keys)
        after = len(self._index)
        if after > before:
            self._grow(after)
            kernels.label_new(ids, slots, tables, before, self.ids, self.tags)
            seed, noise = self.seed, self.settings.noise
            kernels.initialise(before, after, self.ids, self.tags, seed, noise, self.default, self._rows.values)
            if self.linear:
                self._weights.values[before:after, 0] = self.default_linear[self.tags[before:after]]
        return slots

    def _grow(self, needed: int) -> None:
        if needed <= self._capacity:
            return
        self._capacity = capacity = max(needed, 2 * self._capacity)
        self._rows.grow(capacity)
        if self.linear:
            self._weights.grow(capacity)
        self.ids, self.tags = _grown(self.ids, capacity), _grown(self.tags, capacity)
        self.counts, self.seen = _grown(self.counts, capacity), _grown(self.seen, capacity)
        self._touched, self._place = _grown(self._touched, capacity), _grown(self._place, capacity, -1)

    def _reserve_sums(self, more: int) -> None:
        needed = self._collected + more
        if needed > len(self._batch):
            self._batch, self._linear_sums = _grown(self._batch, needed), _grown(self._linear_sums, needed)
            self._sums = _grown(self._sums, needed)

    def _mark(self, slots: I64) -> None:
        news = slots[~self._touched[slots]]
        if len(news):
            self._touched[news] = True
            self._news.append(news.copy())

    def _table_index(self, name: str) -> int:
        try:
            return self.names.index(name)
        except ValueError:
            raise InvalidInput(f"there is no table {name!r}; there are {self.names}", name) from None


def _grown(array: npt.NDArray[Any], capacity: int, fill: float = 0) -> npt.NDArray[Any]:
    """A copy with `capacity` rows, new ones set to `fill`."""
    if len(array) >= capacity:
        return array
    out = np.full((capacity, *array.shape[1:]), fill, array.dtype)
    out[: len(array)] = array
    return out


def _apart(lookup: Lookup) -> tuple[Lookup, I64]:
    """A lookup's slots, each once, and the lookup with places among them in their stead; -1 stays -1."""
    parts = [lookup.ids, *(slots for _, _, slots in lookup.bags)]
    slots, at = np.unique(np.concatenate([part.reshape(-1) for part in parts]), return_inverse=True)
    unknown = int(len(slots) > 0 and slots[0] < 0)
    ends = np.cumsum([part.size for part in parts])[:-1]
    ids, *bags = np.split((at - unknown).astype(np.int64), ends)
    apart = tuple((column, offsets, bag) for (column, offsets, _), bag in zip(lookup.bags, bags, strict=True))
    return Lookup(lookup.n, ids.reshape(lookup.ids.shape), apart), slots[unknown:]


def _without_padding(values: I64, offsets: I32) -> tuple[I64, I32]:
    kept = values != PAD
    before = np.concatenate([[0], np.cumsum(kept)])
    return values[kept], before[offsets].astype(np.int32)

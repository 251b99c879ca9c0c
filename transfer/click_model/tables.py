"""Embedding tables of unbounded ids that grow in training: id -> row, with optimiser state beside each row.

All tables of a model have one width, so they share one index and one block of rows; every row has the tag of its table.
Gradients are collected per row touched and applied to those rows only. An id may get a row only after it was seen several
times, and a row may be evicted when its id was not seen for long (`TableSettings`). It knows nothing of networks, losses
or files.
Next stop: `transfer.click_model.model`, which puts a network on top.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pipeline.arrays import F32, I32, I64, Array, Arrays
from pipeline.bundle.bundle import Table
from pipeline.bundle.row_format import RowFormat, check_rows, decode_rows, encode_rows
from pipeline.embedding.kernels import IdIndex
from pipeline.errors import InvalidInput
from pipeline.features import Rows
from pipeline.hashing import PAD_ID
from pipeline.schema import Schema
from transfer.click_model import kernels
from transfer.click_model.blocks import Changed, Lookup, RowBlock, TableSettings, compacted, grown, without_padding
from transfer.click_model.first_seen import FirstSeen

__all__ = ["Tables", "merged"]


AGED_PORTIONS = 8
"""Old rows are evicted in portions: this many times per `evict_after`."""
_BY_SLOT = ("ids", "tags", "counts", "seen")


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
        # An id in fields of different tables has a row in each of them.
        rng = np.random.default_rng(0x7AB1E5)
        self._salts = np.concatenate([[0], rng.integers(-(2**63), 2**63 - 1, max(0, len(self.names) - 1))])
        self._salts = self._salts.astype(np.int64)
        self.default: F32 = np.zeros((len(self.names), width), np.float32)
        self.default_linear: F32 = np.zeros(len(self.names), np.float32)
        self._first_seen = FirstSeen() if settings.admit_after > 1 else None
        self._aged = 0
        self._clear(1024)

    def _clear(self, capacity: int) -> None:
        self._index = IdIndex(capacity)
        self._capacity = capacity
        self._rows = RowBlock(width=self.width, settings=self.settings, rate=self.settings.rate, capacity=capacity)
        self._weights = RowBlock(1, self.settings, self.settings.linear_rate, capacity if self.linear else 0)
        self.ids: I64 = np.zeros(capacity, np.int64)
        self.tags: I32 = np.zeros(capacity, np.int32)
        self.counts: I64 = np.zeros(capacity, np.int64)
        self.seen: I64 = np.zeros(capacity, np.int64)
        self._published, self._saved = Changed(capacity), Changed(capacity)
        self._renumbered = True
        self._place: I32 = np.full(capacity, -1, np.int32)
        self._batch: I64 = np.zeros(0, np.int64)
        self._sums: F32 = np.zeros((0, self.width), np.float32)
        self._linear_sums: F32 = np.zeros(0, np.float32)
        self._collected = 0

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
        """Slots of a batch. With `create`, new ids get rows at their table's default, plus noise, as soon as they were seen
        often enough."""
        ids = self._slots(np.ascontiguousarray(rows.ids), self._tables, create)
        bags = []
        for bag, (column, table) in zip(rows.bags, self._bags, strict=True):
            values, offsets = bag.values, bag.offsets.astype(np.int32, copy=False)
            if not values.all():
                values, offsets = without_padding(values, offsets)
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
            lookup, slots = compacted(lookup)
            values = np.ascontiguousarray(decode_rows(*encode_rows(values[slots], stored)))
            weights = weights[slots] if self.linear else weights
        out = np.empty((lookup.n, self._fields, self.width), np.float32)
        linear = np.empty((lookup.n if self.linear else 0, self._fields), np.float32)
        by_slot = kernels.Values(values, weights, self.default, self.default_linear)
        kernels.gather_ids(lookup.ids, self._tables, self._columns, by_slot, out, linear)
        for (column, offsets, slots), (_, table) in zip(lookup.bags, self._bags, strict=True):
            kernels.gather_bag(slots, offsets, table, column, by_slot, out, linear)
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
        into = kernels.GradientSums(self._place, self._batch, self._sums, self._linear_sums, self.counts, self.seen)
        used = kernels.collect_ids(lookup.ids, self._columns, vectors, weights, into, self._collected, now)
        for column, offsets, slots in lookup.bags:
            used = kernels.collect_bag(slots, offsets, column, vectors, weights, into, used, now)
        self._collected = used

    def apply(self, scale: float = 1.0) -> None:
        """One optimiser step on the rows collected, gradients times `scale`; the sums are cleared."""
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
        slots = self._slots(table.ids.reshape(-1, 1), np.array([index], np.int32), create=True, admit=False).reshape(-1)
        if len(slots) and slots.min() < 0:
            raise InvalidInput(f"table {name!r} holds id {PAD_ID}, which only pads", name)
        self._rows.values[slots] = table.rows
        self.counts[slots] = table.counts
        if self.linear and table.linear is not None:
            self._weights.values[slots, 0] = table.linear
        self._mark(slots)

    def take_over_squares(self, name: str, source: Tables) -> None:
        """Copy row-wise Adagrad's accumulators of one table from tables of another width, which have the same ids; nothing
        where either has another optimiser."""
        if self.settings.optimiser != "adagrad" or source.settings.optimiser != "adagrad":
            return
        from_slots, index = source.slots_of(name), self._table_index(name)
        to_slots = self._index.find(source.ids[from_slots] ^ self._salts[index])
        pairs = [(self._rows, source._rows, source.width / self.width)]
        if self.linear and source.linear:
            pairs.append((self._weights, source._weights, 1.0))
        for block, other, scale in pairs:
            gathered = other.squares[from_slots] - source.settings.initial_square
            block.squares[to_slots] = self.settings.initial_square + np.float32(scale) * gathered

    def restart(self) -> None:
        """Reset the optimiser state of all rows to that of new ones."""
        self._rows.restart()
        self._weights.restart()

    def load_rows(self, name: str, table: Table) -> None:
        """Write rows of one table from a bundle: as `set_rows`, but they count as published already."""
        before = self.touched()
        self.set_rows(name, table)
        self._published.take()
        self._published.mark(before)

    def default_to_mean(self, *, least_count: int = 1) -> None:
        """Set every table's default row to the mean of its rows seen at least `least_count` times."""
        for t, name in enumerate(self.names):
            slots = self.slots_of(name)
            slots = slots[self.counts[slots] >= least_count]
            if len(slots):
                self.default[t] = self._rows.values[slots].mean(0, dtype=np.float64)
                if self.linear:
                    self.default_linear[t] = self._weights.values[slots].mean(dtype=np.float64)

    def age(self, now: int) -> int:
        """Evict rows not seen for long, if it is time to; the number evicted. Slots are renumbered then.

        Args:
            now: rows trained so far. To be called between `apply` and `lookup`.
        """
        after = self.settings.evict_after
        if after is None or now - self._aged < max(1, after // AGED_PORTIONS):
            return 0
        self._aged = now
        keep = np.flatnonzero(self.seen[: len(self)] >= now - after)
        gone = len(self) - len(keep)
        if gone:
            place = np.full(len(self), -1, np.int64)
            place[keep] = np.arange(len(keep))
            touched = place[self.touched()]
            state = self.state() | self._rows_state(keep)
            self.load_state(state | {"touched": touched[touched >= 0]})
        return gone

    # --- publishing and saving ---------------------------------------------------------------------------------------

    def touched(self) -> I64:
        """Slots changed since `take_touched`, sorted; the cost follows their number."""
        return self._published.slots()

    def take_touched(self) -> I64:
        """Like `touched`; from then on none is touched."""
        return self._published.take()

    def put_back(self, slots: I64) -> None:
        """Mark slots as touched again, for a publication that failed."""
        self._published.mark(slots)

    def changed(self) -> I64 | None:
        """Slots changed since `saved`, sorted; None where slots were renumbered since, and all have to be saved."""
        if self._renumbered:
            return None
        self._saved.mark(self._batch[: self._collected])  # their counts have moved
        return self._saved.slots()

    def saved(self) -> None:
        """All changes are saved: from then on no slot is changed."""
        self._saved.take()
        self._renumbered = False

    def finite(self) -> bool:
        """Whether all rows changed since `saved` are finite; all rows where slots were renumbered since."""
        slots = self.changed()
        which: I64 | slice = slice(len(self)) if slots is None else slots
        return bool(
            np.isfinite(self._rows.values[which]).all()
            and (not self.linear or np.isfinite(self._weights.values[which]).all())
        )

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
        """Check that rows, all of them or those at `slots`, can be stored in a format.

        Raises:
            InvalidInput: they cannot.
        """
        if stored != "float32":
            check_rows(self.rows if slots is None else self.rows[slots], stored)

    def state(self, slots: I64 | None = None) -> Arrays:
        """Copies of the whole state as flat arrays; with `slots`, of the rows only these, for `merged`."""
        collected = self._collected
        arrays: Arrays = {
            "touched": self.touched(),
            "default": self.default.copy(),
            "default_linear": self.default_linear.copy(),
            "batch": self._batch[:collected].copy(),
            "sums": self._sums[:collected].copy(),
            "linear_sums": self._linear_sums[:collected].copy(),
            "aged": np.array([self._aged]),
        }
        if self._first_seen is not None:
            arrays |= {f"first_seen.{key}": value for key, value in self._first_seen.state().items()}
        if slots is not None:
            arrays |= {"slots": slots, "used": np.array([len(self)])}
        return arrays | self._rows_state(slice(len(self)) if slots is None else slots)

    def _rows_state(self, slots: I64 | slice) -> Arrays:
        arrays: Arrays = {key: np.array(getattr(self, key)[slots]) for key in _BY_SLOT}
        for name, block in (("rows", self._rows), ("weights", self._weights)):
            arrays |= {f"{name}.{key}": value for key, value in block.arrays(slots).items()}
        return arrays

    def load_state(self, arrays: Mapping[str, Array]) -> None:
        """Take the state of tables made with the same schema, width and settings.

        Raises:
            InvalidInput: an array has another shape, or points at a slot or table that is not there.
        """
        self._check_state(arrays)
        used = len(arrays["ids"])
        self._clear(max(1024, used))
        self.ids[:used], self.tags[:used] = arrays["ids"], arrays["tags"]
        self._index.insert(self.ids[:used] ^ self._salts[self.tags[:used]])
        self.counts[:used], self.seen[:used] = arrays["counts"], arrays["seen"]
        self._rows.load({k: arrays[f"rows.{k}"] for k in RowBlock.KEYS}, self._capacity)
        if self.linear:
            self._weights.load({k: arrays[f"weights.{k}"] for k in RowBlock.KEYS}, self._capacity)
        self.default[:], self.default_linear[:] = arrays["default"], arrays["default_linear"]
        self._published.mark(arrays["touched"])
        collected = len(arrays["batch"])
        self._reserve_sums(collected)
        self._batch[:collected], self._sums[:collected] = arrays["batch"], arrays["sums"]
        self._linear_sums[:collected] = arrays["linear_sums"]
        self._place[arrays["batch"]] = np.arange(collected, dtype=np.int32)
        self._collected = collected
        if "aged" in arrays:  # bundles from before rows could go have none
            self._aged = int(arrays["aged"][0])
        if self._first_seen is not None and "first_seen.counts" in arrays:
            self._first_seen.restore(arrays["first_seen.counts"], arrays["first_seen.added"])

    def _check_state(self, arrays: Mapping[str, Array]) -> None:
        """Check a state that may come from a bundle: the kernels look at no bound."""
        used, collected = len(arrays["ids"]), len(arrays["batch"])
        adam = used if self.settings.optimiser == "adam" else 0
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(_BY_SLOT, (used,))
        for name, rows, moments, width in (
            ("rows", used, adam, self.width),
            *([("weights", used, adam, 1)] if self.linear else []),
        ):
            shapes |= {f"{name}.values": (rows, width), f"{name}.squares": (rows,)}
            shapes |= {f"{name}.momentum": (moments, width), f"{name}.steps": (moments,)}
        shapes |= {"default": self.default.shape, "default_linear": self.default_linear.shape}
        shapes |= {"batch": (collected,), "sums": (collected, self.width), "linear_sums": (collected,)}
        for key, shape in shapes.items():
            if arrays[key].shape != shape:
                raise InvalidInput(
                    f"state of tables: {key!r} has shape {list(arrays[key].shape)} instead of {list(shape)}", key
                )
        for key, count in (("tags", len(self.names)), ("touched", used), ("batch", used)):
            values = arrays[key]
            if (
                values.ndim != 1
                or values.dtype.kind != "i"
                or (len(values) and not 0 <= values.min() <= values.max() < count)
            ):
                raise InvalidInput(f"state of tables: {key!r} holds other numbers than 0 to {count - 1}", key)
        if self._first_seen is not None and "first_seen.counts" in arrays:
            counts = arrays["first_seen.counts"]
            if (counts.dtype, counts.shape) != (self._first_seen.counts.dtype, self._first_seen.counts.shape):
                raise InvalidInput("state of tables: 'first_seen.counts' is of another size", "first_seen.counts")

    # --- inside ------------------------------------------------------------------------------------------------------

    def _slots(self, ids: I64, tables: I32, create: bool, *, admit: bool = True) -> I64:
        keys = np.empty(ids.shape, np.int64)
        kernels.salted(ids, self._salts[tables], keys)
        if not create:
            return self._index.find(keys)
        before = len(self._index)
        slots: I64 = self._index.insert(self._admitted(keys) if admit else keys)
        after = len(self._index)
        if after > before:
            self._grow(after)
            kernels.label_new(ids, slots, tables, before, self.ids, self.tags)
            seed, noise = self.seed, self.settings.noise
            kernels.initialise(before, after, self.ids, self.tags, seed, noise, self.default, self._rows.values)
            if self.linear:
                self._weights.values[before:after, 0] = self.default_linear[self.tags[before:after]]
            self._saved.mark(np.arange(before, after))
        return slots

    def _admitted(self, keys: I64) -> I64:
        """The keys, with padding for those that have no row and were not seen often enough to get one."""
        if self._first_seen is None:
            return keys
        waiting = (self._index.find(keys) < 0) & (keys != PAD_ID)
        if waiting.any():
            rare = self._first_seen.add(keys[waiting]) < self.settings.admit_after
            keys[waiting] = np.where(rare, PAD_ID, keys[waiting])
        return keys

    def _grow(self, needed: int) -> None:
        if needed <= self._capacity:
            return
        self._capacity = capacity = max(needed, 2 * self._capacity)
        self._rows.grow(capacity)
        if self.linear:
            self._weights.grow(capacity)
        self.ids, self.tags = grown(self.ids, capacity), grown(self.tags, capacity)
        self.counts, self.seen = grown(self.counts, capacity), grown(self.seen, capacity)
        self._place = grown(self._place, capacity, -1)
        self._published.grow(capacity)
        self._saved.grow(capacity)

    def _reserve_sums(self, more: int) -> None:
        needed = self._collected + more
        if needed > len(self._batch):
            self._batch, self._linear_sums = grown(self._batch, needed), grown(self._linear_sums, needed)
            self._sums = grown(self._sums, needed)

    def _mark(self, slots: I64) -> None:
        self._published.mark(slots)
        self._saved.mark(slots)

    def _table_index(self, name: str) -> int:
        try:
            return self.names.index(name)
        except ValueError:
            raise InvalidInput(f"there is no table {name!r}; there are {self.names}", name) from None


def merged(state: Mapping[str, Array], newer: Mapping[str, Array]) -> Arrays:
    """A whole state, updated with a later `state(slots)`."""
    slots, used = newer["slots"], int(newer["used"][0])
    out = {key: value for key, value in newer.items() if key not in ("slots", "used")}
    for key in (*_BY_SLOT, *(f"{name}.{part}" for name in ("rows", "weights") for part in RowBlock.KEYS)):
        if len(newer[key]) or len(state[key]):
            out[key] = grown(np.array(state[key]), used)
            out[key][slots] = newer[key]
    return out

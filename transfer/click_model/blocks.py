"""Parts of embedding tables: rows with their optimiser state, the set of changed rows, the slots of a batch.

Arrays by slot that grow; no ids. Next stop: `transfer.click_model.tables`, which maps ids to slots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.arrays import F32, I32, I64, Array, Arrays, Mask
from pipeline.errors import InvalidInput
from pipeline.hashing import PAD_ID
from transfer.click_model import kernels

__all__ = ["Changed", "Lookup", "RowBlock", "TableSettings", "compacted", "grown", "without_padding"]


@dataclass(frozen=True, slots=True)
class TableSettings:
    """Settings of a model's tables: creation of rows, learning, eviction.

    Gradients are sums over the rows of a batch (not means), so that a step does not depend on the size of the batch.
    """

    optimiser: Literal["adagrad", "adam"] = "adagrad"
    rate: float = 0.05
    linear_rate: float = 0.03
    initial_square: float = 0.1
    """Where Adagrad's accumulators start: larger means smaller first steps for ids that are seen once or twice."""
    noise: float = 0.01
    """Deviation of a new row around its table's default row."""
    admit_after: int = 1
    """Times an id is seen before it gets a row; until then it takes its table's default row. 1: at once."""
    evict_after: int | None = None
    """Rows trained since an id was last seen after which its row is evicted; None: never."""

    def __post_init__(self) -> None:
        if not 1 <= self.admit_after <= 255:
            raise InvalidInput(f"admit_after is {self.admit_after}; it must lie between 1 and 255", "admit_after")
        if self.evict_after is not None and self.evict_after < 1:
            raise InvalidInput(f"evict_after is {self.evict_after}; give rows trained, or none", "evict_after")


class RowBlock:
    """Values of one width with their optimiser state, by slot."""

    KEYS = ("values", "squares", "momentum", "steps")

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

    def restart(self) -> None:
        """Reset the optimiser state to that of new rows."""
        self.squares[:], self.momentum[:], self.steps[:] = self._start, 0.0, 0

    def grow(self, capacity: int) -> None:
        self.values = grown(self.values, capacity)
        self.squares = grown(self.squares, capacity, self._start)
        if self._settings.optimiser == "adam":
            self.momentum, self.steps = grown(self.momentum, capacity), grown(self.steps, capacity)

    def apply(self, batch: I64, sums: F32, scale: float) -> None:
        """One step on the rows at `batch` with gradients `scale * sums`, float32 `[len(batch), width]`."""
        if self._settings.optimiser == "adagrad":
            kernels.adagrad(batch, sums, scale, self.rate, self.values, self.squares)
        else:
            kernels.adam(batch, sums, scale, self.rate, self.values, self.squares, self.momentum, self.steps)

    def arrays(self, slots: I64 | slice) -> Arrays:
        """Copies of the values and optimiser state at some slots."""
        return {key: np.array(getattr(self, key)[slots]) if len(getattr(self, key)) else getattr(self, key).copy()
                for key in self.KEYS}  # fmt: skip

    def load(self, arrays: Mapping[str, Array], capacity: int) -> None:
        """Set the arrays of slots 0, 1, 2, ..., with space for `capacity`."""
        for key in self.KEYS:
            setattr(self, key, arrays[key].astype(getattr(self, key).dtype))
        self.grow(capacity)


class Changed:
    """Slots marked since the last `take`; the cost follows their number, not that of all slots."""

    def __init__(self, capacity: int) -> None:
        self._marked: Mask = np.zeros(capacity, np.bool_)
        self._new: list[I64] = []

    def grow(self, capacity: int) -> None:
        self._marked = grown(self._marked, capacity)

    def mark(self, slots: I64) -> None:
        """Mark distinct slots."""
        new = slots[~self._marked[slots]]
        if len(new):
            self._marked[new] = True
            self._new.append(new.copy())

    def slots(self) -> I64:
        """The marked slots, sorted."""
        return np.sort(np.concatenate(self._new)) if self._new else np.zeros(0, np.int64)

    def take(self) -> I64:
        """Like `slots`; from then on none is marked."""
        slots = self.slots()
        self._marked[slots] = False
        self._new = []
        return slots


@dataclass(frozen=True, slots=True)
class Lookup:
    """Slots of a batch's ids in the tables: `ids` int64 `[n, k]`, one `(column of the network, offsets, slots)` per bag; -1 is
    unknown."""

    n: int
    ids: I64
    bags: tuple[tuple[int, I32, I64], ...]


def compacted(lookup: Lookup) -> tuple[Lookup, I64]:
    """The lookup with each slot replaced by its index among its distinct slots (-1 stays -1), and these slots, sorted."""
    parts = [lookup.ids, *(slots for _, _, slots in lookup.bags)]
    slots, index = np.unique(np.concatenate([part.reshape(-1) for part in parts]), return_inverse=True)
    unknown = int(len(slots) > 0 and slots[0] < 0)
    ends = np.cumsum([part.size for part in parts])[:-1]
    ids, *bags = np.split((index - unknown).astype(np.int64), ends)
    reindexed = tuple((column, offsets, bag) for (column, offsets, _), bag in zip(lookup.bags, bags, strict=True))
    return Lookup(lookup.n, ids.reshape(lookup.ids.shape), reindexed), slots[unknown:]


def without_padding(values: I64, offsets: I32) -> tuple[I64, I32]:
    """Ragged values int64 and their offsets int32 `[n + 1]` without padding."""
    kept = values != PAD_ID
    before = np.concatenate([[0], np.cumsum(kept)])
    return values[kept], before[offsets].astype(np.int32)


def grown(array: Array, capacity: int, fill: float = 0) -> Array:
    """A copy with `capacity` rows, new ones set to `fill`; the array itself where it is large enough."""
    if len(array) >= capacity:
        return array
    out = np.full((capacity, *array.shape[1:]), fill, array.dtype)
    out[: len(array)] = array
    return out

"""What the rows of embedding tables are made of: values with their optimiser state, and which of them have changed.

Arrays by slot that grow; no ids, no batches. Next stop: `transfer.click_model.tables`, which knows whose rows they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.errors import InvalidInput
from transfer.click_model import kernels

__all__ = ["Block", "Changed", "TableSettings", "grown"]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class TableSettings:
    """How rows come, learn and go.

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
    """FirstSeen after which an id gets a row; until then it takes its table's default row. 1: at once."""
    evict_after: int | None = None
    """Rows trained since an id was last seen after which its row goes; None: never."""

    def __post_init__(self) -> None:
        if not 1 <= self.admit_after <= 255:
            raise InvalidInput(f"admit_after is {self.admit_after}; it must lie between 1 and 255", "admit_after")
        if self.evict_after is not None and self.evict_after < 1:
            raise InvalidInput(f"evict_after is {self.evict_after}; give rows trained, or none", "evict_after")


class Block:
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
        """Optimiser state as it is for new rows."""
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
        """Copies of all that stands at some slots."""
        return {key: np.array(getattr(self, key)[slots]) if len(getattr(self, key)) else getattr(self, key).copy()
                for key in self.KEYS}  # fmt: skip

    def load(self, arrays: Mapping[str, npt.NDArray[Any]], capacity: int) -> None:
        """Take over `arrays` of slots 0, 1, 2, ..., with room for `capacity`."""
        for key in self.KEYS:
            setattr(self, key, arrays[key].copy())
        self.grow(capacity)


class Changed:
    """Slots marked since the last `take`; the cost follows their number, not that of all slots."""

    def __init__(self, capacity: int) -> None:
        self._marked: npt.NDArray[np.bool_] = np.zeros(capacity, np.bool_)
        self._news: list[I64] = []

    def grow(self, capacity: int) -> None:
        self._marked = grown(self._marked, capacity)

    def mark(self, slots: I64) -> None:
        """Mark distinct slots."""
        news = slots[~self._marked[slots]]
        if len(news):
            self._marked[news] = True
            self._news.append(news.copy())

    def slots(self) -> I64:
        """The marked ones, sorted."""
        return np.sort(np.concatenate(self._news)) if self._news else np.zeros(0, np.int64)

    def take(self) -> I64:
        """Like `slots`, and start over."""
        slots = self.slots()
        self._marked[slots] = False
        self._news = []
        return slots


def grown(array: npt.NDArray[Any], capacity: int, fill: float = 0) -> npt.NDArray[Any]:
    """A copy with `capacity` rows, new ones set to `fill`; the array itself where it is large enough."""
    if len(array) >= capacity:
        return array
    out = np.full((capacity, *array.shape[1:]), fill, array.dtype)
    out[: len(array)] = array
    return out

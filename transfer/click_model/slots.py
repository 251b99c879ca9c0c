"""Where the rows of a batch stand in the tables: slots instead of ids. Arrays only; made and used by `transfer.click_model.tables`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.hashing import PAD_ID

__all__ = ["Lookup", "apart", "without_padding"]

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Lookup:
    """Slots of a batch: `ids` int64 `[n, k]`, one `(column of the network, offsets, slots)` per bag; -1 is unknown."""

    n: int
    ids: I64
    bags: tuple[tuple[int, I32, I64], ...]


def apart(lookup: Lookup) -> tuple[Lookup, I64]:
    """A lookup's slots, each once, and the lookup with places among them in their stead; -1 stays -1."""
    parts = [lookup.ids, *(slots for _, _, slots in lookup.bags)]
    slots, at = np.unique(np.concatenate([part.reshape(-1) for part in parts]), return_inverse=True)
    unknown = int(len(slots) > 0 and slots[0] < 0)
    ends = np.cumsum([part.size for part in parts])[:-1]
    ids, *bags = np.split((at - unknown).astype(np.int64), ends)
    apart = tuple((column, offsets, bag) for (column, offsets, _), bag in zip(lookup.bags, bags, strict=True))
    return Lookup(lookup.n, ids.reshape(lookup.ids.shape), apart), slots[unknown:]


def without_padding(values: I64, offsets: I32) -> tuple[I64, I32]:
    """Ragged values int64 and their offsets int32 `[n + 1]` without padding."""
    kept = values != PAD_ID
    before = np.concatenate([[0], np.cumsum(kept)])
    return values[kept], before[offsets].astype(np.int32)

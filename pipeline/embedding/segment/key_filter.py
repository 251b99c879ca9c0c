"""A Bloom filter of keys: whether a key may be in a set, at one memory access (four bits of one 64-bit word; Putze,
Sanders, Singler 2007, "Cache-, hash- and space-efficient Bloom filters").

With 12 to 24 bits a key 0.1 to 2 % of absent keys pass. The word is told by the high bits of the hash, so that filters
of different sizes can be laid over each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.compiled import njit

__all__ = ["add_to_filter", "bits_of", "empty_filter", "union", "word_of"]

U64 = npt.NDArray[np.uint64]

KEY_BITS = 12
_HALF_BITS = np.uint64(32)


def empty_filter(keys: int) -> U64:
    """A filter for this many keys, uint64 `[2^k]`; `[0]` for none, which then is no filter."""
    return np.zeros(1 << (KEY_BITS * keys // 64).bit_length() if keys else 0, np.uint64)


def union(filters: Sequence[U64]) -> U64:
    """The filter of all keys of some filters, uint64 of the largest size; `[0]` of none."""
    size = max((len(one) for one in filters), default=0)
    out = np.zeros(size, np.uint64)
    for one in filters:
        if len(one):
            out |= np.repeat(one, size // len(one))
    return out


@njit(inline="always", cache=True)
def word_of(mixed: Any, words: Any) -> Any:
    """Which word tells of a hash (uint64)."""
    return ((mixed >> _HALF_BITS) * words) >> _HALF_BITS


@njit(inline="always", cache=True)
def bits_of(mixed: Any) -> Any:
    """Which bits of the word are set for it."""
    one, mask = np.uint64(1), np.uint64(63)
    return (
        (one << (mixed & mask))
        | (one << ((mixed >> np.uint64(6)) & mask))
        | (one << ((mixed >> np.uint64(12)) & mask))
        | (one << ((mixed >> np.uint64(18)) & mask))
    )


@njit(nogil=True, cache=True)
def add_to_filter(words: U64, mixed: U64) -> None:
    """Add hashes uint64 `[n]`."""
    size = np.uint64(len(words))
    for i in range(len(mixed)):
        words[word_of(mixed[i], size)] |= bits_of(mixed[i])

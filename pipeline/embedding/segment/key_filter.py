"""Bloom filter of keys: whether a set may contain a key, at one memory access (four bits of one 64-bit word; Putze,
Sanders, Singler 2007, "Cache-, hash- and space-efficient Bloom filters").

With 12 to 24 bits a key 0.1 to 2 % of absent keys pass. The high bits of the hash choose the word, so that filters of
different sizes can be combined.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.arrays import U64
from pipeline.compiled import njit

__all__ = ["add_to_filter", "bits_of", "empty_filter", "union", "word_of"]


KEY_BITS = 12
_HALF_BITS = np.uint64(32)


def empty_filter(keys: int) -> U64:
    """An empty filter for a number of keys, uint64 `[2^k]`; `[0]`, which is no filter, for none."""
    return np.zeros(1 << (KEY_BITS * keys // 64).bit_length() if keys else 0, np.uint64)


def union(filters: Sequence[U64]) -> U64:
    """The filter of all keys of some filters, uint64 of the largest size; `[0]` of none."""
    size = max(map(len, filters), default=0)
    out = np.zeros(size, np.uint64)
    for words in filters:
        if len(words):
            out |= np.repeat(words, size // len(words))
    return out


@njit(inline="always", cache=True)
def word_of(mixed: Any, words: Any) -> Any:
    """The word of a hash (uint64)."""
    return ((mixed >> _HALF_BITS) * words) >> _HALF_BITS


@njit(inline="always", cache=True)
def bits_of(mixed: Any) -> Any:
    """The bits of the word that a hash sets."""
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

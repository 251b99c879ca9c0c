"""TinyLFU's frequency sketch, which decides what may enter a full cache.

A count-min sketch of 4-bit counters (Einziger, Friedman, Manes 2017, "TinyLFU: A Highly Efficient Cache Admission
Policy"): an id has four counters, all in one cache line, and its estimate is the least of them. Counters are halved
continuously, one line after every `PERIOD_COUNTS` counts, so that each is halved once per sample; the paper halves all at
once, which would delay a request. Only every `SAMPLE_LOOKUPS`-th lookup counts: a count costs a cache miss, and the hit
rate falls by about 0.01 (Zipf 1.05, cache of a tenth: 0.849 with every lookup counted, 0.844 with every 4th, 0.838 with
every 8th, 0.830 with every 32nd). Threads count without locks; a count lost in a race is noise.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.compiled import njit

__all__ = ["LINE_WORDS", "PERIOD_COUNTS", "ROW_WORDS", "SAMPLE_LOOKUPS", "count", "estimate", "halve", "line_of"]

SAMPLE_LOOKUPS = 8
"""Lookups per counted one."""
LINE_WORDS = 8
"""64-bit words of a cache line, of 16 counters each."""
ROW_WORDS = 1
"""Words per row of the cache's capacity."""
PERIOD_COUNTS = 10 * LINE_WORDS
"""Counts after which one line is halved: a sample of ten times the capacity, as in the paper."""

_HALVING_MASK = np.uint64(0x7777777777777777)
_ONE_U64 = np.uint64(1)
_COUNTER_MASK = np.uint64(15)


@njit(inline="always", cache=True)
def line_of(mixed: Any, lines: Any) -> Any:
    """First word of an id's line. `mixed`: its hash, whose low half is used here; `lines`: number of lines."""
    return (((mixed & np.uint64(0xFFFFFFFF)) * np.uint64(lines)) >> np.uint64(32)) * np.uint64(LINE_WORDS)


@njit(inline="always", cache=True)
def _places(mixed: Any) -> Any:
    # A second mix of the hash: the bits that choose set and line are not used again.
    return (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15)


@njit(inline="always", cache=True)
def count(sketch: Any, mixed: Any, lines: Any) -> None:
    """One more lookup of the id with this hash."""
    first = line_of(mixed, lines)
    places = _places(mixed)
    for i in range(4):
        word = first + np.uint64(2 * i) + (places & _ONE_U64)
        shift = ((places >> _ONE_U64) & _COUNTER_MASK) << np.uint64(2)
        if (sketch[word] >> shift) & _COUNTER_MASK != _COUNTER_MASK:
            sketch[word] += _ONE_U64 << shift
        places >>= np.uint64(16)


@njit(inline="always", cache=True)
def estimate(sketch: Any, mixed: Any, lines: Any) -> Any:
    """Counted lookups of the id with this hash, 0 to 15; too high where ids collide, and halved over time."""
    first = line_of(mixed, lines)
    places = _places(mixed)
    least = _COUNTER_MASK
    for i in range(4):
        word = first + np.uint64(2 * i) + (places & _ONE_U64)
        shift = ((places >> _ONE_U64) & _COUNTER_MASK) << np.uint64(2)
        least = min(least, (sketch[word] >> shift) & _COUNTER_MASK)
        places >>= np.uint64(16)
    return least


@njit(inline="always", cache=True)
def halve(sketch: Any, line: Any) -> None:
    """Halve the counters of one line, by number."""
    first = np.uint64(line) * np.uint64(LINE_WORDS)
    for w in range(LINE_WORDS):
        sketch[first + np.uint64(w)] = (sketch[first + np.uint64(w)] >> _ONE_U64) & _HALVING_MASK

"""Count of the rows of a generation that Redis really has.

A server evicts, expires and forgets keys without a word, so that all rows were written once says nothing of now. Each pass of
the writer looks for some rows of every table, the next ones each time; when one is missing, when the server has evicted
keys since the last count, or when someone asks, it counts all. `updates` decides what follows from it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import redis

from pipeline.arrays import I64
from pipeline.bundle.bundle import Bundle
from pipeline.embedding.redis.marks import RedisGeneration
from pipeline.embedding.redis.rows import keys_of
from pipeline.embedding.tier import salt_of
from pipeline.redis.foreign import load_typed

__all__ = ["Counted", "RowCounter"]

WINDOW_COUNT, WINDOW_ROWS = 4, 256
"""A look at a generation: so many places of it, and so many rows at each."""
CHUNK_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Counted:
    """A count of all rows.

    Args:
        run_id, evicted: of the server, just before: its run, and the keys that it had evicted in it.
        time_ms: when, by the server's clock.
        missing: rows that were not there.
    """

    run_id: str
    evicted: int
    time_ms: int
    missing: int

    def pack(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def unpack(cls, raw: Any) -> Counted | None:
        """None when the bytes are not a count."""
        try:
            return load_typed(cls, raw) if raw else None
        except (ValueError, RecursionError):
            return None


class _Part(NamedTuple):
    table: str
    ids: I64


class RowCounter:
    """Looks for the rows of generations in one Redis; for one thread at a time."""

    def __init__(self, client: redis.Redis, stopped: Callable[[], None]) -> None:
        self._redis = client
        self._check_stopped = stopped
        self._parts: dict[str, tuple[list[str], list[_Part]]] = {}
        self._places: dict[str, int] = {}

    def looks_whole(self, generation: RedisGeneration, chain: Sequence[Bundle]) -> bool:
        """Whether some of the rows are all there, others at each call."""
        parts = self._of(generation, chain)
        total = sum(len(part.ids) for part in parts)
        stride = -(-total // WINDOW_COUNT)
        place = self._places.get(generation.name, 0)
        self._places[generation.name] = place + WINDOW_ROWS if place + WINDOW_ROWS < stride else 0
        for window in range(WINDOW_COUNT):
            start = place + window * stride
            for part in parts:
                ids = part.ids[max(start, 0) : max(start + WINDOW_ROWS, 0)]
                start -= len(part.ids)
                if len(ids) and self._present(generation, part.table, ids) < len(ids):
                    return False
        return True

    def missing(self, generation: RedisGeneration, chain: Sequence[Bundle]) -> dict[str, I64]:
        """All ids that are missing, sorted, by table; no entry for a table of which none is."""
        found: dict[str, list[I64]] = {}
        for part in self._of(generation, chain):
            for start in range(0, len(part.ids), CHUNK_ROWS):
                self._check_stopped()
                ids = part.ids[start : start + CHUNK_ROWS]
                if self._present(generation, part.table, ids) < len(ids):
                    found.setdefault(part.table, []).append(ids[~self._mask(generation, part.table, ids)])
        return {table: np.unique(np.concatenate(pieces)) for table, pieces in found.items()}

    def _present(self, generation: RedisGeneration, table: str, ids: I64) -> int:
        return int(self._redis.exists(*keys_of(generation.prefix, ids ^ np.int64(salt_of(table)))))

    def _mask(self, generation: RedisGeneration, table: str, ids: I64) -> Any:
        pipe = self._redis.pipeline(transaction=False)
        for key in keys_of(generation.prefix, ids ^ np.int64(salt_of(table))):
            pipe.exists(key)
        return np.array(pipe.execute(), bool)

    def _of(self, generation: RedisGeneration, chain: Sequence[Bundle]) -> list[_Part]:
        """The ids of every table of every link, as views of the mapped files."""
        versions = [link.manifest.version for link in chain]
        known = self._parts.get(generation.name)
        if known is None or known[0] != versions:
            parts = [
                _Part(name, link.stored_table(name).ids) for link in chain for name in sorted(link.manifest.tables)
            ]
            known = self._parts[generation.name] = versions, parts
        return known[1]

"""Redis tier: rows that machines share, one MGET per lookup, and no wait beyond the lookup's deadline.

The ids that upper tiers left open are made distinct over all width groups and requested in one round trip, together with
the mark that holds the version of the rows. A Redis that is late, down or sends garbage costs a few lookups their budget;
then the breaker opens and lookups skip it until a probe succeeds. So a failure of Redis never fails a request: rows come
from lower tiers or defaults, and the store marks the answer as degraded.

Next stops: `wire` (connections), `rows` (values and kernels), `updates` (the writer).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.bundle.row_format import RowFormat
from pipeline.bundle.versions import Repository
from pipeline.clock import Clock
from pipeline.embedding.redis.breaker import CircuitBreaker
from pipeline.embedding.redis.marks import Mark, RedisGeneration
from pipeline.embedding.redis.rows import RedisRowLayout, collect, scatter, write_mget
from pipeline.embedding.redis.wire import Late, Link, Links
from pipeline.embedding.tier import STALE_STATUS, Fault, Generation, Wanted
from pipeline.redis.address import RedisAddress, Unusable

__all__ = ["RedisSource", "RedisTier"]

CONNECT_S = 1.0
"""Seconds for each step of connecting; no request waits for it."""


@dataclass(slots=True)
class _Counts:
    """Counts of one thread: lookups by outcome, values by state."""

    answered: int = 0
    late: int = 0
    error: int = 0
    open: int = 0
    incomplete: int = 0
    stale: int = 0
    ahead: int = 0
    found: int = 0
    missing: int = 0
    damaged: int = 0


class RedisSource:
    """Connections of this process to one Redis.

    Args:
        address: of the Redis.
        repository: of the bundles whose rows it holds; it has the order and age of versions.
        format: of the rows, as the updater writes them.
        breaker: of this source alone.
        connections: most lookups at a time.
        max_staleness: seconds by which rows may be older than the version that looks up; None: any.
    """

    name = "redis"

    def __init__(
        self,
        address: RedisAddress,
        repository: Repository,
        clock: Clock,
        breaker: CircuitBreaker,
        *,
        format: RowFormat = "float32",
        connections: int = 4,
        max_staleness: float | None = None,
    ) -> None:
        self.clock = clock
        self.max_staleness = max_staleness
        self.breaker = breaker
        self.links = Links(address, self.breaker, clock, most=connections, timeout=CONNECT_S)
        self._repository = repository
        self._format: RowFormat = format

    def open(self, generation: Generation) -> RedisTier:
        """The tier of one version.

        Raises:
            NotFound, BundleError: the version or its base is not in the repository.
        """
        base = self._repository.open(generation.bundle, generation.base)
        tip = self._repository.open(generation.bundle, generation.version).manifest
        ages = {
            int(version): self._repository.open(generation.bundle, version).manifest.created_ms
            for version in (generation.base, *tip.deltas)
        }
        return RedisTier(
            self,
            RedisGeneration.of(base, self._format),
            [RedisRowLayout(group.width, generation.linear, self._format) for group in generation.groups],
            ages,
        )

    def close(self) -> None:
        """Stop its thread and close its connections."""
        self.links.close()


class RedisTier:
    """Redis tier of one version; see `Tier`.

    Args:
        layouts: by group.
        ages: versions from the base to this one, in order, with their time of creation in Unix milliseconds.
    """

    name = "redis"

    def __init__(
        self,
        source: RedisSource,
        generation: RedisGeneration,
        layouts: Sequence[RedisRowLayout],
        ages: Mapping[int, int],
    ) -> None:
        self._source = source
        self._layouts = tuple(layouts)
        self._seed = np.uint64(generation.digest)
        self._prefix = np.frombuffer(generation.prefix, np.uint8)
        mark = generation.key("mark")
        self._head = b"$4\r\nMGET\r\n$%d\r\n%s\r\n" % (len(mark), mark)
        self._ages = ages
        self._order = {version: place for place, version in enumerate(ages)}
        self._version = next(reversed(ages))
        self._value_bytes = max((layout.bytes for layout in layouts), default=0)
        self._seen: Mark | None = None
        self._thread = threading.local()
        self._counts: list[_Counts] = []

    def find(self, wanted: Sequence[Wanted], mark: int, deadline: float) -> Fault | None:
        """See `Tier.find`; the fault is `incomplete` while not all rows of the generation are written, and where ids were
        not found while Redis is known to lack rows."""
        counts = self._mine()
        source = self._source
        if source.clock.monotonic() >= deadline:
            counts.late += 1
            return "late"
        # No idle link is no failure: all are in use, or one is being opened.
        link = source.links.take() if source.breaker.state != "open" else None
        if link is None or not source.breaker.allow():
            if link is not None:
                source.links.give(link)
            counts.open += 1
            return "open"
        try:
            fault = self._ask(link, wanted, mark, deadline, counts)
        except Late:
            source.links.drop(link)
            source.breaker.failed()
            counts.late += 1
            return "late"
        except Unusable:
            source.links.drop(link)
            source.breaker.failed()
            counts.error += 1
            return "error"
        except BaseException:
            source.links.drop(link)
            source.breaker.failed()
            raise
        source.links.give(link)
        if fault == "nothing":
            source.breaker.unused()
            return None
        if fault == "error":
            source.breaker.failed()
            counts.error += 1
        else:
            source.breaker.succeeded()
            counts.answered += 1
        return fault

    def _ask(
        self, link: Link, wanted: Sequence[Wanted], mark: int, deadline: float, counts: _Counts
    ) -> Fault | Literal["nothing"] | None:
        total = sum(len(part.keys) for part in wanted)
        link.reserve(total, self._value_bytes)
        used = start = 0
        for part in wanted:
            places = link.places[start : start + len(part.keys)]
            used = int(collect(part.keys, part.found, link.cells, link.unique, used, places))
            start += len(part.keys)
        if used == 0:
            return "nothing"
        head = np.frombuffer(b"*%d\r\n" % (used + 2) + self._head, np.uint8)
        unique = link.unique[:used]
        link.ask(int(write_mget(unique, head, self._prefix, link.command)), used + 1, deadline)
        fault, stale = self._judge(link, counts)
        if fault is not None:
            return fault
        if stale:
            mark |= STALE_STATUS
        reply = (link.reply, link.starts[1 : used + 1], link.sizes[1 : used + 1])
        tally = np.zeros(3, np.int64)
        start = 0
        for part in wanted:
            layout = self._layouts[part.group].numbers
            places = link.places[start : start + len(part.keys)]
            start += len(part.keys)
            scatter(reply, unique, places, self._seed, layout, part.arrays, mark, tally)
        found, missing, damaged = tally.tolist()
        counts.found += found
        counts.missing += missing
        counts.damaged += damaged
        if missing and self._seen is not None and not self._seen.whole:
            counts.incomplete += 1
            return "incomplete"
        return "error" if damaged else None

    def _judge(self, link: Link, counts: _Counts) -> tuple[Fault | None, bool]:
        """Whether the rows may be used, and whether they are older than this version."""
        size = int(link.sizes[0])
        if size < 0:
            counts.incomplete += 1
            return "incomplete", False
        start = int(link.starts[0])
        found = Mark.unpack(link.reply[start : start + size].tobytes())
        if found is None:
            return "error", False
        self._seen = found
        if found.version == self._version:
            return None, False
        if found.version not in self._ages and found.version > self._version:
            counts.ahead += 1
            return None, False
        counts.stale += 1
        limit = self._source.max_staleness
        if limit is not None and self._seconds_behind(found) > limit:
            counts.incomplete += 1
            return "incomplete", True
        return None, True

    def _seconds_behind(self, found: Mark) -> float:
        return (self._ages[self._version] - found.created_ms) / 1000

    def offer(self, wanted: Sequence[Wanted], mark: int) -> None:
        """Nothing: only the updater writes rows to Redis."""

    def describe(self) -> Mapping[str, float | str]:
        """Counts of this version's lookups and values, state of the breaker, and age of the rows.

        `versions_behind` and `seconds_behind` are negative where the rows are newer than this version; they and `version`
        appear after the first mark was read.
        """
        figures: dict[str, float | str] = {
            field: sum(getattr(counts, field) for counts in list(self._counts)) for field in _Counts.__slots__
        }
        figures["breaker"] = self._source.breaker.state
        figures["breaker_opened"] = self._source.breaker.opened
        seen = self._seen
        if seen is not None:
            place = self._order[self._version]
            figures["version"] = str(seen.version)
            figures["versions_behind"] = place - self._order.get(seen.version, place + 1)
            figures["seconds_behind"] = self._seconds_behind(seen)
        return figures

    def close(self) -> None:
        """Nothing: the connections belong to the source."""

    def _mine(self) -> _Counts:
        counts: _Counts | None = getattr(self._thread, "counts", None)
        if counts is None:
            counts = self._thread.counts = _Counts()
            self._counts.append(counts)
        return counts

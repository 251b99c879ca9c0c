"""Writer of rows to Redis: brings a generation to a version, base first, then deltas; resumable, one writer at a time.

Rows are written in chunks. Each chunk is one transaction of the rows, the progress and the renewed lease, and is carried
out only while this writer holds the lease (WATCH): a writer that was stopped and resumes late changes nothing. Every step
is idempotent. Going back to an earlier version, or to another list of deltas, gives the rows of the abandoned deltas the
values that they have in the common part. Rows that the server has lost since (`completeness`) are written again when it
has room for them; until then the mark says that the generation is not whole. `sweep` removes generations that are not served. The caller of `bring` chooses
the version: this file knows nothing of endpoints.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import redis

from pipeline.arrays import I64
from pipeline.bundle.bundle import Bundle, Table
from pipeline.bundle.row_format import RowFormat
from pipeline.bundle.versions import Repository
from pipeline.embedding.redis.completeness import Counted, RowCounter
from pipeline.embedding.redis.marks import GENERATIONS, InUse, Mark, Progress, RedisGeneration, key_of, prefix_of
from pipeline.embedding.redis.rows import RedisRowLayout, encode, keys_of
from pipeline.embedding.tier import salt_of
from pipeline.errors import Conflict, NotFound, NotReady, Overloaded
from pipeline.redis.address import RedisAddress
from pipeline.redis.server import RedisServer

__all__ = ["Brought", "RedisUpdater"]

CHUNK_ROWS = 512
LEASE_MS = 10_000
SWEPT_KEYS = 1000
COUNT_EVERY_MS = 30_000
"""Time for which a count holds although the server has evicted keys since, which may be anyone's."""
OVERHEAD_BYTES = 100
"""Memory that Redis needs for a row beyond its value."""


@dataclass(frozen=True, slots=True)
class Brought:
    """Result of `bring`: rows written, and the versions that are applied now, base first."""

    generation: RedisGeneration
    rows: int
    applied: tuple[str, ...]


class RedisUpdater:
    """Writer of generations, for one thread at a time; any number of processes and machines.

    Args:
        address: of the Redis.
        repository: of the bundles; also holds the deltas that are applied in Redis and abandoned now.
        format: of the rows.
        token: unique to this writer.
        timeout: seconds after which a silent Redis counts as gone.
        stopped: called between two chunks; True ends the work there, to be resumed later.
    """

    def __init__(
        self,
        address: RedisAddress,
        repository: Repository,
        *,
        format: RowFormat,
        token: str,
        timeout: float = 5.0,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._address = address
        self._repository = repository
        self._format: RowFormat = format
        self._token = token.encode()
        self._stopped = stopped
        self._redis = address.client(timeout)
        self._counter = RowCounter(self._redis, self._check_stopped)

    def close(self) -> None:
        self._redis.close()

    def bring(
        self, chain: Sequence[Bundle], wrote: Callable[[int], None] = lambda rows: None, *, count: bool = False
    ) -> Brought:
        """Make the rows of `chain[0]`'s generation those of the version `chain[-1]`.

        Args:
            chain: base first, then the deltas in order (`Repository.chain`).
            wrote: called after every chunk with its number of rows.
            count: whether to count all rows in any case.

        Raises:
            Conflict: another writer is at work, or took over. Overloaded: Redis is full, or has no room for the rows that it
                lost. NotReady: it cannot be reached.
            BundleError: a table is damaged.
        """
        generation = RedisGeneration.of(chain[0], self._format)
        with self._trouble(), self._lease(generation):
            writer = _Writer(self._redis, generation, self._token, wrote, self._stopped)
            self._use(generation)
            self._bring(writer, chain)
            self._complete(writer, generation, chain, count)
            return Brought(generation, writer.count, tuple(writer.progress.applied))

    def _bring(self, writer: _Writer, chain: Sequence[Bundle]) -> None:
        versions = [link.manifest.version for link in chain]
        if writer.progress == Progress():
            writer.restart()  # the progress may have been evicted, but not the mark
        progress = writer.progress
        common = _common(progress.applied, versions)
        following = versions[common] if common < len(versions) else ""
        halfway = [progress.loading] if progress.loading not in ("", following) else []
        abandoned = [*progress.abandoned, *progress.applied[common:], *halfway]
        if progress.applied and abandoned:
            try:
                gone = [self._repository.open(chain[0].manifest.name, version) for version in abandoned]
            except NotFound:
                writer.restart()  # their rows are no longer known
                common = 0
            else:
                writer.revert(chain[:common], gone)
        for link in chain[common:]:
            writer.apply(link)

    def _complete(self, writer: _Writer, generation: RedisGeneration, chain: Sequence[Bundle], count: bool) -> None:
        """Write the rows that Redis has lost, if there is room, and the mark that says whether it has all."""
        server, now_ms = self._server(), self._now_ms()
        last = Counted.unpack(self._redis.get(generation.key("counted")))
        if not count and last is not None:
            undisturbed = (last.run_id, last.evicted) == (server.run_id, server.evicted)
            if writer.whole and (undisturbed or 0 <= now_ms - last.time_ms < COUNT_EVERY_MS):
                if self._counter.looks_whole(generation, chain):
                    return
                writer.mark(chain[-1], whole=False)
            elif last.missing:
                self._require_room(server, generation, chain, last.missing)
        missing = self._counter.missing(generation, chain)
        lacking = sum(map(len, missing.values()))
        writer.count_done(Counted(server.run_id, server.evicted, now_ms, lacking))
        if lacking:
            writer.mark(chain[-1], whole=False)
            self._require_room(self._server(), generation, chain, lacking)
            for name, ids in missing.items():
                writer.restore(chain, name, ids)
            after = self._server()
            if (after.run_id, after.evicted) != (server.run_id, server.evicted):
                return  # it evicts what is written: the next pass counts again
            writer.count_done(Counted(after.run_id, after.evicted, now_ms, 0))
        if lacking or not writer.whole:
            writer.mark(chain[-1])

    def _require_room(
        self, server: RedisServer, generation: RedisGeneration, chain: Sequence[Bundle], missing: int
    ) -> None:
        """Writing rows into a full server that evicts would cost it others."""
        if not server.max_bytes or not server.policy.startswith("allkeys"):
            return
        tables = chain[0].manifest.tables.values()
        layouts = [RedisRowLayout(t.width, t.linear_default is not None, self._format) for t in tables]
        needed = missing * (OVERHEAD_BYTES + max((layout.bytes for layout in layouts), default=0))
        if server.used_bytes + needed > server.max_bytes:
            raise Overloaded(
                f"redis at {self._address.url} has evicted rows of {generation.bundle} {generation.base}, and its maxmemory of "
                f"{server.max_bytes / 2**20:,.1f} MiB has no room for them ({server.policy}): raise it, or put segment below "
                "redis in embedding.tiers; until then answers that lack a row are degraded"
            )

    def _server(self) -> RedisServer:
        info: Any = self._redis.info()
        return RedisServer.of(info)

    def _check_stopped(self) -> None:
        if self._stopped():
            raise Conflict("stopped; it is resumed where it was left")

    def sweep(self, used: Collection[RedisGeneration], unused_for: float) -> int:
        """Remove generations not used for `unused_for` seconds. Returns the number of keys removed.

        Args:
            used: generations that this installation serves, marked as used now. Installations that share the Redis each
                mark their own; all use the clock of Redis.

        Raises: NotReady.
        """
        removed = 0
        with self._trouble():
            for generation in used:
                self._use(generation)
            now = self._now_ms()
            for name, what in self._generations():
                if now - what.used_ms <= 1000 * unused_for or self._redis.exists(key_of(name, "lease")):
                    continue
                # First what marks it as complete, for readers and writers; then its rows.
                self._redis.unlink(*(key_of(name, part) for part in ("mark", "progress", "counted")))
                keys: list[bytes] = []
                for key in self._redis.scan_iter(match=_pattern(prefix_of(name)), count=SWEPT_KEYS):
                    keys.append(key)
                    if len(keys) == SWEPT_KEYS:
                        removed += self._unlink(keys)
                        keys = []
                removed += self._unlink(keys)
                self._redis.hdel(GENERATIONS, name)
        return removed

    def report(self) -> dict[str, Any]:
        """Report of the content of Redis: `keys`, `used_bytes`, `max_bytes` (0: no limit), `policy`, and per generation
        `bundle`, `base`, `format`, `version` (None: not complete), `rows_written`, `missing` (rows, at the last count),
        `writing`.

        Raises: NotReady.
        """
        with self._trouble():
            memory: dict[str, Any] = self._redis.info("memory")
            generations = []
            for name, what in self._generations():
                raw_mark, raw_progress, raw_counted, lease = self._redis.mget(
                    [key_of(name, part) for part in ("mark", "progress", "counted", "lease")]
                )
                mark = Mark.unpack(_bytes(raw_mark))
                progress = Progress.unpack(_bytes(raw_progress)) or Progress()
                counted = Counted.unpack(raw_counted)
                generations.append(
                    {
                        "generation": name,
                        **asdict(what),
                        "version": None if mark is None else str(mark.version),
                        "rows_written": progress.rows,
                        "missing": None if counted is None else counted.missing,
                        "writing": lease is not None,
                    }
                )
            return {
                "keys": int(self._redis.dbsize()),
                "used_bytes": int(memory["used_memory"]),
                "max_bytes": int(memory["maxmemory"]),
                "policy": str(memory["maxmemory_policy"]),
                "generations": generations,
            }

    def _use(self, generation: RedisGeneration) -> None:
        what = {"bundle": generation.bundle, "base": generation.base, "format": generation.format}
        self._redis.hset(GENERATIONS, generation.name, json.dumps({**what, "used_ms": self._now_ms()}))

    def _now_ms(self) -> int:
        seconds, micros = self._redis.time()
        return 1000 * int(seconds) + int(micros) // 1000

    def _generations(self) -> list[tuple[str, InUse]]:
        """Generations that are described; what others wrote among them is none."""
        found: dict[Any, Any] = self._redis.hgetall(GENERATIONS)
        described = [(name, InUse.unpack(name, what)) for name, what in sorted(found.items())]
        return [(name.decode(), what) for name, what in described if what is not None]

    def _unlink(self, keys: Sequence[bytes]) -> int:
        self._check_stopped()
        return int(self._redis.unlink(*keys)) if keys else 0

    @contextmanager
    def _lease(self, generation: RedisGeneration) -> Iterator[None]:
        key = generation.key("lease")
        if not self._redis.set(key, self._token, nx=True, px=LEASE_MS):
            raise Conflict(f"another writer loads {generation.bundle} {generation.base} into redis")
        try:
            yield
        finally:
            # Not atomic: if the lease is lost in between, its new holder resumes, which costs nothing. A transaction
            # would be refused when Redis is full. If this fails the lease expires by itself.
            with suppress(redis.RedisError):
                if self._redis.get(key) == self._token:
                    self._redis.unlink(key)

    @contextmanager
    def _trouble(self) -> Iterator[None]:
        """Translate errors of Redis."""
        where = f"redis at {self._address.url}"
        try:
            yield
        except redis.WatchError:
            raise Conflict(f"{where}: another writer took over and goes on from here") from None
        except redis.OutOfMemoryError as error:
            raise Overloaded(
                f"{where} is full and evicts nothing: raise its maxmemory, or set maxmemory-policy allkeys-lfu ({error})"
            ) from None
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            raise NotReady(f"{where} cannot be reached: {error}") from None
        except redis.RedisError as error:
            raise NotReady(f"{where} refused: {error}") from None


class _Writer:
    """Writer of one generation, while the lease is held."""

    def __init__(
        self,
        client: redis.Redis,
        generation: RedisGeneration,
        token: bytes,
        wrote: Callable[[int], None],
        stopped: Callable[[], bool],
    ) -> None:
        self._redis = client
        self._generation = generation
        self._token = token
        self._wrote = wrote
        self._stopped = stopped
        self.progress = Progress.unpack(_bytes(client.get(generation.key("progress")))) or Progress()
        self.count = 0
        mark = Mark.unpack(_bytes(client.get(generation.key("mark"))))
        self.whole = mark.whole if mark is not None else not self.progress.applied
        """Whether no row of those that were written is known to be missing; without a mark, which may be evicted, too, they
        have to be counted."""

    def mark(self, link: Bundle, *, whole: bool = True) -> None:
        """Record that all rows of a version were written, and whether they are there."""
        self.whole = whole
        self._commit(mark=link)

    def count_done(self, counted: Counted) -> None:
        """Record a count of all rows."""
        self._redis.set(self._generation.key("counted"), counted.pack())

    def restart(self) -> None:
        """Reset the progress; rows stay until they are overwritten."""
        self.progress = Progress()
        self.whole = True
        self._commit(gone=(self._generation.key("mark"), self._generation.key("counted")))

    def apply(self, link: Bundle) -> None:
        """Write the rows of a bundle, from the recorded progress on."""
        progress, version = self.progress, link.manifest.version
        if progress.loading != version:
            progress.loading, progress.table, progress.row = version, 0, 0
        for index, name in enumerate(sorted(link.manifest.tables)):
            if index < progress.table:
                continue
            table = link.table(name)
            while progress.row < len(table.ids):
                part = slice(progress.row, progress.row + CHUNK_ROWS)
                pairs = self._pairs(link, name, _part(table, part))
                progress.row += len(pairs)
                progress.rows += len(pairs)
                self._commit(pairs)
            progress.table, progress.row = index + 1, 0
        progress.applied.append(version)
        progress.loading, progress.table, progress.row = "", 0, 0
        self._commit(mark=link)

    def revert(self, kept: Sequence[Bundle], gone: Sequence[Bundle]) -> None:
        """Give the rows that `gone` changed their values in `kept` (base first); ids that are not in it are removed."""
        progress = self.progress
        progress.applied = [link.manifest.version for link in kept]
        progress.abandoned = [link.manifest.version for link in gone]
        progress.loading, progress.table, progress.row = "", 0, 0
        self._commit()
        for name in sorted(kept[-1].manifest.tables):
            ids = np.unique(np.concatenate([link.table(name).ids for link in gone]))
            ids = self.restore(kept, name, ids)
            for start in range(0, len(ids), CHUNK_ROWS):
                self._commit(gone=self._keys(name, ids[start : start + CHUNK_ROWS]))
        progress.abandoned = []
        self._commit(mark=kept[-1])

    def restore(self, chain: Sequence[Bundle], name: str, ids: I64) -> I64:
        """Write rows of a table as they are in `chain` (base first); the ids that are not in it."""
        for link in reversed(chain):
            table = link.table(name)
            places = np.searchsorted(table.ids, ids)
            held = places < len(table.ids)
            held[held] = table.ids[places[held]] == ids[held]
            picked = places[held]
            for start in range(0, len(picked), CHUNK_ROWS):
                self._commit(self._pairs(link, name, _part(table, picked[start : start + CHUNK_ROWS])))
            ids = ids[~held]
        return ids

    def _commit(self, rows: Mapping[bytes, bytes] = {}, gone: Sequence[bytes] = (), mark: Bundle | None = None) -> None:
        """Commit rows, progress and lease in one transaction; nothing is written when the lease is lost.

        Args:
            gone: keys to remove. mark: the version whose rows were all written with this.
        """
        if self._stopped():
            raise Conflict("stopped; it is resumed where it was left")
        lease = self._generation.key("lease")
        with self._redis.pipeline() as pipe:
            pipe.watch(lease)  # type: ignore[no-untyped-call]
            if pipe.get(lease) != self._token:
                raise redis.WatchError
            pipe.multi()
            if rows:
                pipe.mset(rows)
            if gone:
                pipe.unlink(*gone)
            if mark is not None:
                made = Mark(int(mark.manifest.version), mark.manifest.created_ms, self.whole)
                pipe.set(self._generation.key("mark"), made.pack())
            pipe.set(self._generation.key("progress"), self.progress.pack())
            pipe.pexpire(lease, LEASE_MS)
            pipe.execute()
        self.count += len(rows)
        self._wrote(len(rows))

    def _pairs(self, link: Bundle, name: str, table: Table) -> dict[bytes, bytes]:
        info = link.manifest.tables[name]
        layout = RedisRowLayout(info.width, info.linear_default is not None, self._generation.format)
        keys = table.ids ^ np.int64(salt_of(name))
        raw = encode(layout, self._generation.digest, keys, table.rows, table.linear).tobytes()
        size = layout.bytes
        return {key: raw[i * size : (i + 1) * size] for i, key in enumerate(keys_of(self._generation.prefix, keys))}

    def _keys(self, name: str, ids: I64) -> list[bytes]:
        return keys_of(self._generation.prefix, ids ^ np.int64(salt_of(name)))


def _bytes(raw: Any) -> bytes:
    return raw if isinstance(raw, bytes) else b""


def _part(table: Table, part: Any) -> Table:
    linear = None if table.linear is None else table.linear[part]
    return Table(table.ids[part], table.rows[part], table.counts[part], linear)


def _common(left: Sequence[str], right: Sequence[str]) -> int:
    count = 0
    while count < min(len(left), len(right)) and left[count] == right[count]:
        count += 1
    return count


def _pattern(prefix: bytes) -> bytes:
    """Pattern of SCAN for keys that begin with these bytes."""
    return b"".join(b"\\" + prefix[i : i + 1] for i in range(len(prefix))) + b"*"

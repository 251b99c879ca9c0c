"""Traffic log in Redis Streams, shared by several machines, on a server of its own.

It follows the same rules as `local` (`feedback`, `join`); this file is only about storage. A change is computed from what
was read, and a script writes it only if that has not changed since (`scripts`, which lists the keys); otherwise it is read
and computed again. So any number of lanes and joins may work at once without locks, and each labelled entry is written
exactly once.

Streams keep the order: predictions as they were written, which the consumer group `join` has closed up to its position,
and labelled entries, where each reader has its own group (`XINFO GROUPS traffic:labelled` shows them).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice, takewhile
from typing import ParamSpec, TypeVar

import numpy as np

from pipeline.clock import Clock
from pipeline.errors import InvalidInput, NotReady
from pipeline.redis.address import RedisAddress
from pipeline.redis.foreign import parsing, whole_number
from pipeline.traffic.feedback import LabelState, accept, accept_parked
from pipeline.traffic.join import MatureRows, arrived, closes_at, mature_rows, set_right, stands_wrong, written_labels
from pipeline.traffic.log import (
    INVALID,
    EndpointStats,
    FeedbackEntry,
    FeedbackReply,
    Labelled,
    Requested,
    Retained,
    Scores,
    TrafficStats,
    Unscored,
)
from pipeline.traffic.prediction import PredictionIds
from pipeline.traffic.record import RecordHead, lazy_finder, made_by, read_head
from pipeline.traffic.redis.prediction import FIELDS, Stored, frames, key_of, other_scores, parked_frame, seq_of
from pipeline.traffic.redis.retention import forget, retain
from pipeline.traffic.redis.scripts import FEEDBACK, INSERT, PLACE, PREFIX, SCORES, SETTLE, TIMES
from pipeline.traffic.redis.server import TrafficRedis
from pipeline.traffic.requests import is_waiting, keys_of, name_of, waiting_name

__all__ = ["RedisTrafficLog"]

# Work of one script call, so that lanes never wait long for it.
_CHUNK_PREDICTIONS = 64
_PASSED_PREDICTIONS = 4096
"""Predictions that one call looks at, at most."""
# How often a change is computed again because others were faster.
_TRIES = 100
P = ParamSpec("P")
T = TypeVar("T")
_Taken = tuple[list[FeedbackReply], tuple[object, ...]]

log = logging.getLogger(__name__)


def _parsed(method: Callable[P, T]) -> Callable[P, T]:
    """A method of the log that raises NotReady where the Redis holds what Baton did not write."""
    return parsing("the traffic log in Redis")(method)


class RedisTrafficLog:
    """`pipeline.traffic.log.TrafficLog` in a Redis; any number of processes on any machines may have it open.

    Args:
        address: of a Redis that evicts nothing and keeps an append-only file.
        ids: verifies prediction ids; all machines need the same secret.
        attribution_window_ms, late_limit_ms: as `LocalTrafficLog`.
        timeout: seconds without an answer after which a call fails.
        reserve_bytes: memory below the server's `maxmemory` at which the log stops (`reserve`).
        begun_before: whether this installation had a log before: where the Redis has none, it was lost, and the new one counts
            on from a number that no reader has seen.

    Raises:
        InvalidInput: the Redis would lose labels, or holds something else.
        NotReady: it cannot be reached now; all methods raise it when it fails or does not answer, those
            that write LogFull while the log is at its reserve.
    """

    def __init__(
        self,
        address: RedisAddress,
        ids: PredictionIds,
        attribution_window_ms: int = 30 * 60_000,
        late_limit_ms: int = 24 * 3_600_000,
        timeout: float = 5.0,
        reserve_bytes: int | None = None,
        clock: Clock | None = None,
        begun_before: bool = False,
    ) -> None:
        self._ids = ids
        self._window = attribution_window_ms
        self._late_limit = late_limit_ms
        self._server = TrafficRedis(address, timeout, reserve_bytes, clock, begun_before)

    @property
    def window_ms(self) -> int:
        """Attribution window."""
        return self._window

    @property
    def late_limit_ms(self) -> int:
        """Age up to which a prediction can be labelled."""
        return self._late_limit

    def now_ms(self) -> int:
        """The server's time."""
        return self._server.now_ms()

    @_parsed
    def append_predictions(self, records: Sequence[bytes]) -> None:
        """Commit packed prediction records, in order; one written before is left as it is, one of the future is made now.

        Raises:
            InvalidInput: one of them is not a record; none is written.
        """
        now_ms = self.now_ms()
        read = [(read_head(blob), blob) for blob in (made_by(blob, now_ms) for blob in records)]
        for start in range(0, len(read), _CHUNK_PREDICTIONS):
            left: dict[str, tuple[RecordHead, bytes]] = {}
            for record, blob in read[start : start + _CHUNK_PREDICTIONS]:
                left.setdefault(record.prediction_id, (record, blob))
            for _ in range(_TRIES):
                stored = self._load([*left, *(waiting_name(h.request_key) for h, _ in left.values() if h.request_key)])
                arguments: list[object] = []
                for prediction_id, (record, blob) in left.items():
                    before = stored[prediction_id]
                    request, early = "", before
                    waiting = list(before.waiting())
                    if record.request_key:
                        early = stored[waiting_name(record.request_key)]
                        request = early.prediction_id[1:]
                        waiting = sorted([*waiting, *early.waiting()], key=lambda said: said[0])
                    n, ms = record.n, record.time_ms
                    state, changes, refused, find = LabelState.fold(n), [], 0, _finder(blob)
                    for received_ms, entry in waiting:
                        # Feedback that came before its prediction counts as of when it came.
                        change, reply = accept(state, entry, ms, received_ms, find)
                        refused += (reply.exposed + reply.outcomes).count(INVALID)
                        changes += [] if change is None else [change.pack()]
                    closes = closes_at(state, ms, self._window)
                    arguments += (prediction_id, before.version, n, ms, closes, record.routing_hash, record.endpoint)
                    arguments += (blob, frames(changes), len(changes), refused, request, early.version)
                left = {i.decode(): left[i.decode()] for i in self._server.run(INSERT, *arguments)}
                if not left:
                    break
            else:
                raise self._contended()

    @_parsed
    def append_scores(self, scores: Sequence[tuple[str, Scores]]) -> None:
        """Commit another arm's scores; a repetition for the same version changes nothing."""
        for start in range(0, len(scores), _CHUNK_PREDICTIONS):
            arguments: list[object] = []
            for prediction_id, s in scores[start : start + _CHUNK_PREDICTIONS]:
                field = f"s:{s.arm}\0{s.bundle}\0{s.version}"
                arguments += (prediction_id, field, np.ascontiguousarray(s.scores, np.float32).tobytes())
            self._server.run(SCORES, *arguments)

    @_parsed
    def append_feedback(self, entries: Sequence[FeedbackEntry], now_ms: int) -> list[FeedbackReply]:
        """Commit exposures and labels; on return what is ACCEPTED is in Redis, and on disk under `appendfsync always`."""
        replies: dict[int, FeedbackReply] = {}
        places: dict[str, list[int]] = {}
        left = list(range(len(entries)))
        for _ in range(_TRIES):
            keys = keys_of(entries[place] for place in left)
            requested = self.requested(keys) if keys else {}
            places.clear()
            for place in left:
                name = name_of(entries[place], requested, self._ids, now_ms, self._late_limit)
                if isinstance(name, FeedbackReply):
                    replies[place] = name
                else:
                    places.setdefault(name, []).append(place)
            # A name that waits for its prediction may have got it meanwhile: then the prediction is asked for again.
            left = self._feed(entries, places, replies, now_ms)
            if not left:
                return [replies[place] for place in range(len(entries))]
        raise self._contended()

    def _feed(
        self,
        entries: Sequence[FeedbackEntry],
        places: Mapping[str, list[int]],
        replies: dict[int, FeedbackReply],
        now_ms: int,
    ) -> list[int]:
        """Commit entries, by the names of what they are about; the places of those whose name has become a prediction."""
        found: list[int] = []
        waiting = iter(places.items())
        while chunk := dict(islice(waiting, _CHUNK_PREDICTIONS)):
            for _ in range(_TRIES):
                stored = self._load(chunk)
                arguments: list[object] = []
                for prediction_id, indices in chunk.items():
                    before = stored[prediction_id]
                    take = self._park if before.seq is None else self._take
                    answers, change = take(before, [entries[place] for place in indices], now_ms)
                    replies.update(zip(indices, answers, strict=True))
                    if change:
                        arguments += (prediction_id, before.version, *change)
                changed = self._server.run(FEEDBACK, *arguments) if arguments else ()
                again = [i.decode() for i in changed]
                found += [place for name in again if is_waiting(name) for place in places[name]]
                chunk = {name: places[name] for name in again if not is_waiting(name)}
                if not chunk:
                    break
            else:
                raise self._contended()
        return found

    @_parsed
    def join(self, now_ms: int, limit: int = 1000) -> int:
        """Close predictions that are due and write revisions; the number of labelled entries written.

        It ends early if another process changes the same predictions; the next call continues there.
        """
        entries = 0
        while entries < limit:
            room = min(_CHUNK_PREDICTIONS, limit - entries)
            revised_visits, revised = self._revise(now_ms, room)
            closed_visits, closed = self._close_due(now_ms, room - revised)
            entries += revised + closed
            if not revised_visits and not closed_visits:
                break
        return entries

    @_parsed
    def labelled(self, after: int, limit: int = 256) -> list[Labelled]:
        """Entries of the labelled log with seq > after, in order, with all scores stored by now."""
        (found,) = self._server.many([("XRANGE", f"{PREFIX}labelled", f"({after}", "+", "COUNT", limit)])
        ids = list(dict.fromkeys(fields[b"i"].decode() for _, fields in found))
        hashes = dict(zip(ids, self._server.many([("HGETALL", key_of(i)) for i in ids]), strict=True))
        result = []
        for place, fields in found:
            prediction_id = fields[b"i"].decode()
            stored: Mapping[bytes, bytes] = hashes[prediction_id]
            if b"record" not in stored:
                continue  # forgotten in between
            try:
                result.append(_labelled(seq_of(place), prediction_id, fields, stored))
            except (ValueError, LookupError, InvalidInput) as error:
                # Passed over, since readers go on from place to place: it would hold all of them back for ever.
                log.error("labelled entry %r is not one that Baton wrote and is passed over: %.200s", place, error)
        return result

    @_parsed
    def unscored(
        self, after: str, before_ms: int, limit: int = 256, endpoints: Collection[str] | None = None
    ) -> Unscored:
        """See `TrafficLog.unscored`."""
        result: list[tuple[str, bytes]] = []
        seen = int(after or 0)
        looked = 0
        while len(result) < limit and looked < _PASSED_PREDICTIONS:
            room = limit - len(result)
            query = ("ZRANGEBYSCORE", f"{PREFIX}unscored", f"({seen}", "+inf", "WITHSCORES", "LIMIT", 0, room)
            (flat,) = self._server.many([query])
            found = list(zip(flat[::2], flat[1::2], strict=True))
            told = self._server.many([("HMGET", key_of(i.decode()), "ms", "endpoint") for i, _ in found])
            old = list(
                takewhile(lambda one: not one[1][0] or int(one[1][0]) < before_ms, zip(found, told, strict=True))
            )
            wanted = [
                (i.decode(), int(seq))
                for (i, seq), (ms, endpoint) in old
                if ms and (endpoints is None or endpoint is None or endpoint.decode() in endpoints)
            ]
            records = self.records([i for i, _ in wanted])
            result += [(str(seq), records[i]) for i, seq in wanted if i in records]
            looked += len(old)
            seen = int(old[-1][0][1]) if old else seen
            if len(old) < room:
                break
        return Unscored(result, str(seen) if looked else after)

    @_parsed
    def predictions(self, after: str, limit: int = 256) -> list[tuple[str, bytes]]:
        """Predictions after a place, in the order in which they were written: (place, record)."""
        (found,) = self._server.many([("XRANGE", f"{PREFIX}predictions", f"({after or 0}", "+", "COUNT", limit)])
        records = self.records([fields[b"i"].decode() for _, fields in found])
        places = ((seq_of(place), fields[b"i"].decode()) for place, fields in found)
        return [(str(seq), records[i]) for seq, i in places if i in records]

    @_parsed
    def near_end(self, count: int) -> str:
        """A place after which the newest `count` predictions stand."""
        (found,) = self._server.many([("XREVRANGE", f"{PREFIX}predictions", "+", "-", "COUNT", count + 1)])
        return str(seq_of(found[-1][0])) if len(found) > count else ""

    @_parsed
    def latest(self, endpoint: str, limit: int) -> list[bytes]:
        """Up to `limit` records of an endpoint, the newest first, among the newest few of all."""
        (found,) = self._server.many([("XREVRANGE", f"{PREFIX}predictions", "+", "-", "COUNT", 64 * limit)])
        ids = [fields[b"i"].decode() for _, fields in found if fields[b"e"].decode() == endpoint]
        return list(self.records(ids[:limit]).values())

    @_parsed
    def records(self, prediction_ids: Sequence[str]) -> dict[str, bytes]:
        """The records of those predictions that are written, in the order asked."""
        found = self._server.many([("HGET", key_of(i), "record") for i in prediction_ids])
        return {i: record for i, record in zip(prediction_ids, found, strict=True) if record is not None}

    @_parsed
    def requested(self, request_keys: Sequence[int]) -> dict[int, list[Requested]]:
        """The newest predictions, two at most, by the key of their caller's request id."""
        queries = [("ZREVRANGE", f"{PREFIX}r:{waiting_name(key)[1:]}", 0, 1) for key in request_keys]
        newest = dict(zip(request_keys, self._server.many(queries), strict=True))
        stored = self._load(dict.fromkeys(i.decode() for ids in newest.values() for i in ids))
        found = {
            key: [Requested(s.prediction_id, s.ms, s.n) for s in (stored[i.decode()] for i in ids) if s.seq is not None]
            for key, ids in newest.items()
        }
        return {key: some for key, some in found.items() if some}

    @_parsed
    def commit_position(self, reader: str, seq: int) -> None:
        """Store the position of `reader`; see `TrafficLog`."""
        self._server.run(PLACE, reader, seq)

    @_parsed
    def position(self, reader: str) -> int:
        """Position of a reader, 0 if it never committed one."""
        return self._server.groups(f"{PREFIX}labelled").get(reader, 0)

    @_parsed
    def stats(self, now_ms: int) -> TrafficStats:
        """Totals, and the state of the join; `bytes` is the memory of the server."""
        first, counters, late = self._server.many(
            [
                ("XRANGE", f"{PREFIX}predictions", f"({self._watermark()}", "+", "COUNT", 1),
                ("HGETALL", f"{PREFIX}counters"),
                ("ZCARD", f"{PREFIX}late"),
            ]
        )
        oldest = 0
        if first:
            (ms,) = self._server.many([("HGET", key_of(first[0][1][b"i"].decode()), "ms")])
            oldest = max(0, now_ms - int(ms)) if ms else 0

        def total(name: bytes) -> int:
            return int(counters.get(name, 0))

        return TrafficStats(
            predictions=total(b"predictions") - total(b"begun"),
            feedback=total(b"feedback"),
            labelled_entries=total(b"labelled_entries") - total(b"begun"),
            labelled_rows=total(b"labelled_rows"),
            parked_refused=total(b"parked_refused"),
            parked_expired=total(b"parked_expired"),
            open_predictions=total(b"open"),
            parked=total(b"parked"),
            late=late,
            watermark_ms=total(b"watermark_ms"),
            oldest_open_ms=oldest,
            last_seq=total(b"labelled_entries"),
            begun_seq=total(b"begun"),
            bytes=self._server.used_bytes(),
            endpoints=EndpointStats.of({name.decode(): int(value) for name, value in counters.items()}),
        )

    @_parsed
    def retain(
        self,
        before_ms: int,
        protect_seq: int | None = None,
        max_bytes: int | None = None,
        keep: Collection[int] = (),
    ) -> Retained:
        """Delete predictions made before `before_ms`, and the oldest while the server uses more than `max_bytes`.

        Args:
            keep: routing hashes whose predictions stay, however old.
            protect_seq: labelled entries after this seq are kept with their predictions; without it, those after the
                position of the slowest reader that committed one.
        """
        return retain(self._server, before_ms, protect_seq, max_bytes, frozenset(keep))

    @_parsed
    def forget(self, routing_hash: int, now_ms: int) -> int:
        """Delete every record of one user, and refuse those made by `now_ms` that are written later; the number deleted."""
        return forget(self._server, routing_hash, now_ms)

    def close(self) -> None:
        """Close the connections."""
        self._server.close()

    def _load(self, prediction_ids: Iterable[str]) -> dict[str, Stored]:
        ids = list(prediction_ids)
        found = self._server.many([("HMGET", key_of(i), *FIELDS) for i in ids])
        return {i: Stored.of(i, values) for i, values in zip(ids, found, strict=True)}

    def _take(self, before: Stored, entries: Sequence[FeedbackEntry], now_ms: int) -> _Taken:
        """Check entries against their prediction: the replies, and arguments of `FEEDBACK` if any is new."""
        state, changes, replies = before.state(), [], []
        find = lazy_finder(lambda: self.records([before.prediction_id]).get(before.prediction_id))
        for entry in entries:
            delay_ms, late = arrived(state, before.ms, now_ms, self._window)
            change, reply = accept(state, entry, before.ms, now_ms, find)
            replies.append(replace(reply, endpoint=before.endpoint, delay_ms=delay_ms, late=late))
            changes += [] if change is None else [change.pack()]
        if not changes:
            return replies, ()
        return replies, ("changes", frames(changes), closes_at(state, before.ms, self._window), len(changes))

    def _park(self, before: Stored, entries: Sequence[FeedbackEntry], now_ms: int) -> _Taken:
        """The same for entries whose prediction is not written yet."""
        earlier, kept, replies = [entry for _, entry in before.waiting()], [], []
        for entry in entries:
            keep, reply = accept_parked(earlier, entry)
            replies.append(reply)
            if keep is not None:
                earlier.append(keep)
                kept.append(parked_frame(now_ms, keep))
        return replies, ("parked", frames(kept), now_ms, len(kept)) if kept else ()

    def _watermark(self) -> int:
        return self._server.groups(f"{PREFIX}predictions", "join")["join"]

    def _revise(self, now_ms: int, room: int) -> tuple[int, int]:
        """Revise closed predictions that are due; how many, and entries written."""
        (due,) = self._server.many([("ZRANGEBYSCORE", f"{PREFIX}late", "-inf", now_ms, "LIMIT", 0, room)])
        return self._settle(self._load(i.decode() for i in due).values(), False, now_ms)

    def _close_due(self, now_ms: int, room: int) -> tuple[int, int]:
        """Close predictions in order as long as they are due; how many, and entries written."""
        if room <= 0:
            return 0, 0
        watermark = self._watermark()
        _, head = self._open(watermark, room)
        if any(stands_wrong(stored.ms, stored.closes, now_ms, self._window) for stored in head):
            self._set_right(watermark, now_ms)
            _, head = self._open(watermark, room)
        due = takewhile(lambda stored: stored.closes <= now_ms, head)
        return self._settle(due, True, now_ms)

    def _open(self, after: int, limit: int) -> tuple[int, list[Stored]]:
        """The next `limit` predictions after a seq: the last one's seq (0 without one), and those open, in order."""
        (found,) = self._server.many([("XRANGE", f"{PREFIX}predictions", f"({after}", "+", "COUNT", limit)])
        loaded = self._load(fields[b"i"].decode() for _, fields in found).values()
        # Another process may have closed or removed some since the watermark was read.
        still = [stored for stored in loaded if stored.seq is not None and stored.revision is None]
        return (seq_of(found[-1][0]) if found else 0), still

    def _set_right(self, after: int, now_ms: int) -> None:
        """Set the times of all predictions after a seq right."""
        while True:
            after, page = self._open(after, _CHUNK_PREDICTIONS)
            if not after:
                return
            arguments: list[object] = []
            for stored in page:
                if stands_wrong(stored.ms, stored.closes, now_ms, self._window):
                    made_ms, closes_ms = set_right(stored.ms, stored.closes, now_ms, self._window)
                    arguments += (stored.prediction_id, stored.version, made_ms, closes_ms)
            if arguments:
                self._server.run(TIMES, *arguments)

    def _settle(self, predictions: Iterable[Stored], closing: bool, now_ms: int) -> tuple[int, int]:
        """Write new rows of predictions to the labelled log, and when each prediction is due again."""
        arguments: list[object] = []
        for p in predictions:
            written = written_labels(p.n, map(MatureRows.unpack, p.mature))
            rows, due_ms = mature_rows(p.state(), written, now_ms, self._window)
            arguments += (p.prediction_id, p.version, int(closing))
            arguments += (b"", 0) if rows is None else (rows.pack(), len(rows.indices))
            arguments.append("" if due_ms is None else due_ms)
        if not arguments:
            return 0, 0
        seen, entries = self._server.run(SETTLE, *arguments)
        return int(seen), int(entries)

    def _contended(self) -> NotReady:
        return NotReady(
            f"traffic log {self._server.url}: others changed the same predictions {_TRIES} times; try again"
        )


def _finder(blob: bytes) -> Callable[[int], int | None]:
    """From a hashed candidate id to its row; the record is unpacked where feedback waits that names one."""
    return lazy_finder(lambda: blob)


def _labelled(seq: int, prediction_id: str, fields: Mapping[bytes, bytes], stored: Mapping[bytes, bytes]) -> Labelled:
    """A labelled entry. Raises: ValueError, LookupError, InvalidInput: its parts do not fit together."""
    rows, head = MatureRows.unpack(fields[b"m"]), read_head(stored[b"record"])
    n = head.n
    if len(rows.indices) and not (rows.indices.min() >= 0 and rows.indices.max() < n):
        raise ValueError(f"rows of a prediction that has {n}")
    if len(rows.indices) > n:
        raise ValueError(f"{len(rows.indices)} rows of {n}")
    if not np.isfinite(rows.labels).all():
        raise ValueError("a label that is not finite")
    scores = other_scores(stored)
    if any(len(other.scores) != n for other in scores):
        raise ValueError(f"scores of another number of rows than {n}")
    revision, time_ms = whole_number(fields[b"r"]), whole_number(stored[b"ms"])
    return Labelled(seq, prediction_id, head.endpoint, revision, time_ms, *rows, stored[b"record"], scores)

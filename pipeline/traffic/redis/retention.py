"""Retention in the traffic log in Redis: old predictions, predictions above the size limit, and those of a user to forget.
The same rules as in `local.deletion`."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.traffic.log import Retained
from pipeline.traffic.prediction import smallest_id
from pipeline.traffic.record import read_head
from pipeline.traffic.redis.prediction import key_of
from pipeline.traffic.redis.scripts import FORGET, PREFIX, RETAIN
from pipeline.traffic.redis.server import TrafficRedis

__all__ = ["forget", "retain"]

_CHUNK_PREDICTIONS = 256


def retain(
    server: TrafficRedis,
    before_ms: int,
    protect_seq: int | None,
    max_bytes: int | None,
    keep: frozenset[int] = frozenset(),
) -> Retained:
    """Delete closed predictions made before `before_ms` whose labelled entries all have seq <= `protect_seq`; then,
    oldest first, such predictions until the server uses at most `max_bytes`. Those with a routing hash of `keep` stay."""
    cut = smallest_id(before_ms)
    if protect_seq is None:
        protect_seq = min(server.groups(f"{PREFIX}labelled").values(), default=1 << 53)
    done = Retained()
    for ids in _written(server, f"({cut}"):
        done += _remove(server, protect_seq, ids, keep)
    parked = _drop_waiting(server, cut, before_ms)
    if max_bytes is not None:
        for ids in _written(server, "+"):
            if server.used_bytes() <= max_bytes:
                break
            removed = _remove(server, protect_seq, ids, keep)
            done += Retained(removed.predictions, removed.feedback, removed.labelled)
        done += Retained(over_bytes=max(0, server.used_bytes() - max_bytes))
    with server.client() as client:
        if parked:
            client.hincrby(f"{PREFIX}counters", "parked_expired", parked)
        remembered = client.hgetall(f"{PREFIX}forgotten").items()
        over = [routing for routing, until_ms in remembered if int(until_ms) < before_ms]
        if over:
            client.hdel(f"{PREFIX}forgotten", *over)
    return done + Retained(parked=parked)


def forget(server: TrafficRedis, routing_hash: int, now_ms: int) -> int:
    """Delete all predictions of a routing hash, joined or not, read or not, and refuse those that are written later."""
    with server.client() as client:
        client.hset(f"{PREFIX}forgotten", str(routing_hash), str(now_ms))
    deleted, after = 0, b"-"
    while True:
        (found,) = server.many([("XRANGE", f"{PREFIX}predictions", after, "+", "COUNT", 4 * _CHUNK_PREDICTIONS)])
        user_ids = [fields[b"i"] for _, fields in found if int(fields[b"r"]) == routing_hash]
        for start in range(0, len(user_ids), _CHUNK_PREDICTIONS):
            server.run(FORGET, "all", *user_ids[start : start + _CHUNK_PREDICTIONS])
        deleted += len(user_ids)
        if len(found) < 4 * _CHUNK_PREDICTIONS:
            return deleted
        after = b"(" + found[-1][0]


def _written(server: TrafficRedis, end: str) -> Iterator[list[bytes]]:
    """Ids of written predictions, oldest first, up to `end` in the syntax of ZRANGEBYLEX."""
    after = "-"
    while True:
        (ids,) = server.many([("ZRANGEBYLEX", f"{PREFIX}ids", after, end, "LIMIT", 0, _CHUNK_PREDICTIONS)])
        if ids:
            yield ids
        if len(ids) < _CHUNK_PREDICTIONS:
            return
        after = "(" + ids[-1].decode()


def _remove(server: TrafficRedis, protect_seq: int, ids: list[bytes], keep: frozenset[int]) -> Retained:
    free = ids
    if keep:
        records = server.many([("HGET", key_of(i.decode()), "record") for i in ids])
        free = [
            i for i, blob in zip(ids, records, strict=True) if blob is None or read_head(blob).routing_hash not in keep
        ]
    held = len(ids) - len(free)
    if not free:
        return Retained(kept=held)
    predictions, feedback, labelled, unread, unjoined = server.run(RETAIN, protect_seq, *free)
    return Retained(predictions, feedback, labelled, unread=unread, unjoined=unjoined, kept=held)


def _drop_waiting(server: TrafficRedis, cut: str, before_ms: int) -> int:
    """Drop feedback and scores whose prediction was never written; the feedback entries dropped."""
    dropped = 0
    limits = ("LIMIT", 0, _CHUNK_PREDICTIONS)
    for query in (
        *(("ZRANGEBYLEX", f"{PREFIX}{name}", "-", f"({cut}", *limits) for name in ("parked", "orphans")),
        ("ZRANGEBYSCORE", f"{PREFIX}waiting", "-inf", f"({before_ms}", *limits),
    ):
        while True:
            (ids,) = server.many([query])
            if not ids:
                break
            counts = server.many([("HGET", f"{PREFIX}p:{i.decode()}", "waiting") for i in ids])
            dropped += sum(int(count or 0) for count in counts)
            server.run(FORGET, "waiting", *ids)
    return dropped

"""Sessions in a file and in a Redis: an end counts everywhere, what is stored lets nobody in, and their number is bounded."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from clocks import HandClock
from redis_process import RedisProcess

from pipeline.errors import NotReady, PermissionDenied
from serving.config import Config
from serving.config.principal import Role
from serving.security.authenticator import Authenticator, Credentials
from serving.security.session import LENGTH_S, SEEN_S, SessionRow, SessionRows, Sessions
from serving.security.tokens import TokenStore
from serving.state.redis.sessions import RedisSessions
from serving.state.sessions import MAX_SESSIONS, MAX_TOKEN_SESSIONS, SqliteSessions


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    with RedisProcess(tmp_path_factory.mktemp("redis")) as started:
        yield started


class World:
    """An installation's tokens and its rows; `process` is one of its control processes."""

    def __init__(self, home: Path, open_rows: Callable[[], SessionRows]) -> None:
        self.config = Config.model_validate({"home": home})
        self.clock = HandClock()
        self.tokens = TokenStore(self.config.tokens)
        self.open_rows = open_rows
        self.rows = open_rows()

    def process(self) -> Sessions:
        return Sessions(Authenticator(self.config, self.clock), self.open_rows(), self.clock, secure=False)

    def token(self, name: str, role: Role = Role.OPERATOR) -> Credentials:
        return Credentials(f"Bearer {self.tokens.create(name, role, self.clock.wall_ms())[1]}")

    def later(self, seconds: float) -> None:
        self.clock.now += seconds


@pytest.fixture(params=["sqlite", "redis"])
def world(request: Any, tmp_path: Path, server: RedisProcess) -> World:
    if request.param == "sqlite":
        return World(tmp_path, lambda: SqliteSessions(tmp_path / "run" / "sessions.db"))
    server.client().flushall()
    return World(tmp_path, lambda: RedisSessions(server.address))


def key_of(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


def test_a_sign_out_counts_at_every_process_and_after_a_restart(world: World) -> None:
    one, other = world.process(), world.process()
    first, second = one.begin(ann := world.token("ann")), one.begin(ann)
    for process in (one, other, world.process()):
        found = process.find(first)
        assert found is not None
        assert found.principal.name == "ann"
    one.end(first)
    assert one.find(first) is None
    world.later(SEEN_S + 0.01)
    assert other.find(first) is None
    assert world.process().find(first) is None
    for process in (one, other, world.process()):
        assert process.find(second) is not None  # the other session of that token goes on


def test_it_ends_with_its_time_and_with_its_token(world: World) -> None:
    process = world.process()
    late, revoked = process.begin(world.token("ann")), process.begin(world.token("bob"))
    world.tokens.revoke("bob")
    assert process.find(revoked) is None
    world.later(LENGTH_S - 1)
    assert process.find(late) is not None
    world.later(1)
    assert process.find(late) is None


def test_a_certificate_alone_begins_none(world: World) -> None:
    with pytest.raises(PermissionDenied):
        world.process().begin(Credentials(certificate=("ann",)))


def test_what_is_stored_lets_nobody_in(world: World) -> None:
    process = world.process()
    value = process.begin(world.token("ann"))
    row = world.rows.get([key_of(value)])[key_of(value)]
    found = process.find(value)
    assert found is not None
    assert value not in repr(row)
    assert found.csrf not in repr(row)
    for shown in (row.key, row.mac, row.token, row.key[:43], row.mac[:43], row.pack()):
        assert process.find(shown) is None


def test_who_writes_rows_makes_no_session(world: World) -> None:
    """The token's digest, which a MAC needs, is in no row."""
    process, now_ms = world.process(), world.clock.wall_ms()
    operator = process.begin(world.token("ann"))
    viewer = process.begin(world.token("eve", Role.VIEWER))
    of_ann, of_eve = (world.rows.get([key_of(v)])[key_of(v)] for v in (operator, viewer))
    known = secrets.token_urlsafe(32)  # an id that the writer has chosen
    forged = [
        replace(of_ann, key=key_of(known)),
        replace(of_eve, key=key_of(known), token=of_ann.token),
        SessionRow(key_of(known), of_ann.token, now_ms + 1000, "0" * 64),
    ]
    for row in forged:
        world.rows.put(row, now_ms)
        assert world.process().find(known) is None
    world.rows.put(replace(of_eve, token=of_ann.token), now_ms)  # her own session, of another's token
    assert world.process().find(viewer) is None
    world.rows.put(replace(of_eve, ends_ms=of_eve.ends_ms + 1), now_ms)  # and a longer one
    assert world.process().find(viewer) is None
    world.rows.put(of_eve, now_ms)
    assert world.process().find(viewer) is not None


def test_the_number_of_sessions_is_bounded_and_the_newest_stay(world: World) -> None:
    process = world.process()
    bob, ann = process.begin(world.token("bob")), world.token("ann")
    values = []
    for _ in range(MAX_TOKEN_SESSIONS + 3):
        world.later(0.001)
        values.append(process.begin(ann))
    world.later(SEEN_S + 1)
    assert [process.find(value) is not None for value in values] == [False] * 3 + [True] * MAX_TOKEN_SESSIONS
    assert process.find(bob) is not None
    for number in range(MAX_SESSIONS):
        row = SessionRow(
            f"{number:064x}", f"t{number // MAX_TOKEN_SESSIONS}", world.clock.wall_ms() + 10**8 + number, "0" * 64
        )
        world.rows.put(row, world.clock.wall_ms())
    world.later(SEEN_S + 1)
    assert process.find(bob) is None  # it would have ended first
    kept = world.rows.get([f"{number:064x}" for number in range(MAX_SESSIONS)])
    assert len(kept) == MAX_SESSIONS


def test_look_asks_once_for_many(world: World) -> None:
    process = world.process()
    values = [process.begin(world.token(name)) for name in ("ann", "bob")]
    asked: list[int] = []
    get = process._rows.get
    process._rows.get = lambda keys: asked.append(len(keys)) or get(keys)  # type: ignore[method-assign,func-returns-value]
    asyncio.run(process.look([*values, *values, "junk", ""]))
    assert all(process.find(value) is not None for value in values)
    assert asked == [2]


def test_while_the_store_is_away_nobody_has_a_session_and_an_end_is_made_up_for(tmp_path: Path) -> None:
    with RedisProcess(tmp_path / "redis", "--appendonly", "yes", "--appendfsync", "always") as server:
        world = World(tmp_path, lambda: RedisSessions(server.address))
        process, other = world.process(), world.process()
        kept, ended = process.begin(ann := world.token("ann")), process.begin(ann)
        assert process.find(kept) is not None
        assert process.find(ended) is not None
        server.kill()
        process.end(ended)
        assert process.find(ended) is None
        world.later(SEEN_S + 0.01)
        with pytest.raises(NotReady, match="use a token"):
            process.find(kept)
        with pytest.raises(NotReady):
            process.begin(ann)
        server.start()
        world.later(2)
        assert process.find(kept) is not None
        assert other.find(ended) is None
        assert world.process().find(kept) is not None


def test_rows_of_another_form_are_no_sessions(server: RedisProcess, tmp_path: Path) -> None:
    client = server.client()
    client.flushall()
    world = World(tmp_path, lambda: RedisSessions(server.address))
    process, value = world.process(), secrets.token_urlsafe(32)
    name = f"control:session:{key_of(value)}"
    ann = world.token("ann")
    for odd in (b"", b"\xff\xfe", b"a b c", b"x " * 10_000, f"t {10**20} {'0' * 64}".encode(), b"\0"):
        client.set(name, odd)
        assert world.process().find(value) is None
    for words in (("HSET", name, "a", "b"), ("RPUSH", name, "a")):
        client.delete(name)
        client.execute_command(*words)
        assert world.process().find(value) is None
    client.zadd("control:sessions", {b"\xff": 1e300, b"x y z": 9e15, b"": 9e15})
    assert process.find(process.begin(ann)) is not None
    assert client.zcard("control:sessions") == 1
    client.delete("control:sessions")
    client.set("control:sessions", "1")
    with pytest.raises(NotReady):
        process.begin(ann)
    client.flushall()


def test_a_session_in_redis_expires_there(server: RedisProcess, tmp_path: Path) -> None:
    world = World(tmp_path, lambda: RedisSessions(server.address))
    value = world.process().begin(world.token("ann"))
    left = server.client().pttl(f"control:session:{key_of(value)}")
    assert 1000 * (LENGTH_S - 60) < left <= 1000 * LENGTH_S


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "run" / "sessions.db"
    SqliteSessions(path).close()
    assert path.stat().st_mode & 0o077 == 0

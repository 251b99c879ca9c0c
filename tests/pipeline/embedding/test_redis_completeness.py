"""Rows that Redis loses after they were written: they are counted, answers say so, and they come back when there is room."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import redis
from redis_model import Versions, check, look, open_tier, source, updater
from redis_process import RedisProcess

import pipeline.embedding.redis.completeness as completeness
from pipeline.embedding.redis.marks import RedisGeneration
from pipeline.embedding.redis.rows import keys_of
from pipeline.embedding.redis.tier import RedisSource
from pipeline.embedding.redis.updates import RedisUpdater
from pipeline.embedding.tier import salt_of
from pipeline.errors import Conflict, Overloaded


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisProcess]:
    with RedisProcess(tmp_path / "redis") as process:
        yield process


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    made = Versions(tmp_path)
    made.delta()
    return made


@pytest.fixture
def writer(server: RedisProcess, versions: Versions) -> Iterator[RedisUpdater]:
    made = updater(server.address, versions)
    yield made
    made.close()


@pytest.fixture
def reader(server: RedisProcess, versions: Versions) -> Iterator[RedisSource]:
    made = source(server.address, versions)
    yield made
    made.close()


def bring(writer: RedisUpdater, versions: Versions, **more: bool) -> int:
    chain = versions.repository.chain(versions.repository.open("ranker", "2"))
    for _ in range(20):
        with contextlib.suppress(Conflict):  # the writer's lease may be among the keys that are evicted
            return writer.bring(chain, **more).rows
    raise AssertionError("the lease was evicted each time")


def whole(reader: RedisSource, versions: Versions) -> None:
    ids = versions.every_id()
    looked = look(open_tier(reader, versions, "2"), ids)
    assert looked.fault is None
    check(looked, ids, versions.truth("2"))


def rows(server: RedisProcess, versions: Versions, table: str = "item", part: slice = slice(None)) -> list[bytes]:
    """Keys of rows of the version's delta."""
    ids = versions.repository.open("ranker", "2").table(table).ids[part]
    prefix = RedisGeneration.of(versions.base, "float32").prefix
    return keys_of(prefix, ids ^ np.int64(salt_of(table)))


@pytest.mark.parametrize("lost", [1, 20])
def test_rows_that_are_gone_come_back_with_their_newest_values(
    server: RedisProcess, versions: Versions, writer: RedisUpdater, reader: RedisSource, lost: int
) -> None:
    assert bring(writer, versions) > 0
    whole(reader, versions)
    with server.client() as client:
        assert client.unlink(*rows(server, versions, part=slice(0, lost))) == lost
    assert bring(writer, versions) == lost
    whole(reader, versions)
    assert bring(writer, versions) == 0


def test_every_row_is_looked_for_in_turn(
    server: RedisProcess, versions: Versions, writer: RedisUpdater, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completeness, "WINDOW_COUNT", 2)
    monkeypatch.setattr(completeness, "WINDOW_ROWS", 8)
    bring(writer, versions)
    for table, place in (("item", 0), ("shop", 17), ("user", -1)):
        (key,) = rows(server, versions, table)[place:][:1]
        with server.client() as client:
            client.unlink(key)
        assert sum(bring(writer, versions) for _ in range(40)) == 1
    with server.client() as client:
        client.unlink(*rows(server, versions)[:1])
    assert bring(writer, versions, count=True) == 1


def test_while_rows_are_missing_answers_that_lack_one_say_so(server: RedisProcess, tmp_path: Path) -> None:
    versions = Versions(tmp_path / "many", rows=1000)
    versions.delta()
    with (
        contextlib.closing(updater(server.address, versions)) as writer,
        contextlib.closing(source(server.address, versions)) as reader,
    ):
        answers_while_rows_are_missing(server, versions, writer, reader)


def answers_while_rows_are_missing(
    server: RedisProcess, versions: Versions, writer: RedisUpdater, reader: RedisSource
) -> None:
    bring(writer, versions)
    tier, ids = open_tier(reader, versions, "2"), versions.every_id()
    with server.client() as client:
        evict(client)
        left = client.dbsize()
        with pytest.raises(Overloaded, match="has no room for them"):
            bring(writer, versions)
        with pytest.raises(Overloaded, match="put segment below"):
            bring(writer, versions)
        assert client.dbsize() <= left + 1  # nothing was written that would cost other rows
        (generation,) = writer.report()["generations"]
        assert generation["missing"] > 0
        assert look(tier, ids).fault == "incomplete"
        client.config_set("maxmemory", 0)
    assert bring(writer, versions) > 0
    whole(reader, versions)
    assert writer.report()["generations"][0]["missing"] == 0


def test_a_mark_that_is_gone_says_nothing_of_the_rows(
    server: RedisProcess, versions: Versions, writer: RedisUpdater, reader: RedisSource
) -> None:
    bring(writer, versions)
    generation = RedisGeneration.of(versions.base, "float32")
    with server.client() as client:
        client.unlink(generation.key("mark"), *rows(server, versions)[:3])
    assert bring(writer, versions) == 3
    whole(reader, versions)


def evict(client: redis.Redis) -> None:
    """Let the server evict some rows, and have no room for them."""
    client.config_set("maxmemory-policy", "allkeys-random")
    used = int(client.info("memory")["used_memory"])
    client.config_set("maxmemory", used - 100_000)

"""Generations in Redis: loaded, moved forward and back, interrupted anywhere, written by two writers, swept."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from redis_model import Versions, check, look, open_tier, source, updater
from redis_process import RedisProcess

import pipeline.embedding.redis.updates as updates
from pipeline.embedding.redis.marks import RedisGeneration
from pipeline.embedding.redis.tier import RedisSource
from pipeline.errors import Conflict, NotReady, Overloaded


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates, "CHUNK_ROWS", 16)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    with RedisProcess(tmp_path_factory.mktemp("redis")) as process:
        yield process


@pytest.fixture
def empty(server: RedisProcess) -> RedisProcess:
    with server.client() as client:
        client.flushall()
    return server


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    return Versions(tmp_path)


@pytest.fixture
def reader(empty: RedisProcess, versions: Versions) -> Iterator[RedisSource]:
    made = source(empty.address, versions)
    yield made
    made.close()


def bring(server: RedisProcess, versions: Versions, version: str, **more: object) -> updates.Brought:
    made = updater(server.address, versions, **more)
    try:
        return made.bring(versions.repository.chain(versions.repository.open("ranker", version)))
    finally:
        made.close()


def held(reader: RedisSource, versions: Versions, version: str) -> None:
    """Redis holds exactly the rows of a version."""
    ids = versions.every_id()
    looked = look(open_tier(reader, versions, version), ids)
    assert looked.fault is None
    check(looked, ids, versions.truth(version))


def test_a_version_is_its_base_and_deltas_in_order(
    empty: RedisProcess, versions: Versions, reader: RedisSource
) -> None:
    versions.delta()
    versions.delta("2")
    assert bring(empty, versions, "1").applied == ("1",)
    held(reader, versions, "1")
    done = bring(empty, versions, "3")
    assert done.applied == ("1", "2", "3")
    assert done.rows == sum(
        len(versions.repository.open("ranker", v).table(t).ids) for v in "23" for t in ("user", "item", "shop")
    )
    held(reader, versions, "3")
    assert bring(empty, versions, "3").rows == 0


def test_a_generation_counts_only_when_it_is_whole(
    empty: RedisProcess, versions: Versions, reader: RedisSource
) -> None:
    tier, ids = open_tier(reader, versions, "1"), versions.every_id()
    assert look(tier, ids).fault == "incomplete"
    chunks = iter([False] * 5)
    with pytest.raises(Conflict, match="resumed"):
        bring(empty, versions, "1", stopped=lambda: next(chunks, True))
    looked = look(tier, ids)
    assert looked.fault == "incomplete"
    assert not any(found.any() for found in looked.found.values())
    assert tier.describe()["incomplete"] == 2
    bring(empty, versions, "1")
    assert look(tier, ids).fault is None


def test_going_back_gives_every_row_its_earlier_value(
    empty: RedisProcess, versions: Versions, reader: RedisSource
) -> None:
    versions.delta()
    versions.delta("2")
    bring(empty, versions, "3")
    assert bring(empty, versions, "1").applied == ("1",)
    held(reader, versions, "1")
    bring(empty, versions, "3")
    versions.delta("2")  # version 4 goes on from 2: what 3 changed is undone
    assert bring(empty, versions, "4").applied == ("1", "2", "4")
    held(reader, versions, "4")


def test_an_abandoned_delta_that_is_gone_from_disk_means_loading_anew(
    empty: RedisProcess, versions: Versions, reader: RedisSource
) -> None:
    delta = versions.delta()
    bring(empty, versions, "2")
    delta.path.rename(delta.path.with_name("gone"))
    done = bring(empty, versions, "1")
    assert done.rows == sum(len(versions.base.table(t).ids) for t in ("user", "item", "shop"))
    held(reader, versions, "1")


@pytest.mark.long
@settings(
    max_examples=60,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.tuples(st.sampled_from("1234"), st.integers(0, 40)), max_size=6), st.sampled_from("1234"))
@example([("1", 40), ("2", 10), ("1", 1)], "2")
def test_broken_off_anywhere_it_ends_the_same(
    server: RedisProcess, tmp_path_factory: pytest.TempPathFactory, tries: list[tuple[str, int]], last: str
) -> None:
    with server.client() as client:
        client.flushall()
    versions = Versions(tmp_path_factory.mktemp("versions"), rows=40)
    for deltas in ((), ("2",), ("2",)):
        versions.delta(*deltas, touched=20)
    for version, chunks in tries:
        left = iter([False] * chunks)
        with contextlib.suppress(Conflict):
            bring(server, versions, version, stopped=partial(next, left, True))
    assert bring(server, versions, last).applied[-1] == last
    made = source(server.address, versions)
    try:
        held(made, versions, last)
    finally:
        made.close()


def test_a_writer_whose_lease_was_taken_changes_nothing(
    empty: RedisProcess, versions: Versions, reader: RedisSource
) -> None:
    versions.delta()
    bring(empty, versions, "1")
    lease = RedisGeneration.of(versions.base, "float32").key("lease")
    chunks = 0

    def taken() -> bool:
        nonlocal chunks
        chunks += 1
        if chunks == 3:  # it stood still for longer than its lease, and another one has begun
            with empty.client() as client:
                client.set(lease, "b")
        return False

    with pytest.raises(Conflict, match="another writer took over"):
        bring(empty, versions, "2", stopped=taken)
    with pytest.raises(Conflict, match="another writer loads"):
        bring(empty, versions, "2")
    with empty.client() as client:
        assert client.get(lease) == b"b"
        client.unlink(lease)
    bring(empty, versions, "2")
    held(reader, versions, "2")


def test_two_writers_at_once_leave_whole_rows(empty: RedisProcess, versions: Versions, reader: RedisSource) -> None:
    for deltas in ((), ("2",)):
        versions.delta(*deltas)
    refused: list[str] = []

    def write(token: str) -> None:
        for version in "123123":
            try:
                bring(empty, versions, version, token=token)
            except Conflict as error:
                refused.append(str(error))

    writers = [threading.Thread(target=write, args=(token,)) for token in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    bring(empty, versions, "3")
    held(reader, versions, "3")


def test_unused_generations_leave(empty: RedisProcess, versions: Versions, tmp_path: Path, reader: RedisSource) -> None:
    other = Versions(tmp_path / "other", rows=50)
    bring(empty, other, "1")
    bring(empty, versions, "1")
    with empty.client() as client:
        client.set("somebody else's", "stays")
        made = updater(empty.address, versions)
        used = [RedisGeneration.of(versions.base, "float32")]
        assert made.sweep(used, unused_for=3600) == 0
        gone = sum(len(other.base.table(t).ids) for t in ("user", "item", "shop"))
        until = client.dbsize()
        while not (removed := made.sweep(used, unused_for=0.05)):
            pass
        assert removed == gone
        assert client.dbsize() == until - gone - 3  # its mark, progress and count as well
        assert client.get("somebody else's") == b"stays"
        (only,) = made.report()["generations"]
        assert (only["bundle"], only["base"], only["version"]) == ("ranker", "1", "1")
        made.close()
    held(reader, versions, "1")


def test_an_evicted_mark_comes_back(empty: RedisProcess, versions: Versions, reader: RedisSource) -> None:
    bring(empty, versions, "1")
    generation = RedisGeneration.of(versions.base, "float32")
    with empty.client() as client:
        client.unlink(generation.key("mark"))
        assert bring(empty, versions, "1").rows == 0
        held(reader, versions, "1")
        client.unlink(generation.key("progress"))
    assert bring(empty, versions, "1").rows > 0
    held(reader, versions, "1")


def test_a_full_redis_is_named(tmp_path: Path, versions: Versions) -> None:
    with RedisProcess(tmp_path / "redis", "--maxmemory", "1mb", "--maxmemory-policy", "noeviction") as server:
        with pytest.raises(Overloaded, match="raise its maxmemory"):
            bring(server, versions, "1")
        with server.client() as client:
            client.config_set("maxmemory", 0)
        bring(server, versions, "1")


def test_a_redis_that_is_away_is_named(tmp_path: Path, versions: Versions) -> None:
    with RedisProcess(tmp_path / "redis") as server:
        pass
    with pytest.raises(NotReady, match="cannot be reached"):
        bring(server, versions, "1")

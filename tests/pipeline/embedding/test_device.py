"""Device cache: compared with a dict, and with threads and processes that read and write at once."""

from __future__ import annotations

import mmap
import multiprocessing
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.arrays import F32, I64
from pipeline.bundle.row_format import RowFormat
from pipeline.embedding.device.cache import CacheShape, DeviceCache
from pipeline.embedding.device.tier import read_keys, write_keys
from pipeline.embedding.tier import DEFAULT_STATUS, PENDING_STATUS, STALE_STATUS, Wanted

MARK, BELOW = 1, 2
EXTREME = [-(2**63), -1, 0, 1, 2**63 - 1]


def ask(keys: I64, width: int, *, linear: bool = True) -> Wanted:
    """Rows go below each other, in reverse, so that places are not their order."""
    n = len(keys)
    at = np.arange(n, dtype=np.int64)[::-1].copy()
    rows, weights = np.full(n * width, np.nan, np.float32), np.full(n * linear, np.nan, np.float32)
    return Wanted(0, width, keys, at * width, rows, at, weights, np.full(n, PENDING_STATUS, np.uint8))


def answer(wanted: Wanted) -> tuple[F32, F32]:
    """Rows and weights in the order of the keys."""
    return wanted.rows.reshape(-1, wanted.width)[::-1], wanted.linear[::-1]


def give(keys: I64, rows: F32, weights: F32 | None, found: int = BELOW) -> Wanted:
    wanted = ask(keys, rows.shape[1], linear=weights is not None)
    wanted.found[:] = found
    answer(wanted)[0][:] = rows
    if weights is not None:
        answer(wanted)[1][:] = weights
    return wanted


def rows_of(keys: I64, width: int, salt: int = 0) -> tuple[F32, F32]:
    """What a key's row is: told by the key and a salt, another for every key."""
    seeds = (keys.astype(np.uint64) * np.uint64(2654435761) + np.uint64(salt)) % np.uint64(65521)
    rows = (seeds[:, None] + 7 * np.arange(width, dtype=np.uint64)).astype(np.float32)
    return rows, -rows[:, 0]


keys_drawn = st.lists(st.one_of(st.sampled_from(EXTREME), st.integers(-20, 20)), min_size=1, max_size=30)
steps = st.lists(st.tuples(st.sampled_from(["find", "offer", "put"]), keys_drawn, st.integers(0, 3)), max_size=30)


@settings(deadline=None, max_examples=150)
@given(steps, st.sampled_from([1, 6, 20, 64]), st.sampled_from([1, 3, 8, 16, 21]), st.booleans())
def test_a_cache_is_a_dict_that_may_forget(
    script: list[tuple[str, list[int], int]], capacity: int, width: int, linear: bool
) -> None:
    cache = DeviceCache(CacheShape(capacity, width, linear))
    last: dict[int, tuple[F32, float]] = {}
    held: set[int] = set()
    for what, drawn, salt in script:
        keys = np.array(drawn, np.int64)
        if what == "find":
            wanted = ask(keys, width, linear=linear)
            wanted.found[0] = BELOW  # not open, so not to be touched
            cache.find(wanted, MARK)
            rows, weights = answer(wanted)
            assert wanted.found[0] == BELOW
            assert np.isnan(rows[0]).all()
            for i, key in list(enumerate(drawn))[1:]:
                assert (wanted.found[i] == MARK) == (key in held)
                if key in held:
                    np.testing.assert_array_equal(rows[i], last[key][0])
                    assert not linear or weights[i] == last[key][1]
        else:
            rows, weights = rows_of(keys, width, salt)
            cache.keep(give(keys, rows, weights if linear else None), MARK, overwrite=what == "put")
            now = set(cache.keys().tolist())
            for i, key in enumerate(drawn):
                if key in now and (what == "put" or key not in held):
                    last[key] = rows[i], float(weights[i])
            assert now <= held | set(drawn)
            held = now
        assert len(held) == cache.counts()["rows"] <= cache.shape.sets * 6 < capacity + 6


def test_a_cache_with_room_takes_what_it_is_offered() -> None:
    keys = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 1000, np.int64)
    cache = DeviceCache(CacheShape(4000, 16))
    cache.keep(give(keys, rows_of(keys, 16)[0], None), MARK)
    wanted = ask(keys, 16, linear=False)
    cache.find(wanted, MARK)
    assert (wanted.found == MARK).all()
    np.testing.assert_array_equal(answer(wanted)[0], rows_of(keys, 16)[0])
    assert sorted(cache.keys().tolist()) == sorted(keys.tolist())


def test_only_what_lower_tiers_found_is_kept() -> None:
    keys = np.arange(5, dtype=np.int64)
    offered = give(keys, rows_of(keys, 4)[0], None)
    offered.found[:] = [PENDING_STATUS, MARK, DEFAULT_STATUS, STALE_STATUS | BELOW, BELOW]
    cache = DeviceCache(CacheShape(100, 4))
    cache.keep(offered, MARK)
    assert cache.keys().tolist() == [4]


@pytest.mark.parametrize(("stored", "tolerance"), [("float32", 0.0), ("float16", 2.0**-11), ("int8", 1 / 254)])
@pytest.mark.parametrize("width", [1, 5, 8, 16, 24, 64, 70])
def test_row_formats(stored: RowFormat, tolerance: float, width: int) -> None:
    rng = np.random.default_rng(width)
    keys = rng.integers(-(2**63), 2**63 - 1, 300, np.int64)
    rows, weights = rng.normal(size=(300, width)).astype(np.float32), rng.normal(size=300).astype(np.float32)
    rows[0] = 0
    cache = DeviceCache(CacheShape(3000, width, True, stored))
    cache.keep(give(keys, rows, weights), MARK)
    wanted = ask(keys, width)
    cache.find(wanted, MARK)
    assert (wanted.found == MARK).all()
    largest = np.abs(rows).max(1, keepdims=True)
    assert (np.abs(answer(wanted)[0] - rows) <= tolerance * 1.0001 * largest + 1e-9).all()
    np.testing.assert_array_equal(answer(wanted)[1], weights)


def test_what_is_asked_for_more_often_stays() -> None:
    """A scan of ids that come once does not push out those that come again and again (TinyLFU)."""
    rng = np.random.default_rng(0)
    hot = rng.integers(-(2**63), 2**63 - 1, 100, np.int64)
    cache = DeviceCache(CacheShape(600, 4))
    hits = 0
    for turn in range(400):
        keys = np.concatenate([hot, rng.integers(-(2**63), 2**63 - 1, 100, np.int64)])
        wanted = ask(keys, 4, linear=False)
        cache.find(wanted, MARK)
        if turn >= 200:
            hits += int((wanted.found[:100] == MARK).sum())
        wanted.found[wanted.found == PENDING_STATUS] = BELOW
        answer(wanted)[0][:] = rows_of(keys, 4)[0]
        cache.keep(wanted, MARK)
    assert hits >= 0.99 * 200 * 100
    assert cache.counts()["refused"] > 10_000


def test_rows_grow_stale_are_served_as_stale_and_written_anew() -> None:
    keys = np.arange(10, dtype=np.int64)
    cache = DeviceCache(CacheShape(100, 4))
    cache.keep(give(keys, rows_of(keys, 4)[0], None), MARK, tick=1000)
    for tick, found in ((1000, MARK), (1008, MARK), (1009, MARK | STALE_STATUS)):
        wanted = ask(keys, 4, linear=False)
        cache.find(wanted, MARK, tick)
        assert (wanted.found == found).all()
        np.testing.assert_array_equal(answer(wanted)[0], rows_of(keys, 4)[0])
    cache.keep(give(keys[:5], rows_of(keys[:5], 4, salt=1)[0], None), MARK, tick=1009)
    wanted = ask(keys, 4, linear=False)
    cache.find(wanted, MARK, 1009)
    assert (wanted.found == [MARK] * 5 + [MARK | STALE_STATUS] * 5).all()
    np.testing.assert_array_equal(answer(wanted)[0][:5], rows_of(keys[:5], 4, salt=1)[0])


def test_old_rows_are_let_go_before_their_births_come_round() -> None:
    keys = np.arange(10, dtype=np.int64)
    cache = DeviceCache(CacheShape(100, 4))
    cache.find(ask(keys, 4, linear=False), MARK, 1000)
    cache.keep(give(keys, rows_of(keys, 4)[0], None), MARK, tick=1000)
    wanted = ask(keys, 4, linear=False)
    cache.find(wanted, MARK, 1256)  # 256 ticks on, a birth looks new
    assert (wanted.found == PENDING_STATUS).all()
    assert cache.counts()["rows"] == 0


def test_memory_is_what_the_docs_say() -> None:
    for width, stored, bound in ((16, "float32", 83), (16, "float16", 51), (16, "int8", 39), (64, "float32", 275)):
        shape = CacheShape(100_000, width, False, stored)  # type: ignore[arg-type]
        assert len(DeviceCache(shape).memory) <= bound * 100_000
        assert CacheShape(100_000, width, True, stored).bytes <= (bound + 4) * 100_000  # type: ignore[arg-type]


def test_hot_keys_survive_and_damage_costs_only_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "ranker" / "16.keys"
    assert len(read_keys(path)) == 0
    write_keys(path, np.array(EXTREME, np.int64))
    assert read_keys(path).tolist() == EXTREME
    raw = path.read_bytes()
    for damaged in (b"", raw[:10], raw[:-3], raw[:-8], raw[:-1] + b"x", b"x" + raw[1:]):
        path.write_bytes(damaged)
        caplog.clear()
        assert len(read_keys(path)) == 0
        assert "damaged" in caplog.text
    assert [p.name for p in path.parent.iterdir()] == ["16.keys"]


def checked_rows(keys: I64, salts: I64, width: int) -> tuple[F32, F32]:
    """Rows that tell their key and salt, and whose last number sums up the others."""
    rows = np.empty((len(keys), width), np.float32)
    rows[:, 0], rows[:, 1] = keys, salts
    rows[:, 2:-1] = (keys * 31 + salts * 17)[:, None] % 8191 + np.arange(width - 3)
    rows[:, -1] = rows[:, :-1].astype(np.float64).sum(1) % 65521
    return rows, (keys * 13 + salts * 7).astype(np.float32)


def wrong(keys: I64, wanted: Wanted) -> int:
    """Rows found that are not whole, not of one writing, or of another key."""
    rows, weights = answer(wanted)
    hit = wanted.found == MARK
    expected, expected_weights = checked_rows(keys[hit], rows[hit, 1].astype(np.int64), wanted.width)
    return int(((rows[hit] != expected).any(1) | (weights[hit] != expected_weights)).sum())


def shared(path: Path) -> mmap.mmap:
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), 0)


def hammer(path: Path, seed: int, seconds: float, out: multiprocessing.SimpleQueue[tuple[int, int, int]]) -> None:
    """Find, offer and update the same few sets from three threads until the time is up."""
    memory = shared(path)
    shape = CacheShape(48, 16, True)
    results: list[tuple[int, int, int]] = []

    def work(number: int) -> None:
        rng = np.random.default_rng([seed, number])
        cache = DeviceCache(shape, memory)
        until = time.monotonic() + seconds
        found = bad = rounds = 0
        while time.monotonic() < until:
            keys = rng.integers(1, 120, 256).astype(np.int64)
            wanted = ask(keys, 16)
            cache.find(wanted, MARK)
            bad += wrong(keys, wanted)
            found += int((wanted.found == MARK).sum())
            rows, weights = checked_rows(keys, rng.integers(0, 1000, 256), 16)
            cache.keep(give(keys, rows, weights), MARK, overwrite=bool(rng.integers(2)))
            rounds += 1
        results.append((rounds, found, bad))

    threads = [threading.Thread(target=work, args=(i,), name=f"hammer-{i}") for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rounds, found, bad = (sum(column) for column in zip(*results, strict=True))
    out.put((rounds, found, bad))


def stress(seconds: float, path: Path) -> None:
    path.write_bytes(bytes(CacheShape(48, 16, True).bytes))
    # Not forked: other tests leave threads of gRPC behind, which do not survive a fork.
    context = multiprocessing.get_context("spawn")
    out: multiprocessing.SimpleQueue[tuple[int, int, int]] = context.SimpleQueue()
    processes = [context.Process(target=hammer, args=(path, seed, seconds, out)) for seed in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(seconds + 60)
        assert process.exitcode == 0
    for _ in processes:
        rounds, found, bad = out.get()
        assert bad == 0
        assert rounds > 10
        assert found > 1000
    assert DeviceCache(CacheShape(48, 16, True), shared(path)).counts()["entered"] > 50


def test_no_reader_sees_half_a_row_or_another_ids(tmp_path: Path) -> None:
    stress(1.5, tmp_path / "cache")


@pytest.mark.long
def test_no_reader_sees_half_a_row_or_another_ids_for_a_minute(tmp_path: Path) -> None:
    stress(62.0, tmp_path / "cache")


def test_a_writer_that_died_costs_its_set_alone() -> None:
    cache = DeviceCache(CacheShape(3000, 4))
    keys = np.arange(1000, dtype=np.int64)
    cache.keep(give(keys, rows_of(keys, 4)[0], None), MARK)
    held = ask(keys, 4, linear=False)
    cache.find(held, MARK)
    locks = np.frombuffer(cache.memory, np.uint32)[32 : 32 + 16 * cache.shape.sets].reshape(-1, 16)[:, 12]
    victim = int(np.argmax(locks & 63))
    locks[victim] |= 64  # as a process leaves it that is killed between lock and unlock
    wanted = ask(keys, 4, linear=False)
    cache.find(wanted, MARK)
    missed = int((wanted.found != held.found).sum())
    assert missed == int(locks[victim] & 63).bit_count() > 0
    cache.keep(give(keys, rows_of(keys, 4, salt=1)[0], None), MARK, overwrite=True)
    assert cache.counts()["contended"] >= missed

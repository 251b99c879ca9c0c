"""Device cache of a GPU: compared with a dict and with the cache of the CPU, on torch's CPU device and on a GPU."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.arrays import F32, I64
from pipeline.clock import SystemClock
from pipeline.embedding.device.cache import CacheShape, DeviceCache, RowFormat
from pipeline.embedding.device.tier import DeviceSource, cache_maker
from pipeline.embedding.device.torch_cache import TorchCache
from pipeline.embedding.device.torch_sets import Sets, find_rows, keep_rows, splitmix64
from pipeline.embedding.kernels import splitmix64 as compiled_splitmix64
from pipeline.embedding.tier import DEFAULT_STATUS, PENDING_STATUS, STALE_STATUS, Generation, Group, Wanted
from pipeline.errors import InvalidInput

MARK, BELOW = 1, 2
WIDTH = 4
EDGES = [0, -1, 1, -(2**63), 2**63 - 1]
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")),
]
FORMATS: list[RowFormat] = ["float32", "float16", "int8"]


def asked(keys: I64, width: int = WIDTH, found: int = PENDING_STATUS, *, linear: bool = True) -> Wanted:
    m = len(keys)
    # Rows lie apart and backwards, as fields of several widths may.
    at = np.arange(m, dtype=np.int64)[::-1].copy() * (width + 3)
    linear_at = np.arange(m, dtype=np.int64) * 2
    return Wanted(
        *(0, width, keys, at, np.full(m * (width + 3), np.nan, np.float32)),
        *(linear_at, np.full(2 * m if linear else 0, np.nan, np.float32), np.full(m, found, np.uint8)),
    )


def offered(keys: I64, rows: F32, weights: F32, *, linear: bool = True) -> Wanted:
    wanted = asked(keys, rows.shape[1], BELOW, linear=linear)
    wanted.rows[wanted.at[:, None] + np.arange(rows.shape[1])] = rows
    if linear:
        wanted.linear[wanted.linear_at] = weights
    return wanted


def rows_of(wanted: Wanted) -> F32:
    return wanted.rows[wanted.at[:, None] + np.arange(wanted.width)]


def test_hashes_are_those_of_the_compiled_loops() -> None:
    keys = np.array([*EDGES, *np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 100)], np.int64)
    with np.errstate(over="ignore"):
        expected = [np.uint64(compiled_splitmix64(key)).astype(np.int64) for key in keys.view(np.uint64)]
    assert splitmix64(torch.from_numpy(keys)).tolist() == expected


ids = st.one_of(st.sampled_from(EDGES), st.integers(-60, 60))
steps = st.lists(
    st.tuples(st.sampled_from(["find", "keep", "overwrite"]), st.lists(ids, min_size=1, max_size=40)), max_size=10
)


@pytest.mark.parametrize("device", DEVICES)
@settings(deadline=None, max_examples=40)
@given(steps=steps)
def test_a_cache_is_a_dict_that_forgets(device: str, steps: list[tuple[str, list[int]]]) -> None:
    cache, model = TorchCache(CacheShape(32, WIDTH, linear=True), device), dict[int, tuple[list[float], float]]()
    for turn, (step, batch) in enumerate(steps):
        keys = np.array(batch, np.int64)
        if step == "find":
            wanted = asked(keys)
            cache.find(wanted, MARK)
            assert [key in model for key in batch] == (wanted.found == MARK).tolist()
            for key, row, weight in zip(batch, rows_of(wanted), wanted.linear[wanted.linear_at], strict=True):
                assert np.isnan(row).all() if key not in model else (row.tolist(), weight) == model[key]
        else:
            rows = np.array([[turn, key % 997, 1, 2] for key in batch], np.float32)
            weights = rows[:, 0] + rows[:, 1] / 1000
            before = set(model)
            cache.keep(offered(keys, rows, weights), MARK, overwrite=step == "overwrite")
            held = set(cache.keys().tolist())
            assert held <= before | set(batch)
            # All of one set may come at once, so that only a half full one must take them.
            assert len(held) <= 32
            model = {key: value for key, value in model.items() if key in held}
            for key, row, weight in zip(batch, rows.tolist(), weights, strict=True):
                if key in held and (key not in before or step == "overwrite"):
                    model[key] = (row, weight)
        assert cache.counts()["rows"] == len(cache.keys()) == len(model)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("stored", FORMATS)
@pytest.mark.parametrize("linear", [False, True])
def test_with_room_it_finds_what_the_cache_of_the_cpu_finds(device: str, stored: RowFormat, linear: bool) -> None:
    rng = np.random.default_rng(0)
    pool = np.array([*EDGES, *rng.integers(-(2**63), 2**63 - 1, 395)], np.int64)
    table = rng.normal(size=(len(pool), 24)).astype(np.float32)
    table[7] = 0.0
    weights = rng.normal(size=len(pool)).astype(np.float32)
    shape = CacheShape(4000, 24, linear=linear, format=stored)
    caches = (DeviceCache(shape), TorchCache(shape, device))
    for turn in range(12):
        picks = rng.integers(0, len(pool), 90)
        marks = rng.choice([PENDING_STATUS, PENDING_STATUS, BELOW, DEFAULT_STATUS, STALE_STATUS | BELOW], 90).astype(
            np.uint8
        )
        tick, overwrite = (-1, 0, 3, 9, 14, 20)[turn // 2], turn % 5 == 4
        results = []
        for cache in caches:
            wanted = asked(pool[picks], 24, linear=linear)
            wanted.found[:] = marks
            cache.find(wanted, MARK, tick)
            results.append(wanted)
            taken = offered(pool[picks], table[picks] + np.float32(turn), weights[picks], linear=linear)
            taken.found[:] = marks
            # Of an id that repeats, one row: as lower tiers give.
            cache.keep(taken, MARK, tick, overwrite=overwrite)
        ours, theirs = results
        np.testing.assert_array_equal(ours.found, theirs.found)
        np.testing.assert_array_equal(ours.rows, theirs.rows)
        np.testing.assert_array_equal(ours.linear, theirs.linear)
        assert set(caches[0].keys().tolist()) == set(caches[1].keys().tolist())


@pytest.mark.parametrize("device", DEVICES)
def test_it_keeps_as_many_of_a_skewed_stream_as_the_cache_of_the_cpu(device: str) -> None:
    pool = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 5000)
    shape = CacheShape(500, WIDTH)
    hits = []
    for cache in (DeviceCache(shape), TorchCache(shape, device)):
        rng, found = np.random.default_rng(1), 0
        for turn in range(120):
            keys = pool[rng.zipf(1.2, 400) % len(pool)]
            wanted = asked(keys, linear=False)
            cache.find(wanted, MARK)
            found += int((wanted.found == MARK).sum()) if turn >= 40 else 0
            wanted.found[wanted.found == PENDING_STATUS] = BELOW
            cache.keep(wanted, MARK)
        hits.append(found / (80 * 400))
    assert hits[1] == pytest.approx(hits[0], abs=0.02)


@pytest.mark.parametrize("stored", FORMATS)
@pytest.mark.parametrize("overwrite", [False, True])
def test_no_shape_depends_on_data(stored: RowFormat, overwrite: bool) -> None:
    """Tensors without values: an operation that needs them, to know a shape or to go on, raises."""
    meta = torch.device("meta")
    sets = Sets.empty(8, WIDTH, stored, linear=True, device=meta)
    keys, tick = torch.empty(16, dtype=torch.int64, device=meta), torch.empty(1, dtype=torch.int32, device=meta)
    with pytest.raises((RuntimeError, NotImplementedError)):
        keys[keys > 0]
    found = find_rows(sets, keys, keys != 3, tick)
    keep_rows(
        *(sets, keys, torch.empty(16, WIDTH, device=meta), torch.empty(16, device=meta), ~found.held, tick),
        overwrite=overwrite,
    )
    assert found.rows.shape == (16, WIDTH)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_a_cuda_graph_captures_both() -> None:
    device = torch.device("cuda")
    sets = Sets.empty(64, WIDTH, linear=True, device=device)
    keys = torch.arange(32, device=device)
    rows, weights = torch.rand(32, WIDTH, device=device), torch.rand(32, device=device)
    tick = torch.full((1,), -1, dtype=torch.int32, device=device)
    every = torch.ones(32, dtype=torch.bool, device=device)

    def both() -> torch.Tensor:
        found = find_rows(sets, keys, every, tick)
        keep_rows(sets, keys, rows, weights, ~found.held, tick)
        return torch.where(found.held[:, None], found.rows, 0)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        both()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = both()
    keys += 1000
    rows += 1
    for _ in range(2):
        graph.replay()
    torch.testing.assert_close(out, rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_a_card_that_is_not_there_is_refused_by_name() -> None:
    assert cache_maker("auto") is cache_maker("cpu") is DeviceCache
    with pytest.raises(InvalidInput, match=r"embedding\.device\.backend is cuda"):
        cache_maker("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_the_device_tier_takes_a_card() -> None:
    generation = Generation("ranker", "1", "1", (Group(WIDTH, ("t",), 100),), True)
    tier = DeviceSource(SystemClock(), rows=64, backend="cuda").open(generation)
    keys, rows = np.arange(20), np.random.default_rng(0).random((20, WIDTH), np.float32)
    tier.offer([offered(keys, rows, rows[:, 0])], MARK)
    wanted = asked(keys)
    assert tier.find([wanted], MARK, 0.0) is None
    hit = wanted.found == MARK
    assert hit.sum() == tier.describe()["rows"] > 0
    np.testing.assert_array_equal(rows_of(wanted)[hit], rows[hit])


@pytest.mark.parametrize("device", DEVICES)
def test_threads_find_whole_rows_of_their_ids(device: str) -> None:
    cache = TorchCache(CacheShape(64, 8), device)
    wrong = []

    def use(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(60):
            keys = rng.integers(0, 200, 50)
            wanted = asked(keys, 8, linear=False)
            cache.find(wanted, MARK)
            hit = wanted.found == MARK
            rows = rows_of(wanted)[hit]
            # Every number of a row is its id and one writer's.
            if not ((rows[:, :1] == rows).all() and (rows[:, 0] // 10 == keys[hit]).all()):
                wrong.append(rows)
            mine = np.repeat((keys * 10 + seed).astype(np.float32)[:, None], 8, axis=1)
            cache.keep(offered(keys, mine, mine[:, 0], linear=False), MARK, overwrite=bool(rng.integers(2)))

    threads = [threading.Thread(target=use, args=(seed,), name=f"user-{seed}") for seed in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert cache.counts()["rows"] == 64

"""The embedding bench on a small table: every case gives the right rows, and figures under the agreed names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.embedding import Settings, run
from benchmarks.hierarchy.redis_server import PrivateRedis
from benchmarks.hierarchy.stacks import CacheLevel, Request, Stack, segment_tier, warm
from benchmarks.hierarchy.tables import Distribution, IdStream, Tables
from pipeline.embedding.device.cache import CacheShape, DeviceCache
from pipeline.embedding.device.torch_cache import TorchCache


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    return Tables(tmp_path_factory.mktemp("tables"), 2000, 8)


def test_a_table_is_written_as_a_bundle_that_holds_its_rows(tables: Tables) -> None:
    stored = tables.base.table("t")
    np.testing.assert_array_equal(stored.ids, tables.ids)
    np.testing.assert_array_equal(stored.rows, tables.rows())
    assert len(np.unique(tables.ids)) == 2000
    everywhere = np.arange(2000)
    np.testing.assert_array_equal(tables.rows_at(everywhere, 0), stored.rows)
    changed = (stored.rows != tables.rows_at(everywhere, 1)).any(axis=1)
    assert np.flatnonzero(changed).tolist() == tables.touched.tolist()


@pytest.mark.parametrize("distribution", ["uniform", "zipf"])
def test_streams_stay_inside_the_table(distribution: Distribution) -> None:
    drawn = IdStream.over(50, distribution, 0).draw(20_000)
    counts = np.bincount(drawn, minlength=50)
    assert len(counts) == 50
    # Zipf with exponent 1.05 over 50: the first of them has 23.9 % of all.
    assert counts.max() / len(drawn) == pytest.approx(0.239 if distribution == "zipf" else 0.02, abs=0.012)


@pytest.mark.parametrize("make", [DeviceCache, lambda shape: TorchCache(shape, "cpu")], ids=["compiled", "torch"])
def test_a_cache_above_segments_gives_their_rows(
    tables: Tables, make: Callable[[CacheShape], DeviceCache | TorchCache]
) -> None:
    stack = Stack(CacheLevel(CacheShape(200, 8), make), segment_tier(tables, 1))
    warm(stack, tables, IdStream.over(2000, "zipf", 0), 20_000)
    places, out = np.arange(2000), np.zeros((2000, 8), np.float32)
    marks = stack(Request.of(tables, places), out)
    np.testing.assert_array_equal(out, tables.rows_at(places, 1))
    assert set(np.unique(marks)) == {1, 2}


@pytest.mark.skipif(not PrivateRedis.installed(), reason="redis-server is not installed")
def test_all_cases_of_a_small_table(tmp_path: Path) -> None:
    settings = Settings((3000,), (8,), ("zipf",), (3900,), (1, 2), peers=False, hits=4000)
    report = run(settings, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
    figures = {(row.case, row.metric): row for row in report.rows}
    for threads in ("", "/threads=2"):
        setting = f"zipf/rows=3000/width=8/ids=3900{threads}"
        for name in ("device", "segment", "overlay+segment", "redis", "device:0.1+segment", "device:0.1+redis"):
            time = figures[f"{name}/{setting}", "time"]
            assert time.limit == figures[f"limit/{setting}", "time"].value
            shares = [row.value for row in report.rows if row.case == time.case and row.metric.startswith("hit_rate_")]
            # A set of a cache with room for all may still be full.
            assert sum(shares) == pytest.approx(1.0, abs=0.05 if name == "device" else 1e-9)
    assert figures["segment/rows=3000/width=8", "bytes_per_row"].ok is True
    for share in ("0.01", "0.026", "0.1"):
        row = figures[f"tinylfu+lru/zipf/rows=4000/capacity={share}", "hit_rate"]
        assert 0 < row.value < 1

"""The sample of the retained window."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.features import Bag, Rows
from transfer.online.replay_store import ReplayRows, Reservoir


def chunk(start: int, stop: int) -> Rows:
    values = np.arange(start, stop)
    bag = Bag(0, np.arange(stop - start + 1, dtype=np.int32), values)
    return Rows(values[:, None], values[:, None].astype(np.float32), (bag,))


def filled(capacity: int, seed: int, total: int = 1000, size: int = 37) -> Reservoir:
    sample = Reservoir(capacity, seed)
    for start in range(0, total, size):
        stop = min(total, start + size)
        sample.add(chunk(start, stop), (np.arange(start, stop) % 2).astype(np.float32))
    return sample


def test_sample_is_uniform_and_rows_stay_whole(tmp_path: Path) -> None:
    counts = np.zeros(1000)
    for seed in range(60):
        path = tmp_path / f"{seed}.safetensors"
        assert filled(100, seed).save(path, lambda rows: rows.ids[:, 0].astype(np.float32)) == 100
        kept = ReplayRows(path)
        ids = kept.rows.ids[:, 0]
        assert len(set(ids.tolist())) == 100
        np.testing.assert_array_equal(kept.labels, ids % 2)
        np.testing.assert_array_equal(kept.teacher, ids)
        np.testing.assert_array_equal(kept.rows.bags[0].values, ids)
        counts[ids] += 1
    # 6 expected in each; the halves of the stream are kept alike.
    assert abs(counts[:500].sum() - counts[500:].sum()) < 300


def test_a_small_window_is_kept_whole(tmp_path: Path) -> None:
    path = tmp_path / "kept.safetensors"
    assert filled(5000, 0).save(path, lambda rows: np.zeros(len(rows), np.float32)) == 1000


def test_a_draw_depends_on_seed_and_batch_alone(tmp_path: Path) -> None:
    path = tmp_path / "kept.safetensors"
    filled(100, 0).save(path, lambda rows: np.zeros(len(rows), np.float32))
    kept = ReplayRows(path)
    first = kept.draw(10, seed=1, batch=5)[0].ids
    np.testing.assert_array_equal(first, ReplayRows(path).draw(10, seed=1, batch=5)[0].ids)
    assert not np.array_equal(first, kept.draw(10, seed=1, batch=6)[0].ids)


def test_a_file_that_is_no_sample_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="baton transfer"):
        ReplayRows(tmp_path / "absent.safetensors")
    with pytest.raises(DataError, match="no rows"):
        Reservoir(10, 0).save(tmp_path / "x.safetensors", lambda rows: np.empty(0, np.float32))

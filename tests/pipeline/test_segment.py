from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
from handmade import WIDTH, random_tables, write_bundle

from pipeline.bundle import Bundle, Table
from pipeline.embedding.segment import Segment, ensure_segment, salt_of, sweep
from pipeline.errors import BundleError
from pipeline.schema import FieldSpec, Schema
from pipeline.versions import Repository


@pytest.fixture
def bundle(repository: Repository) -> Bundle:
    return write_bundle(repository, random_tables(1))


def contents(segment: Segment) -> dict[int, tuple[list[float], float]]:
    """Key -> row and weight, read cell by cell."""
    held = segment.words[:, 2] > 0
    return {
        int(key): (segment.rows[int(slot) - 1].tolist(), float(weight))
        for key, slot, weight in zip(
            segment.cells[held, 0], segment.words[held, 2], segment.weights[held, 3], strict=True
        )
    }


def expected(bundles: list[Bundle]) -> dict[int, tuple[list[float], float]]:
    out = {}
    for bundle in bundles:
        for name in bundle.manifest.tables:
            table = bundle.table(name)
            assert table.linear is not None
            for i, row, weight in zip(table.ids.tolist(), table.rows.tolist(), table.linear.tolist(), strict=True):
                out[i ^ salt_of(name)] = (row, weight)
    return out


def test_a_segment_holds_every_row_of_every_table(bundle: Bundle, segments: Path) -> None:
    segment = ensure_segment(segments, [bundle], WIDTH)
    assert contents(segment) == expected([bundle])
    assert not segment.rows.flags.writeable
    assert not segment.cells.flags.writeable


def test_deltas_merge_newest_first(repository: Repository, bundle: Bundle, segments: Path) -> None:
    deltas = [write_bundle(repository, random_tables(s, 30), base="1") for s in (2, 3)]
    segment = ensure_segment(segments, deltas, WIDTH)
    assert contents(segment) == expected(deltas)
    # Ids that several deltas hold take one row.
    assert len(segment) == len(expected(deltas)) < sum(len(d.table(t).ids) for d in deltas for t in d.manifest.tables)


def test_it_is_built_once_and_found_again(bundle: Bundle, segments: Path) -> None:
    first = ensure_segment(segments, [bundle], WIDTH)
    assert first.path is not None
    born = os.stat(first.path / "rows.bin").st_ino
    again = ensure_segment(segments, [bundle], WIDTH)
    assert again.path == first.path
    assert os.stat(first.path / "rows.bin").st_ino == born


def build_elsewhere(root: Path, segments: Path) -> tuple[str, int]:
    segment = ensure_segment(segments, [Repository(root).open("ranker")], WIDTH)
    assert segment.path is not None
    return str(segment.path), os.stat(segment.path / "rows.bin").st_ino


def test_processes_that_start_together_share_one(repository: Repository, bundle: Bundle, segments: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.starmap(build_elsewhere, [(repository.root, segments)] * 4)
    assert len(set(found)) == 1
    assert [p.name for p in segments.iterdir() if p.is_dir()] == [Path(found[0][0]).name]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def garble(path: Path) -> None:
    path.write_bytes(b"{")


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("rows.bin", cut),
        ("cells.bin", cut),
        ("rows.bin", flip),
        ("cells.bin", flip),
        ("rows.bin", Path.unlink),
        ("segment.json", Path.unlink),
        ("segment.json", garble),
    ],
)
def test_a_torn_segment_is_refused_and_built_anew(bundle: Bundle, segments: Path, name: str, harm: object) -> None:
    segment = ensure_segment(segments, [bundle], WIDTH)
    path = segment.path
    assert path is not None
    whole = {p.name: p.read_bytes() for p in path.iterdir()}
    damaged = path.with_name("damaged")
    path.rename(damaged)
    harm(damaged / name)  # type: ignore[operator]
    damaged.rename(path)
    with pytest.raises(BundleError, match=path.name):
        Segment.open(path, _source_of(whole), WIDTH)
    assert contents(ensure_segment(segments, [bundle], WIDTH)) == expected([bundle])
    assert {p.name: p.read_bytes() for p in path.iterdir()} == whole
    assert not [p for p in segments.iterdir() if p.is_dir() and p != path]


def _source_of(files: dict[str, bytes]) -> str:
    return str(json.loads(files["segment.json"])["source"])


def test_a_segment_of_something_else_is_refused(repository: Repository, bundle: Bundle, segments: Path) -> None:
    segment = ensure_segment(segments, [bundle], WIDTH)
    other = ensure_segment(segments, [write_bundle(repository, random_tables(2))], WIDTH)
    assert segment.path is not None
    assert other.path is not None
    with pytest.raises(BundleError, match="another source"):
        Segment.open(segment.path, "0" * 64, WIDTH)
    for name in ("cells.bin", "rows.bin", "segment.json"):
        os.replace(other.path / name, segment.path / name)
    assert contents(ensure_segment(segments, [bundle], WIDTH)) == expected([bundle])


def test_a_build_that_dies_leaves_room_for_the_next(
    bundle: Bundle, segments: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        ensure_segment(segments, [bundle], WIDTH)
    monkeypatch.undo()
    assert not [p for p in segments.iterdir() if p.is_dir()]
    assert contents(ensure_segment(segments, [bundle], WIDTH)) == expected([bundle])


def test_sweep_keeps_what_is_in_use(repository: Repository, bundle: Bundle, segments: Path) -> None:
    kept = ensure_segment(segments, [bundle], WIDTH)
    gone = ensure_segment(segments, [write_bundle(repository, random_tables(2))], WIDTH)
    assert kept.path is not None
    rows = gone.rows.copy()
    assert sweep(segments, [kept.path]) == 1
    assert [p for p in segments.iterdir() if p.is_dir()] == [kept.path]
    np.testing.assert_array_equal(gone.rows, rows)  # who has it mapped keeps it


@pytest.mark.parametrize(("width", "linear"), [(1, True), (4, True), (8, False), (16, True), (64, False)])
def test_memory_stays_below_1_7_times_the_raw_bytes(
    repository: Repository, segments: Path, width: int, linear: bool
) -> None:
    rng = np.random.default_rng(1)
    ids = np.unique(rng.integers(1, 2**63 - 1, 20_000, np.int64))
    rows = np.zeros((len(ids), width), np.float32)
    weights = np.zeros(len(ids), np.float32) if linear else None
    table = Table(ids, rows, np.zeros(len(ids), np.int64), weights)
    schema = Schema(fields=(FieldSpec(name="t", role="candidate", kind="id"),))
    bundle = write_bundle(repository, {"t": table}, schema=schema, width=width, linear=linear)
    segment = ensure_segment(segments, [bundle], width)
    assert segment.bytes <= 1.7 * len(ids) * (8 + 4 * width + 4 * linear)

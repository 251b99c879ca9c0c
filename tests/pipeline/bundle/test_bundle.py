from __future__ import annotations

import hashlib
import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from handmade import SCHEMA, WIDTH, random_tables, write_bundle
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import save_file

from pipeline.arrays import F32
from pipeline.bundle.bundle import Bundle, BundleWriter, GateReport, Manifest, Table, TableInfo
from pipeline.bundle.row_format import RowFormat, decode_rows, encode_rows
from pipeline.bundle.versions import Repository
from pipeline.errors import BundleError, InvalidInput, NotReady


@pytest.fixture
def bundle(repository: Repository) -> Bundle:
    return write_bundle(repository, random_tables(1))


def edit(bundle: Bundle, **changes: Any) -> None:
    path = bundle.path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def replace_file(bundle: Bundle, name: str, data: bytes) -> None:
    """Put other bytes in place of a file and make the manifest agree, as someone who forges a bundle would."""
    (bundle.path / name).write_bytes(data)
    files = json.loads((bundle.path / "manifest.json").read_text())["files"]
    edit(bundle, files={**files, name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}})


def test_what_was_written_is_read(bundle: Bundle) -> None:
    opened = Bundle.open(bundle.path)
    assert opened.manifest == bundle.manifest
    assert opened.frozen
    for name, table in random_tables(1).items():
        read = opened.table(name)
        for attribute in ("ids", "rows", "counts", "linear"):
            np.testing.assert_array_equal(getattr(read, attribute), getattr(table, attribute))
    assert not list(bundle.path.parent.glob(".*.????????"))


@pytest.mark.parametrize("name", ["dense.onnx", "tables/user.safetensors", "tables/genres.linear.safetensors"])
def test_one_flipped_byte_is_found_and_named(bundle: Bundle, name: str) -> None:
    path = bundle.path / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match="SHA-256") as refused:
        Bundle.open(bundle.path)
    assert refused.value.field == name


def test_a_cut_or_missing_file_is_found_without_hashing(bundle: Bundle) -> None:
    path = bundle.path / "dense.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"dense\.onnx has"):
        Bundle.open(bundle.path, verify=False)
    path.unlink()
    with pytest.raises(BundleError, match=r"dense\.onnx is listed"):
        Bundle.open(bundle.path, verify=False)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "tables/../../outside", "..\\outside", ""])
def test_paths_that_leave_the_directory_are_refused(bundle: Bundle, name: str) -> None:
    (bundle.path.parent / "outside").write_bytes(b"x")
    files = {**bundle.manifest.model_dump(mode="json")["files"], name: {"sha256": "0" * 64, "bytes": 1}}
    edit(bundle, files=files)
    with pytest.raises(BundleError, match="leaves"):
        Bundle.open(bundle.path, verify=False)


def test_a_link_that_leaves_the_directory_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    name = "tables/user.safetensors"
    outside = tmp_path / "outside"
    shutil.move(bundle.path / name, outside)
    (bundle.path / name).symlink_to(outside)
    with pytest.raises(BundleError, match=r"user\.safetensors"):
        Bundle.open(bundle.path, verify=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "0"}, "version"),
        ({"version": "../1"}, "version"),
        ({"name": "../x"}, "name"),
        ({"surprise": 1}, "surprise"),
        ({"format": 2}, "format"),
        ({"base": "1"}, "go together"),
        ({"base": "1", "deltas": ["7"]}, "end with the version itself"),
        ({"tables": {}}, "not listed in tables"),
        ({"calibration": {"alpha": -1, "beta": 0}}, "alpha"),
    ],
)
def test_a_manifest_that_does_not_hold_together(bundle: Bundle, changes: dict[str, Any], message: str) -> None:
    edit(bundle, **changes)
    with pytest.raises(BundleError, match=message):
        Bundle.open(bundle.path, verify=False)


def test_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no manifest\.json"):
        Bundle.open(tmp_path)
    (tmp_path / "manifest.json").write_bytes(b"\x80pickle")
    with pytest.raises(BundleError, match="JSON"):
        Bundle.open(tmp_path)


def test_a_forged_table_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    name = "tables/user.safetensors"
    ids, rows, counts = np.array([3, 2], np.int64), np.zeros((2, WIDTH), np.float32), np.zeros(2, np.int64)
    for forged, message in (
        ({"ids": ids, "rows": rows, "counts": counts}, "sorted and unique"),
        ({"ids": ids[::-1].astype(np.int32), "rows": rows, "counts": counts}, "int64"),
        ({"ids": ids[::-1].copy(), "rows": rows[:, :2].copy(), "counts": counts}, "rows"),
    ):
        save_file(forged, tmp_path / "forged")
        replace_file(bundle, name, (tmp_path / "forged").read_bytes())
        with pytest.raises(BundleError, match=message):
            Bundle.open(bundle.path).table("user")
    replace_file(bundle, name, b"not tensors")
    with pytest.raises(BundleError, match="user"):
        Bundle.open(bundle.path).table("user")


def test_tables_hold_other_ids_than_their_weights(bundle: Bundle) -> None:
    ids = np.arange(bundle.manifest.tables["user"].rows)
    save_file({"ids": ids, "rows": np.ones((len(ids), WIDTH), np.float32)}, bundle.path.parent / "rows")
    replace_file(bundle, "tables/user.safetensors", (bundle.path.parent / "rows").read_bytes())
    with pytest.raises(BundleError, match=r"user\.linear"):
        Bundle.open(bundle.path).table("user")


@given(
    st.integers(1, 40).flatmap(lambda d: arrays(np.float32, (5, d), elements=st.floats(-6e4, 6e4, width=32))),
)
def test_stored_rows_differ_by_no_more_than_is_documented(rows: F32) -> None:
    largest = np.abs(rows).max(1, keepdims=True).astype(np.float64)
    bound = {
        "float32": np.zeros(1),
        "float16": np.maximum(np.abs(rows) * 2.0**-11, 2.0**-25),
        "int8": largest / 254 * (1 + 1e-5) + 1e-37,
    }
    for stored in get_args(RowFormat):
        coded, scales = encode_rows(rows, stored)
        assert coded.dtype == stored
        assert (np.abs(decode_rows(coded, scales).astype(np.float64) - rows) <= bound[stored]).all()


@pytest.mark.parametrize("stored", ["float16", "int8"])
def test_rows_that_cannot_be_stored_are_refused(repository: Repository, stored: RowFormat) -> None:
    for value in (np.inf, np.nan, *([1e5] if stored == "float16" else [])):
        tables = random_tables(1)
        tables["item"].rows[1, 2] = value
        with pytest.raises(InvalidInput, match="row"):
            write_bundle(repository, tables, stored=stored)
        assert repository.versions("ranker") == []


@pytest.mark.parametrize("stored", ["float32", "float16", "int8"])
def test_tables_come_back_as_float32_and_lie_as_stored(repository: Repository, stored: RowFormat) -> None:
    tables = random_tables(1)
    bundle = write_bundle(repository, tables, stored=stored)
    for name, table in tables.items():
        coded, scales = encode_rows(table.rows, stored)
        found = bundle.stored_table(name)
        assert found.rows.dtype == stored
        np.testing.assert_array_equal(found.rows, coded)
        again = bundle.table(name)
        np.testing.assert_array_equal(again.rows, decode_rows(coded, scales))
        np.testing.assert_array_equal(again.ids, table.ids)
        np.testing.assert_array_equal(again.linear, table.linear)
        again.rows[:] = 0  # a copy: training goes on from it


def test_a_table_of_another_dtype_than_it_says_is_refused(repository: Repository) -> None:
    bundle = write_bundle(repository, random_tables(1), stored="int8")
    tables = json.loads((bundle.path / "manifest.json").read_text())["tables"]
    good = dict(bundle.tensors("tables/user.safetensors"))
    for says, harm, message in (
        ("float16", {}, "holds int8 where the manifest says float16"),
        ("int8", {"scales": good["scales"].astype(np.float64)}, "scales must be float32"),
        ("int8", {"scales": good["scales"][:-1].copy()}, "scales must be float32"),
        ("int8", {"scales": None}, "no tensor 'scales'"),
    ):
        edit(bundle, tables={**tables, "user": {**tables["user"], "dtype": says}})
        forged = {key: value for key, value in (good | harm).items() if value is not None}
        save_file(forged, bundle.path.parent / "rows")
        replace_file(bundle, "tables/user.safetensors", (bundle.path.parent / "rows").read_bytes())
        with pytest.raises(BundleError, match=message):
            Bundle.open(bundle.path).table("user")


def test_an_existing_bundle_is_never_overwritten(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="never changed"), BundleWriter(bundle.path):
        pass


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file may grow beyond `limit` bytes: what a program sees of a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [0, 500, 2_000])
def test_a_writer_on_a_full_disk_leaves_nothing(repository: Repository, limit: int) -> None:
    tables = random_tables(1)
    with full_disk(limit), pytest.raises(NotReady, match=r"ranker.* cannot be written: .*File too large"):
        write_bundle(repository, tables)
    assert repository.versions("ranker") == []
    assert [p.name for p in (repository.root / "ranker").iterdir()] == [".versions"]
    assert write_bundle(repository, tables).manifest.version == "2"


def test_a_refused_version_needs_no_network(repository: Repository) -> None:
    schema = SCHEMA.with_width(WIDTH)
    tables = {
        f.table_name: TableInfo(width=WIDTH, rows=0, default=(0.0,) * WIDTH, linear_default=None)
        for f in schema.embedded
    }
    manifest = Manifest(
        name="ranker",
        version="1",
        architecture="lr",
        schema=schema,
        tables=tables,
        gate=GateReport(passed=False, reasons=("bias",)),
    )
    with BundleWriter(repository.path("ranker", "1")) as writer:
        refused = writer.finish(manifest)
    assert not Bundle.open(refused.path).manifest.servable
    with BundleWriter(repository.path("ranker", "2")) as writer, pytest.raises(BundleError, match=r"dense\.onnx"):
        writer.finish(manifest.model_copy(update={"version": "2", "gate": None}))


def test_empty_tables_are_fine(repository: Repository) -> None:
    none = Table(
        np.zeros(0, np.int64), np.zeros((0, WIDTH), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32)
    )
    bundle = write_bundle(repository, {f.name: none for f in SCHEMA.embedded})
    assert len(Bundle.open(bundle.path).table("user").ids) == 0

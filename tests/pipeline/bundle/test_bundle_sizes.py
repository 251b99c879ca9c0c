"""What a bundle's files say of their size is not believed: each is bounded, and refused by file and number."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from handmade import SCHEMA, random_tables, write_bundle
from pyarrow import ipc
from safetensors.numpy import save_file

from pipeline.bundle.bundle import Bundle
from pipeline.bundle.versions import Repository
from pipeline.errors import BundleError
from pipeline.model.model import Model
from pipeline.model.warmup import read_warmup, synthetic_requests, write_warmup
from pipeline.schema import FieldSpec, Schema

MANIFEST = "manifest.json"
TABLE = "tables/user.safetensors"


@pytest.fixture
def bundle(repository: Repository) -> Bundle:
    return write_bundle(repository, random_tables(1))


def edit(bundle: Bundle, **changes: Any) -> None:
    path = bundle.path / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def put(bundle: Bundle, name: str, data: bytes) -> None:
    """Put a file into a bundle, listed and hashed like any."""
    (bundle.path / name).write_bytes(data)
    files = json.loads((bundle.path / MANIFEST).read_text())["files"]
    edit(bundle, files={**files, name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}})


def replaced_by(kind: str, path: Path) -> None:
    path.rename(path.with_name("aside"))
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("aside")
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()


@pytest.mark.parametrize("kind", ["fifo", "link", "device", "folder"])
@pytest.mark.parametrize("name", [MANIFEST, "dense.onnx", TABLE])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(bundle: Bundle, name: str, kind: str) -> None:
    replaced_by(kind, bundle.path / name)
    with pytest.raises(BundleError, match="regular file") as refused:
        Bundle.open(bundle.path)
    assert name in str(refused.value)


def test_a_linked_folder_is_no_part_of_a_bundle(bundle: Bundle) -> None:
    (bundle.path / "tables").rename(bundle.path / "aside")
    (bundle.path / "tables").symlink_to("aside")
    with pytest.raises(BundleError, match="regular file inside the bundle"):
        Bundle.open(bundle.path, verify=False)


def test_a_manifest_is_read_up_to_its_bound(bundle: Bundle) -> None:
    path = bundle.path / MANIFEST
    with path.open("ab") as file:
        file.truncate(1 << 40)  # a sparse file
    with pytest.raises(BundleError, match=r"manifest\.json has 1,099,511,627,776 bytes; at most 8,388,608"):
        Bundle.open(bundle.path)
    path.write_text("[" * 100_000)
    with pytest.raises(BundleError, match="nested too deeply"):
        Bundle.open(bundle.path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hyperparameters": {"x": [[]] * 400_000}}, "hyperparameters are more than"),
        ({"architecture": "x" * 257}, "architecture"),
        ({"files": {f"f{i}": {"sha256": "0" * 64, "bytes": 0} for i in range(4097)}}, "files"),
        ({"files": {"manifest.json": {"sha256": "0" * 64, "bytes": 0}}}, "no name of a bundle's file"),
        ({"files": {"a\x1bb": {"sha256": "0" * 64, "bytes": 0}}}, "no name of a bundle's file"),
        ({"files": {"a//b": {"sha256": "0" * 64, "bytes": 0}}}, "no name of a bundle's file"),
        ({"files": {"a": {"sha256": "0" * 64, "bytes": 10**300}}}, r"files\.a\.bytes"),
        ({"created_ms": 10**300}, "created_ms"),
        ({"hyperparameters": {"x": json.loads("[" * 300 + "]" * 300)}}, "nested too deeply"),
        ({"base": "1", "deltas": ["2"] * 100_000 + ["3"], "version": "3"}, "ascending order"),
        ({"base": "2", "deltas": ["1", "3"], "version": "3"}, "ascending order"),
    ],
)
def test_a_manifest_may_not_ask_for_much(bundle: Bundle, changes: dict[str, Any], message: str) -> None:
    edit(bundle, **changes)
    with pytest.raises(BundleError, match=message):
        Bundle.open(bundle.path, verify=False)


def test_fields_that_share_a_wide_table_are_counted(bundle: Bundle) -> None:
    field = {"role": "candidate", "kind": "id", "table": "user", "width": 4096}
    raw = json.loads((bundle.path / MANIFEST).read_text())
    shared = [{"name": f"f{i}", **field} for i in range(65)]
    tables = {"user": {"width": 4096, "rows": 0, "default": [0] * 4096, "linear_default": 0.0}}
    edit(bundle, schema={**raw["schema"], "fields": shared}, tables=tables)
    with pytest.raises(BundleError, match=r"266,240 numbers over all fields; at most 262,144"):
        Bundle.open(bundle.path, verify=False)


def _header(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


def _table_with(entry: dict[str, Any], data: bytes = bytes(16)) -> bytes:
    return _header(json.dumps({"ids": entry}).encode()) + data


IDS = {"dtype": "I64", "shape": [2], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\1", "1 bytes"),
        (_header(b"{}", 1 << 62), "4,611,686,018,427,387,904 bytes"),
        (_header(b"{}" + b" " * (4 << 20)), r"4,194,306 bytes of [0-9,]+; at most 4,194,304"),
        (_header(b"[" * 100_000), "nested too deeply"),
        (_header(b"[]"), "no mapping"),
        (_table_with({**IDS, "shape": [1 << 40, 1 << 20]}), r"1099511627776, 1048576"),
        (_table_with({**IDS, "shape": [1 << 63]}), "none"),
        (_table_with({**IDS, "shape": [-2]}), "none"),
        (_table_with({**IDS, "shape": [2.0]}), "none"),
        (_table_with({**IDS, "shape": [1] * 33 + [2]}), "none"),
        (
            _table_with({**IDS, "data_offsets": [0, 1 << 50], "shape": [1 << 47]}),
            "bytes 0 to 1,125,899,906,842,624 of 16",
        ),
        (_table_with({**IDS, "data_offsets": [8, 16], "shape": [1]}), "begins at byte 8"),
        (_table_with({**IDS, "data_offsets": [0, 8], "shape": [1]}), "end at byte 8 of 16"),
        (_table_with({**IDS, "dtype": "Q9"}), "no dtype"),
        (_table_with({"dtype": "I64"}), "no dtype"),
    ],
)
def test_tensors_lie_in_their_file_as_its_header_says(bundle: Bundle, data: bytes, message: str) -> None:
    put(bundle, TABLE, data)
    opened = Bundle.open(bundle.path)
    for read in (opened.table, opened.stored_table):
        with pytest.raises(BundleError, match=message) as refused:
            read("user")
        assert TABLE in str(refused.value)


def test_tensors_are_read_as_the_library_writes_them(bundle: Bundle, tmp_path: Path) -> None:
    arrays = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array([True]), "c": np.empty((0, 5), np.int8)}
    save_file(arrays, tmp_path / "f", metadata={"k": "v"})
    (bundle.path / "training").mkdir()
    put(bundle, "training/state.safetensors", (tmp_path / "f").read_bytes())
    found = Bundle.open(bundle.path).tensors("training/state.safetensors")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_a_table_has_the_rows_that_memory_was_counted_for(bundle: Bundle) -> None:
    tables = json.loads((bundle.path / MANIFEST).read_text())["tables"]
    edit(bundle, tables={**tables, "user": {**tables["user"], "rows": 1}})
    with pytest.raises(BundleError, match="rows where the manifest says 1"):
        Bundle.open(bundle.path).table("user")


def _written(path: Path, table: pa.Table, **options: Any) -> None:
    with ipc.new_file(str(path), table.schema, options=ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)


def _bomb(table: pa.Table) -> pa.Table:
    size = (64 << 20) // len(table)
    return table.append_column("bomb", pa.array([bytes(size)] * len(table), pa.large_binary()))


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (_bomb, {"compression": "zstd"}, "'bomb' is not in the schema"),
        (lambda t: t, {"compression": "zstd"}, "compressed"),
        (lambda t: t, {"compression": "lz4"}, "compressed"),
        (lambda t: t, {"metadata_version": ipc.MetadataVersion.V4}, "V5"),
        (lambda t: pa.concat_tables([t] * 1000), {}, r"rows of \d+ columns; at most 100,000"),
        (lambda t: pa.concat_tables([t] * 400), {}, "1,200 requests; at most 1,000"),
        (lambda t: t.set_column(1, t.column_names[1], t[1].dictionary_encode()), {}, "as int64"),
        (lambda t: t.set_column(1, t.column_names[1], pa.nulls(len(t))), {}, "as int64"),
        (lambda t: t.set_column(1, t.column_names[1], pa.nulls(len(t), pa.int64())), {}, "missing"),
        (lambda t: t.append_column(t.column_names[1], t[1]), {}, "once"),
        (lambda t: pa.concat_tables([t.slice(0, 1)] * 1001), {}, "1,000 record batches"),
        (lambda t: t.drop_columns(["request"]), {}, "'request'"),
    ],
)
def test_warm_up_rows_are_bounded_before_they_are_unpacked(
    bundle: Bundle, segments: Path, change: Callable[[pa.Table], pa.Table], options: dict[str, Any], message: str
) -> None:
    path = bundle.path / "warmup.arrow"
    write_warmup(path, SCHEMA, synthetic_requests(SCHEMA))
    sizes = [features.n for features in read_warmup(path, SCHEMA)]
    assert sizes == [1, 8, 100]
    _written(path, change(ipc.open_file(str(path)).read_all()), **options)
    put(bundle, "warmup.arrow", path.read_bytes())
    before = pa.default_memory_pool().max_memory()
    with pytest.raises(BundleError, match=message) as refused:
        Model.load(Repository(bundle.path.parents[1]), "ranker", segments=segments)
    assert "warmup.arrow" in str(refused.value)
    assert pa.default_memory_pool().max_memory() - before < 32 << 20


def test_many_columns_are_checked_in_a_time_that_grows_with_their_number(tmp_path: Path) -> None:
    fields = (FieldSpec(name=f"n{at}", role="candidate", kind="number") for at in range(8_000))
    schema = Schema(fields=tuple(fields))
    write_warmup(tmp_path / "w", schema, synthetic_requests(schema, (1,)))
    begin = time.process_time()
    assert len(read_warmup(tmp_path / "w", schema)) == 1
    assert time.process_time() - begin < 6, "by comparing each with all others it was a minute"


def test_a_warm_up_file_without_rows_has_no_requests(tmp_path: Path) -> None:
    write_warmup(tmp_path / "w", SCHEMA, synthetic_requests(SCHEMA))
    _written(tmp_path / "w", ipc.open_file(str(tmp_path / "w")).read_all().slice(0, 0))
    assert read_warmup(tmp_path / "w", SCHEMA) == []

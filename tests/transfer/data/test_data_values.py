"""Values of a log mean what its files say: exact ids of every type, declared labels, declared texts of missing values."""

from __future__ import annotations

import datetime
import resource
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.errors import DataError
from pipeline.farmhash import farm64
from pipeline.hashing import hash_value
from pipeline.index import Index
from pipeline.schema import MISSING_TEXTS, FieldSpec, Schema
from transfer.data import Log, LogChunk, open_log

PLAIN: dict[str, Any] = {
    "name": "clicks",
    "files": ["*.parquet"],
    "time": {"column": "t", "unit": "ms"},
    "label": {"column": "y", "positive": [1]},
    "fields": [{"name": "item", "role": "candidate"}],
}
START = 1_700_000_000_000
BIG = 2**53 + 1
NUMBERS = [Decimal(BIG), Decimal(BIG + 1), None]


def write(folder: Path, name: str = "1.parquet", **columns: Any) -> None:
    n = len(next(iter(columns.values())))
    place = folder / name
    place.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"t": range(START, START + n), "y": [i % 2 for i in range(n)], **columns}), place)


def opened(folder: Path, like: Schema | None = None, **changes: Any) -> Log:
    path = folder / "dataset.yaml"
    path.write_text(yaml.safe_dump(PLAIN | changes), "utf-8")
    return open_log(path, folder / "cache", like=like)


def read(folder: Path, **changes: Any) -> LogChunk:
    (chunk,) = opened(folder, **changes).chunks()
    return chunk


def refused(folder: Path, *said: str, **changes: Any) -> None:
    with pytest.raises(DataError) as caught:
        read(folder, **changes)
    for word in said:
        assert word in str(caught.value)


def ids(*values: Any, field: str = "item") -> list[int]:
    return [hash_value(field, value) for value in values]


UUID = uuid.UUID(int=7)


@pytest.mark.parametrize(
    ("column", "texts"),
    [
        (pa.array([BIG, BIG + 1, None]), [BIG, BIG + 1, None]),
        (pa.array([2**64 - 1, 2**63, None], pa.uint64()), [2**64 - 1, 2**63, None]),
        (pa.array(NUMBERS, pa.decimal128(20, 0)), [BIG, BIG + 1, None]),
        (pa.array([Decimal("1.50"), Decimal("10.00"), Decimal("-0.25")], pa.decimal128(9, 2)), ["1.5", "10", "-0.25"]),
        (pa.array([1.0, 0.1, -0.0]), [1, 0.1, 0]),
        (pa.array([1.5, 0.1, float("nan")], pa.float32()), [1.5, float(np.float32(0.1)), None]),
        (pa.array([True, False, None]), [1, 0, None]),
        (pa.array(["007", " x ", ""]), ["007", " x ", None]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
        (pa.array([b"a", "ü".encode(), None], pa.binary()), ["a", "ü", None]),
        (pa.array([UUID.bytes, None, UUID.bytes], pa.uuid()), [str(UUID), None, str(UUID)]),
        (pa.nulls(3), [None, None, None]),
    ],
)
def test_an_id_is_the_exact_text_of_its_value(tmp_path: Path, column: pa.Array, texts: list[Any]) -> None:
    write(tmp_path, item=column)
    chunk = read(tmp_path, routing_key="item")
    assert chunk.rows.ids[:, 0].tolist() == ids(*texts)
    assert chunk.routing_key.tolist() == ["" if t is None else str(t) for t in texts]


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pa.array([1.0, 2.0**53]), "2^53"),
        (pa.array([1.0, 2.0**24], pa.float32()), "2^24"),
        (pa.array(np.array([1, 2**11], np.float16)), "2^11"),
        (pa.array([1.0, float("inf")]), "inf"),
        (pa.array([b"a", b"\xff"]), "0xFF is not UTF-8"),
    ],
)
def test_a_value_without_an_exact_text_is_refused_by_file_row_and_column(
    tmp_path: Path, column: pa.Array, said: str
) -> None:
    write(tmp_path, item=column, other=["a", "b"])
    other = [{"name": "other", "role": "candidate"}]
    refused(tmp_path, "1.parquet, row 2: column 'item'", said)
    for use in ({"request": "item"}, {"routing_key": "item"}, {"drop_duplicates": ["item"]}):
        refused(tmp_path, "1.parquet, row 2: column 'item'", said, fields=other, **use)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([Decimal(10**50), Decimal(1)], pa.decimal256(60, 0)),
        pa.array([datetime.datetime(2026, 1, 1)] * 2),
        pa.array([["a"], ["b"]]),
    ],
)
def test_a_type_without_an_exact_text_is_refused_by_file_and_column(tmp_path: Path, column: pa.Array) -> None:
    write(tmp_path, item=column)
    refused(tmp_path, "1.parquet: column 'item' is of type")


def test_types_may_differ_from_file_to_file(tmp_path: Path) -> None:
    write(tmp_path, "1.parquet", item=[BIG, BIG + 1])
    write(tmp_path, "2.parquet", item=[1.0, None])
    write(tmp_path, "3.parquet", item=[str(BIG), "x"])
    write(tmp_path, "4.parquet", item=pa.array(NUMBERS[:2], pa.decimal128(38, 0)))
    (tmp_path / "5.csv").write_text(f"t,item,y\n{START},{BIG},0\n{START + 1},,1\n", "utf-8")
    chunk = read(tmp_path, files=["*.parquet", "*.csv"], drop_duplicates=["t", "item"])
    rows = sorted(zip(chunk.time_ms.tolist(), chunk.rows.ids[:, 0].tolist(), strict=True))
    assert rows == sorted(
        (START + t, *ids(value)) for t, value in [(0, BIG), (0, 1), (1, BIG + 1), (1, None), (1, "x")]
    )
    write(tmp_path, "2.parquet", item=[float(BIG), None])
    refused(tmp_path, "2.parquet, row 1: column 'item'", "9007199254740992", "2^53")


def test_requests_and_joins_compare_exact_texts(tmp_path: Path) -> None:
    write(tmp_path, "1.parquet", item=pa.array([BIG, BIG + 1]), r=pa.array([Decimal(BIG)] * 2, pa.decimal128(20, 0)))
    write(tmp_path, "2.parquet", item=["1", "2"], r=[str(BIG + 1)] * 2)
    (tmp_path / "names.csv").write_text(f"item,name\n{BIG},a\n{BIG + 1},b\n1,c\nnan,d\nnan,e\n", "utf-8")
    fields = [{"name": "name", "role": "candidate"}]
    log = opened(tmp_path, request="r", fields=fields, joins=[{"file": "names.csv", "on": "item"}])
    (chunk,) = log.chunks()
    assert log.request_count == 2
    assert chunk.rows.ids[:, 0].tolist() == ids("a", "b", "c", None, field="name")


def test_bags_may_be_lists(tmp_path: Path) -> None:
    write(tmp_path, "1.parquet", item=pa.array([[BIG, 2], [], None]))
    write(tmp_path, "2.parquet", item=["a,b", "", None])
    fields = [{"name": "item", "role": "candidate", "kind": "bag", "separator": ","}]
    (bag,) = read(tmp_path, fields=fields).rows.bags
    assert np.diff(bag.offsets).tolist() == [2, 2, 0, 0, 0, 0]
    assert bag.values.tolist() == ids(BIG, 2, "a", "b")
    write(tmp_path, "1.parquet", item=pa.array([["x"], ["a,b", "c"]]))
    refused(tmp_path, "1.parquet, row 2: column 'item': a,b holds the separator", fields=fields)
    write(tmp_path, "1.parquet", item=pa.array([[1.0], [2.0**53]]))
    refused(tmp_path, "1.parquet, row 2: column 'item'", "2^53", fields=fields)


def test_folders_named_like_columns_are_only_folders(tmp_path: Path) -> None:
    write(tmp_path, "item=other/y=1/1.parquet", item=["a", "b"])
    (tmp_path / "item=third").mkdir()
    (tmp_path / "item=third/2.csv").write_text(f"t,y,item\n{START + 2},1,c\n", "utf-8")
    chunk = read(tmp_path, files=["**/*.parquet", "**/*.csv"])
    assert chunk.rows.ids[:, 0].tolist() == ids("a", "b", "c")
    assert chunk.labels.tolist() == [0, 1, 1]
    refused(tmp_path, "no column 'dt'", files=["**/*.csv"], fields=[{"name": "dt", "role": "candidate"}])


def test_a_csv_reader_guesses_nothing(tmp_path: Path) -> None:
    lines = [
        '\ufefft,"y",item',
        '1700000000001,0,"a, b"',
        "1700000000002,1,# no comment",
        '1700000000003,0,""',
        "1700000000004,1,1_000",
        "1700000000005,0,2026-01-01",
        "1700000000006,1,1e3",
        "1700000000007,1,true",
    ]
    (tmp_path / "1.csv").write_bytes("\r\n".join([*lines, ""]).encode())
    wanted = ids("a, b", "# no comment", None, "1_000", "2026-01-01", "1e3", "true")
    assert read(tmp_path, files=["1.csv"]).rows.ids[:, 0].tolist() == wanted
    (tmp_path / "2.csv").write_text("t,y,item,item\n1,0,a,b\n", "utf-8")
    refused(tmp_path, "2.csv: column 'item' stands twice", files=["2.csv"])


@contextmanager
def open_files(most: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_many_files_are_read_with_few_open_ones(tmp_path: Path, kind: str) -> None:
    for number in range(150):
        if kind == "parquet":  # many forms
            write(tmp_path, f"{number:03}.parquet", **{"item": [str(number), None], f"extra{number % 50}": [0, 0]})
        else:
            (tmp_path / f"{number:03}.csv").write_text(f"t,y,item\n{START},0,{number}\n{START + 1},1,\n", "utf-8")
    used = len(list(Path("/proc/self/fd").iterdir()))
    with open_files(used + 120):
        chunk = read(tmp_path, files=[f"*.{kind}"])
    assert chunk.rows.ids[:150, 0].tolist() == ids(*range(150))  # ties in time keep the order of files
    if kind == "csv":
        (tmp_path / "148.csv").write_text(f"t,y,item\n{START},0,1\nsoon,1,2\n", "utf-8")
        refused(tmp_path, "148.csv, row 2: column 't' does not parse", files=["*.csv"])


@pytest.mark.parametrize(
    ("labels", "positive", "said"),
    [
        ([1, 0, -1], [1], "'-1' (1 rows)"),
        ([1, 0, 2], [1], "'2' (1 rows)"),
        (["yes", "no", "maybe"], ["yes"], "'maybe' (1 rows)"),
        ([1.0, 0.0, 0.5], [1], "'0.5' (1 rows)"),
    ],
)
def test_labels_that_nobody_declared_are_counted_aloud(
    tmp_path: Path, labels: list[Any], positive: list[Any], said: str
) -> None:
    write(tmp_path, y=labels, item=[1, 2, 3])
    label = {"column": "y", "positive": positive}
    (note,) = opened(tmp_path, label=label).notes
    assert said in note
    assert "label.negative" in note
    refused(tmp_path, "1.parquet, row 3: column 'y' is", "label.negative", label=label | {"negative": labels[1:2]})
    declared = opened(tmp_path, label=label | {"negative": labels[1:]})
    assert (declared.notes, declared.positives) == ((), 1)


def test_zeros_and_ones_need_no_word(tmp_path: Path) -> None:
    write(tmp_path, y=[True, False], item=[1, 2])
    assert opened(tmp_path, label={"column": "y", "positive": [True]}).notes == ()


@pytest.mark.parametrize("text", MISSING_TEXTS)
def test_a_label_may_be_missing_in_words(tmp_path: Path, text: str) -> None:
    write(tmp_path, y=["1", "0", text], item=[1, 2, 3])
    refused(tmp_path, "1.parquet, row 3: column 'y' is missing", text)
    label = {"column": "y", "positive": [1], "negative": [0, text]}
    assert read(tmp_path, label=label).labels.tolist() == [1, 0, 0]


def test_a_label_on_both_sides_is_refused(tmp_path: Path) -> None:
    write(tmp_path, item=[1, 2])
    refused(tmp_path, "label: '1' is positive and negative", label={"column": "y", "positive": [1.0], "negative": [1]})


def test_missing_texts_are_declared_by_field(tmp_path: Path) -> None:
    write(tmp_path, item=["None", "nan", "-1", "x"], price=["NULL", " nan ", "1.5", "gone"])
    item, price = {"name": "item", "role": "candidate"}, {"name": "price", "role": "candidate", "kind": "number"}
    price_of = price | {"missing": ["gone", "NULL"]}
    by_default = opened(tmp_path, fields=[item, price_of])
    assert by_default.schema.fields[0].missing == MISSING_TEXTS
    (chunk,) = by_default.chunks()
    assert chunk.rows.ids[:, 0].tolist() == ids(None, None, -1, "x")
    np.testing.assert_array_equal(chunk.rows.numbers[:, 0], np.array([np.nan, np.nan, 1.5, np.nan], np.float32))
    declared = read(tmp_path, fields=[item | {"missing": [-1]}, price_of])
    assert declared.rows.ids[:, 0].tolist() == ids("None", "nan", None, "x")
    refused(tmp_path, "row 4: column 'price': 'gone' is not a number", fields=[item, price])


def test_a_student_takes_the_missing_texts_of_its_teacher_unless_it_says_its_own(tmp_path: Path) -> None:
    write(tmp_path, item=["None", "x"])
    old = Schema(fields=(FieldSpec(name="item", role="candidate"),))
    log = opened(tmp_path, like=old)
    assert log.schema == old
    (chunk,) = log.chunks()
    assert chunk.rows.ids[:, 0].tolist() == ids("None", "x")
    own = opened(tmp_path, like=old, fields=[{"name": "item", "role": "candidate", "missing": ["None"]}])
    assert "missing" in (own.schema.inputs_match(old) or "")


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ({"missing": [None]}, "in quotes"),
        ({"missing": "None"}, "fields.0.missing"),
        ({"missing": [-1], "kind": "number"}, "'-1' cannot mean that a number is missing"),
    ],
)
def test_wrong_missing_texts_are_refused(tmp_path: Path, field: dict[str, Any], said: str) -> None:
    write(tmp_path, item=[1, 2])
    fields = [{"name": "item", "role": "candidate", **field}]
    refused(tmp_path, said, fields=fields)


def test_a_log_takes_the_index_of_its_model_and_hashes_the_row_number(tmp_path: Path) -> None:
    write(tmp_path, item=["a", "b", None])
    index = Index(hash="farm64", buckets=5)
    like = Schema(fields=(FieldSpec(name="item", role="candidate", missing=MISSING_TEXTS, index=index),))
    rows = [hash_value("item", farm64(text) % 5) for text in (b"a", b"b")]
    log = opened(tmp_path, like)
    assert log.schema.fields[0].index == index
    (chunk,) = log.chunks()
    assert chunk.rows.ids[:, 0].tolist() == [*rows, hash_value("item", None)]
    own = [{"name": "item", "role": "candidate", "index": {"hash": "farm64", "buckets": 5}}]
    assert read(tmp_path, fields=own).rows.ids[:, 0].tolist() == chunk.rows.ids[:, 0].tolist()

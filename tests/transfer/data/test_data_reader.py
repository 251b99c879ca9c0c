"""Logs in files: order, joins, duplicates, missing values, requests, ranges, the cache."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError, InvalidInput
from pipeline.hashing import hash_value
from transfer.data import Dataset, LogChunk, LogReader, files, open_log, prepare

PLAIN: dict[str, Any] = {
    "name": "clicks",
    "files": ["log.parquet"],
    "time": {"column": "t", "unit": "ms"},
    "label": {"column": "y", "positive": [1]},
    "fields": [{"name": "user", "role": "context"}, {"name": "item", "role": "candidate"}],
}


START = 1_700_000_000_000


def at(*milliseconds: int) -> list[int]:
    """Times after START."""
    return [START + after for after in milliseconds]


def parquet(path: Path, **columns: Any) -> None:
    pq.write_table(pa.table(columns), path)


def descriptor(folder: Path, **changes: Any) -> Path:
    path = folder / "dataset.yaml"
    path.write_text(yaml.safe_dump({**PLAIN, **changes}), "utf-8")
    return path


def read(folder: Path, **changes: Any) -> LogReader:
    return LogReader(Dataset.load(descriptor(folder, **changes)), folder / "cache")


def whole(log: LogReader) -> LogChunk:
    (chunk,) = log.chunks()
    return chunk


def ids(field: str, values: list[Any]) -> list[int]:
    return [hash_value(field, value) for value in values]


def test_rows_come_in_time_order_with_hashed_ids(tmp_path: Path) -> None:
    parquet(tmp_path / "log.parquet", t=at(30, 10, 20), y=[1, 0, 1], user=[7, 8, 9], item=["a", " b ", "ü"])
    log = read(tmp_path)
    chunk = whole(log)
    assert (log.name, log.rows, log.request_count, log.positives) == ("clicks", 3, 3, 2)
    assert chunk.time_ms.tolist() == at(10, 20, 30)
    assert chunk.labels.tolist() == [0, 1, 1]
    assert chunk.rows.ids[:, 0].tolist() == ids("user", [8, 9, 7])
    assert chunk.rows.ids[:, 1].tolist() == ids("item", [" b ", "ü", "a"])
    assert chunk.request.tolist() == [0, 1, 2]
    assert chunk.position.tolist() == [0, 0, 0]
    assert chunk.routing_key.tolist() == ["", "", ""]
    assert chunk.truth is None
    assert chunk.rows.ids.dtype == np.int64
    assert chunk.labels.dtype == np.float32
    assert chunk.position.dtype == np.int32


def test_a_csv_value_is_the_text_that_it_is(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(
        't,y,user,item\n1700000000002,1,007,"a,b"\n1700000000001,0,,"say ""hi"""\n', "utf-8"
    )
    chunk = whole(read(tmp_path, files=["log.csv"]))
    assert chunk.rows.ids[:, 0].tolist() == ids("user", [None, "007"])
    assert chunk.rows.ids[:, 1].tolist() == ids("item", ['say "hi"', "a,b"])


def test_one_log_in_three_formats_gives_the_same_rows(tmp_path: Path) -> None:
    parquet(tmp_path / "log.parquet", t=at(1, 2, 3), y=[0, 1, 0], user=[7, None, 9], item=[5, 6, 7])
    text = "t,y,user,item\n1700000000001,0,7,5\n1700000000002,1,,6\n1700000000003,0,9,7\n"
    (tmp_path / "log.csv").write_text(text, "utf-8")
    with gzip.open(tmp_path / "log.csv.gz", "wt") as file:
        file.write(text)
    one, two, three = (whole(read(tmp_path, files=[name])) for name in ("log.parquet", "log.csv", "log.csv.gz"))
    assert one.rows.ids.tolist() == two.rows.ids.tolist() == three.rows.ids.tolist()
    assert one.labels.tolist() == two.labels.tolist() == three.labels.tolist()
    assert one.time_ms.tolist() == two.time_ms.tolist() == three.time_ms.tolist()


def test_ties_in_time_keep_the_order_of_files_and_rows(tmp_path: Path) -> None:
    parquet(tmp_path / "b.parquet", t=at(5, 5), y=[0, 1], user=[1, 1], item=[10, 11])
    parquet(tmp_path / "a.parquet", t=at(5, 4), y=[0, 1], user=[1, 1], item=[20, 21])
    parquet(tmp_path / "z.parquet", t=at(5), y=[0], user=[1], item=[30])
    chunk = whole(read(tmp_path, files=["z.parquet", "*.parquet"]))  # as written, then by name, none twice
    assert chunk.rows.ids[:, 1].tolist() == ids("item", [21, 30, 20, 10, 11])


def test_requests_interleaved_in_time_and_across_files_stand_together(tmp_path: Path) -> None:
    parquet(tmp_path / "1.parquet", t=at(10, 30, 20), y=[0, 1, 0], user=[1, 1, 2], item=[1, 2, 3], r=["x", "x", "b"])
    parquet(tmp_path / "2.parquet", t=at(5, 20, 25), y=[0, 0, 1], user=[1, 3, 2], item=[4, 5, 6], r=["x", "a", "b"])
    log = read(tmp_path, files=["*.parquet"], request="r", routing_key="user")
    chunk = whole(log)
    assert chunk.rows.ids[:, 1].tolist() == ids("item", [4, 1, 2, 5, 3, 6])  # x from 5 on; a before b at 20
    assert chunk.request.tolist() == [0, 0, 0, 1, 2, 2]
    assert chunk.position.tolist() == [0, 1, 2, 0, 0, 1]
    assert chunk.routing_key.tolist() == ["1", "1", "1", "3", "2", "2"]
    requests = list(log.requests())
    assert [r.time_ms for r in requests] == at(5, 20, 20)
    assert [r.features.n for r in requests] == [3, 1, 2]
    assert [r.request for r in requests] == [0, 1, 2]
    assert requests[0].labels.tolist() == [0, 0, 1]
    requests[0].features.check(log.schema)
    assert [part.values.shape for part in requests[0].features.ids] == [(1, 1), (3, 1)]  # context once
    assert requests[0].features.rows(log.schema).ids.tolist() == chunk.rows.ids[:3].tolist()


def test_numbers_bags_and_missing_values(tmp_path: Path) -> None:
    parquet(
        tmp_path / "log.parquet",
        t=at(1, 2, 3, 4),
        y=[0, 1, 0, 1],
        item=pa.array([1.0, None, 2.5, float("nan")]),
        tags=["b,a", "", None, "c"],
        price=pa.array([1.5, None, float("nan"), -2.0]),
        stock=[1, 2, None, 4],
    )
    fields = [
        {"name": "price", "role": "candidate", "kind": "number"},
        {"name": "tags", "role": "candidate", "kind": "bag", "separator": ","},
        {"name": "item", "role": "candidate"},
        {"name": "stock", "role": "candidate", "kind": "number", "transform": "log1p"},
    ]
    log = read(tmp_path, fields=fields)
    rows = whole(log).rows
    assert rows.ids[:, 0].tolist() == ids("item", [1, None, 2.5, None])
    np.testing.assert_array_equal(
        rows.numbers, np.array([[1.5, 1], [np.nan, 2], [np.nan, np.nan], [-2, 4]], np.float32)
    )
    (bag,) = rows.bags
    assert bag.offsets.tolist() == [0, 2, 2, 2, 3]
    assert bag.values.tolist() == ids("tags", ["b", "a", "c"])
    assert [f.name for f in log.schema.numbers] == ["price", "stock"]
    assert log.schema.numbers[1].transform == "log1p"


def test_numbers_of_a_csv(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(
        "t,y,item,price\n1700000000001,0,a, 1.5 \n1700000000002,1,b,\n1700000000003,1,c,nan\n1700000000004,1,d,1e3\n",
        "utf-8",
    )
    fields = [{"name": "item", "role": "candidate"}, {"name": "price", "role": "candidate", "kind": "number"}]
    numbers = whole(read(tmp_path, files=["log.csv"], fields=fields)).rows.numbers[:, 0]
    np.testing.assert_array_equal(numbers, np.array([1.5, np.nan, np.nan, 1000], np.float32))


def test_duplicates_leave_their_first_row(tmp_path: Path) -> None:
    parquet(tmp_path / "log.parquet", t=at(3, 1, 3, 1), y=[0, 1, 1, 0], user=[1, 1, 1, None], item=[5, 6, 5, 6])
    chunk = whole(read(tmp_path, drop_duplicates=["item"]))
    assert chunk.time_ms.tolist() == at(1, 3)
    assert chunk.labels.tolist() == [1, 0]
    assert whole(read(tmp_path, drop_duplicates=["user", "item"])).time_ms.tolist() == at(1, 1, 3)  # null is a value


def test_joins_leave_rows_without_a_partner_missing(tmp_path: Path) -> None:
    parquet(tmp_path / "log.parquet", t=at(1, 2, 3, 4), y=[0, 1, 0, 1], user=[1, 1, 2, 2], item=[5, 6, 7, None])
    parquet(tmp_path / "items.parquet", item=[6, 5, None, None], author=[60, 50, 1, 2], tags=["x|y", "z", "", ""])
    (tmp_path / "authors.csv").write_text("author,born\n50,1950\n60,\n", "utf-8")
    fields = [
        {"name": "item", "role": "candidate"},
        {"name": "author", "role": "candidate"},
        {"name": "tags", "role": "candidate", "kind": "bag", "separator": "|"},
        {"name": "born", "role": "candidate", "kind": "number"},
    ]
    joins = [{"file": "items.parquet", "on": "item"}, {"file": "authors.csv", "on": "author"}]
    log = read(tmp_path, fields=fields, joins=joins, routing_key="author")
    chunk = whole(log)
    assert chunk.rows.ids[:, 1].tolist() == ids("author", [50, 60, None, None])
    assert chunk.rows.bags[0].offsets.tolist() == [0, 1, 3, 3, 3]
    np.testing.assert_array_equal(chunk.rows.numbers[:, 0], np.array([1950, np.nan, np.nan, np.nan], np.float32))
    assert chunk.routing_key.tolist() == ["50", "60", "", ""]


@pytest.mark.parametrize(
    ("times", "unit"),
    [
        ([1_700_000_000, 1_700_000_001], "s"),
        ([1_700_000_000.0, 1_700_000_001.0], "s"),
        ([1_700_000_000_000, 1_700_000_001_000], "ms"),
        ([1_700_000_000_000_999, 1_700_000_001_000_000], "us"),
        ([1_700_000_000_000_999_999, 1_700_000_001_000_000_000], "ns"),
        (["1700000000", "1700000001"], "s"),
        (pa.array([1_700_000_000_000, 1_700_000_001_000], pa.timestamp("ms")), "s"),
        (pa.array([1_700_000_000_000_000_000, 1_700_000_001_000_000_000], pa.timestamp("ns")), "s"),
        (pa.array([1_700_000_000_000_000, 1_700_000_001_000_000], pa.timestamp("us", "UTC")), "s"),
    ],
)
def test_units_of_time(tmp_path: Path, times: Any, unit: str) -> None:
    parquet(tmp_path / "log.parquet", t=times, y=[0, 1], user=[1, 2], item=[1, 2])
    log = read(tmp_path, time={"column": "t", "unit": unit})
    assert whole(log).time_ms.tolist() == [1_700_000_000_000, 1_700_000_001_000]


def test_times_within_a_millisecond_order_rows(tmp_path: Path) -> None:
    parquet(tmp_path / "log.parquet", t=[1_700_000_001.0005, 1_700_000_001.0001], y=[0, 1], user=[1, 2], item=[1, 2])
    chunk = whole(read(tmp_path, time={"column": "t", "unit": "s"}))
    assert chunk.labels.tolist() == [1, 0]
    assert chunk.time_ms.tolist() == at(1000, 1000)


@pytest.mark.parametrize(
    ("values", "positive"),
    [
        ([1, 0, 2], [1, 2]),
        ([1.0, 0.0, 1.0], [1]),
        (["click", "view", "buy"], ["click", "buy"]),
        ([True, False, True], [True]),
    ],
)
def test_labels_of_any_type(tmp_path: Path, values: list[Any], positive: list[Any]) -> None:
    parquet(tmp_path / "log.parquet", t=at(1, 2, 3), y=values, user=[1, 2, 3], item=[1, 2, 3])
    assert whole(read(tmp_path, label={"column": "y", "positive": positive})).labels.tolist() == [1, 0, 1]


def test_a_column_may_differ_in_type_between_files(tmp_path: Path) -> None:
    parquet(tmp_path / "1.parquet", t=at(1, 2), y=[0, 1], user=[1, 2], item=pa.array([1, 2], pa.int32()))
    parquet(tmp_path / "2.parquet", t=at(3, 4), y=[0, 1], user=["1", "x"], item=pa.array([1.0, None]))
    rows = whole(read(tmp_path, files=["?.parquet"])).rows
    assert rows.ids[:, 0].tolist() == ids("user", [1, 2, 1, "x"])
    assert rows.ids[:, 1].tolist() == ids("item", [1, 2, 1, None])


def test_preparing_happens_once_and_again_when_a_file_changes(tmp_path: Path) -> None:
    parquet(tmp_path / "log.parquet", t=at(1, 2), y=[0, 1], user=[1, 2], item=[1, 2])
    read(tmp_path)
    (prepared,) = (tmp_path / "cache").iterdir()  # nothing else is left behind
    before = prepared.stat().st_mtime_ns
    assert open_log(tmp_path / "dataset.yaml", tmp_path / "cache").rows == 2
    assert [p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()] == [before]
    parquet(tmp_path / "log.parquet", t=at(1, 2, 3), y=[0, 1, 0], user=[1, 2, 3], item=[1, 2, 3])
    assert read(tmp_path).rows == 3
    assert read(tmp_path, label={"column": "y", "positive": [0]}).positives == 2


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> LogReader:
    """200,000 rows in requests of 1 to 40, over several row groups."""
    folder = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(3)
    request = np.repeat(np.arange(20_000), rng.integers(1, 41, 20_000))[:200_000]
    n = len(request)
    shuffled = rng.permutation(n)
    parquet(
        folder / "log.parquet",
        t=START + (request * 7 + rng.integers(0, 50, n))[shuffled],
        y=rng.integers(0, 2, n)[shuffled],
        user=(request % 97)[shuffled],
        item=np.arange(n)[shuffled],
        tags=[f"{i % 5},{i % 3}" for i in shuffled.tolist()],
        r=request[shuffled],
    )
    fields = [*PLAIN["fields"], {"name": "tags", "role": "candidate", "kind": "bag", "separator": ","}]
    return read(folder, request="r", routing_key="user", fields=fields)


fraction = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.1, 0.4, 0.8, 0.9, 1.0]))


@given(cuts=st.lists(fraction, max_size=4), chunk_rows=st.sampled_from([1_000, 4_096, 65_536, 10**6]))
@settings(max_examples=15, deadline=None)
def test_neighbouring_ranges_cover_each_row_once_and_cut_no_request(
    many: LogReader, cuts: list[float], chunk_rows: int
) -> None:
    edges = [0.0, *sorted(cuts), 1.0]
    request, item = [], []
    for start, stop in itertools.pairwise(edges):
        rows = 0
        for chunk in many.chunks(start, stop, chunk_rows):
            assert 0 < len(chunk) <= chunk_rows
            assert chunk.position[0] == 0  # every chunk begins a request ...
            rows += len(chunk)
            request.append(chunk.request)
            item.append(chunk.rows.ids[:, 1])
        assert rows == many.rows_between(start, stop)
        assert abs(rows - (stop - start) * many.rows) <= 41
    joined = np.concatenate(request)
    assert len(joined) == many.rows == len(np.unique(np.concatenate(item)))
    assert np.all(np.isin(np.diff(joined), (0, 1)))  # ... so none is cut
    assert joined[-1] == many.request_count - 1


def test_requests_are_the_rows_of_the_chunks(many: LogReader) -> None:
    chunks = list(many.chunks(0.5, 0.52, 500))
    requests = list(many.requests(0.5, 0.52))
    spread = [r.features.rows(many.schema) for r in requests]
    assert np.concatenate([s.ids for s in spread]).tolist() == np.concatenate([c.rows.ids for c in chunks]).tolist()
    assert [v for s in spread for v in s.bags[0].values.tolist()] == [
        v for c in chunks for v in c.rows.bags[0].values.tolist()
    ]
    assert np.concatenate([r.labels for r in requests]).tolist() == np.concatenate([c.labels for c in chunks]).tolist()


def test_a_request_longer_than_a_chunk_stays_whole(tmp_path: Path) -> None:
    n = 1_000
    parquet(
        tmp_path / "log.parquet",
        t=START + np.arange(n),
        y=np.arange(n) % 2,
        user=np.ones(n, np.int64),
        item=np.arange(n),
        r=np.where(np.arange(n) < 10, 0, np.where(np.arange(n) < 900, 1, 2)),
    )
    log = read(tmp_path, request="r")
    assert [len(c) for c in log.chunks(chunk_rows=64)] == [10, 890, 100]
    assert [len(c) for c in log.chunks(0.5, 1.0, chunk_rows=950)] == [890, 100]
    assert [len(c) for c in log.chunks(0.95, 0.99)] == []


@pytest.mark.parametrize(("start", "stop"), [(-0.1, 1), (0, 1.1), (0.6, 0.5), (float("nan"), 1)])
def test_fractions_out_of_range_are_refused(many: LogReader, start: float, stop: float) -> None:
    with pytest.raises(InvalidInput, match="0 <= from <= to <= 1"):
        next(many.chunks(start, stop))


row = st.tuples(st.integers(0, 6), st.integers(0, 4), st.integers(0, 2))  # time, request, file


@given(rows=st.lists(row, min_size=2, max_size=30))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_order_equals_the_rule_in_words(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("order")
    stored = [[(START + t, r, i) for i, (t, r, f) in enumerate(rows) if f == file] for file in range(3)]
    for file, part in enumerate(stored):
        content = [f"{t},{i % 2},1,{i},{r}" for t, r, i in part]
        (folder / f"{file}.csv").write_text("\n".join(["t,y,user,item,r", *content, ""]), "utf-8")
    first = {r: START + min(t for t, other, _ in rows if other == r) for _, r, _ in rows}
    ordered = sorted(((t, r, i) for part in stored for t, r, i in part), key=lambda x: (first[x[1]], x[1], x[0]))
    chunk = whole(read(folder, files=["*.csv"], request="r"))
    assert chunk.rows.ids[:, 1].tolist() == ids("item", [i for _, _, i in ordered])
    assert chunk.time_ms.tolist() == [t for t, _, _ in ordered]


def test_a_file_that_is_far_more_once_unpacked_is_refused_by_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = 10_000_001
    times = pa.array([START] * 1000).take(pa.array(np.zeros(rows, np.int32)))
    parquet(tmp_path / "log.parquet", t=times, y=pa.nulls(rows, pa.int64()), user=times, item=times)
    size = (tmp_path / "log.parquet").stat().st_size
    monkeypatch.setattr(files, "ROWS_PER_BYTE_FACTOR", rows // size)
    with pytest.raises(DataError, match=rf"log\.parquet: holds {rows:,} rows in {size:,} bytes"):
        read(tmp_path)


def test_sorting_takes_no_more_disk_than_the_files_can_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One text of 20 kB that 20,000 rows have: 400 MB to sort, in a file of some kB."""
    rows = 20_000
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), ["x" * 20_000]).cast(pa.string())
    parquet(tmp_path / "log.parquet", t=at(*range(rows)), y=[0, 1] * (rows // 2), user=list(range(rows)), item=text)
    monkeypatch.setattr(prepare, "SPARE_SPILL_BYTES", 1 << 20)
    dataset = Dataset.load(descriptor(tmp_path))
    with pytest.raises(DataError, match=r"log\.parquet \([0-9,]+ bytes\) cannot be sorted in [0-9,]+ bytes of disk"):
        LogReader(dataset, tmp_path / "cache", memory="100MB")
    assert not list((tmp_path / "cache").iterdir())


def test_a_line_of_names_without_an_end_is_not_unpacked_to_it(tmp_path: Path) -> None:
    for name, opener in (("log.csv.gz", gzip.open), ("log.csv", open)):
        with opener(tmp_path / name, "wb") as file:
            for _ in range(8):
                file.write(b"a" * (1 << 20))
        with pytest.raises(DataError, match="names of the columns has more than 1,048,576 bytes"):
            read(tmp_path, files=[name])
    (tmp_path / "log.csv").write_text('"t\n",y\n1,2\n')
    with pytest.raises(DataError, match=r"column"):
        read(tmp_path, files=["log.csv"])

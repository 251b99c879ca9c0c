"""What is wrong with a data set is said with the file and the column at fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.errors import DataError
from transfer.data import Dataset, open_log

GOOD: dict[str, Any] = {
    "name": "clicks",
    "files": ["log.parquet"],
    "time": {"column": "t", "unit": "ms"},
    "label": {"column": "y", "positive": [1]},
    "fields": [{"name": "user", "role": "context"}, {"name": "item", "role": "candidate"}],
}
START = 1_700_000_000_000
COLUMNS: dict[str, Any] = {
    "t": [START + 1, START + 2, START + 3],
    "y": [0, 1, 0],
    "user": [7, 8, 9],
    "item": ["a", "b", "c"],
    "r": [1, 1, 2],
}
NUMBER = [{"name": "item", "role": "candidate", "kind": "number"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pq.write_table(pa.table(COLUMNS), tmp_path / "log.parquet")
    return tmp_path


def write(folder: Path, **changes: Any) -> Path:
    content = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    (folder / "dataset.yaml").write_text(yaml.safe_dump(content), "utf-8")
    return folder / "dataset.yaml"


def refused(folder: Path, *said: str, field: str | None = None, **changes: Any) -> None:
    """Loading is refused, with words that name all of `said`."""
    with pytest.raises(DataError) as caught:
        Dataset.load(write(folder, **changes))
    for word in said:
        assert word in str(caught.value)
    assert field is None or caught.value.field == field


def unusable(folder: Path, *said: str, field: str, columns: dict[str, Any] | None = None, **changes: Any) -> None:
    """Loading goes well, reading rows is refused and leaves nothing behind."""
    if columns is not None:
        pq.write_table(pa.table({**COLUMNS, **columns}), folder / "log.parquet")
    Dataset.load(write(folder, **changes))
    with pytest.raises(DataError) as caught:
        open_log(folder / "dataset.yaml", folder / "cache")
    for word in said:
        assert word in str(caught.value)
    assert caught.value.field == field
    assert list((folder / "cache").iterdir()) == []


def test_a_good_descriptor(folder: Path) -> None:
    dataset = Dataset.load(write(folder))
    assert [f.name for f in dataset.feature_schema.ids] == ["user", "item"]
    assert dataset.paths == [folder / "log.parquet"]


def test_the_key_on_is_no_boolean(folder: Path) -> None:
    pq.write_table(pa.table({"item": ["a"], "author": [1]}), folder / "items.parquet")
    text = write(folder).read_text("utf-8") + "joins: [{file: items.parquet, on: item}]\n"
    (folder / "dataset.yaml").write_text(text, "utf-8")
    assert Dataset.load(folder / "dataset.yaml").joins[0].on == "item"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"label": None}, "label: Field required"),
        ({"labels": 1}, "labels: unknown key"),
        ({"name": "a b"}, "name: "),
        ({"time": {"column": "t", "unit": "h"}}, "time.unit: "),
        ({"label": {"column": "y", "positive": []}}, "label.positive: "),
        ({"fields": []}, "fields: "),
        ({"fields": [{"name": "user", "role": "user"}]}, "fields.0.role: "),
        ({"fields": [{"name": "user", "role": "context", "width": 4}]}, "fields.0.width: "),
        ({"fields": [GOOD["fields"][0], GOOD["fields"][0]]}, "field 'user' is named twice"),
        ({"fields": [{"name": "item", "role": "candidate", "kind": "bag"}]}, "field 'item': a bag needs a separator"),
        ({"fields": [{"name": "y", "role": "candidate"}]}, "field 'y' is the label"),
        ({"files": []}, "files: "),
        ({"joins": [{"file": "x.parquet"}]}, "joins.0.on: Field required"),
    ],
)
def test_wrong_keys_are_named(folder: Path, changes: dict[str, Any], said: str) -> None:
    refused(folder, "dataset.yaml", said, **changes)


def test_what_is_no_descriptor_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.yaml: cannot be read"):
        Dataset.load(folder / "absent.yaml")
    for text, said in (
        ("a: [", "is not YAML"),
        ("- 1", "a mapping"),
        ("name: a\nname: b\n", "key 'name' is given twice"),
    ):
        (folder / "broken.yaml").write_text(text, "utf-8")
        with pytest.raises(DataError, match=r"broken\.yaml") as caught:
            Dataset.load(folder / "broken.yaml")
        assert said in str(caught.value)


def test_files_that_cannot_be_read_are_named(folder: Path) -> None:
    refused(folder, "dataset.yaml", "no file matches 'gone*.parquet'", files=["log.parquet", "gone*.parquet"])
    refused(folder, "there is no file 'gone.csv'", joins=[{"file": "gone.csv", "on": "item"}])
    (folder / "log.txt").write_text("t", "utf-8")
    refused(folder, "log.txt", ".csv.gz", files=["log.txt"])
    (folder / "noise.parquet").write_bytes(b"noise")
    refused(folder, "noise.parquet: cannot be read", files=["noise.parquet"])


@pytest.mark.parametrize(
    ("changes", "column"),
    [
        ({"time": {"column": "when", "unit": "s"}}, "when"),
        ({"label": {"column": "clicked", "positive": [1]}}, "clicked"),
        ({"request": "session"}, "session"),
        ({"routing_key": "visitor"}, "visitor"),
        ({"drop_duplicates": ["user", "place"]}, "place"),
        ({"fields": [{"name": "brand", "role": "candidate"}]}, "brand"),
        ({"joins": [{"file": "log.parquet", "on": "maker"}]}, "maker"),
    ],
)
def test_absent_columns_are_named_with_their_file(folder: Path, changes: dict[str, Any], column: str) -> None:
    refused(folder, "log.parquet", f"no column {column!r}", field=column, **changes)


def test_a_column_absent_from_one_file_of_many(folder: Path) -> None:
    pq.write_table(pa.table(COLUMNS).drop_columns(["item"]), folder / "more.parquet")
    refused(folder, "more.parquet", "no column 'item'", field="item", files=["log.parquet", "more.parquet"])
    (folder / "key.csv").write_text("b,c\n1,2\n", "utf-8")
    refused(folder, "key.csv", "no column 'item'", field="item", joins=[{"file": "key.csv", "on": "item"}])


def test_a_column_in_two_files_is_refused_where_it_is_needed(folder: Path) -> None:
    (folder / "users.csv").write_text("user,item,age\n7,z,30\n", "utf-8")
    joins = [{"file": "users.csv", "on": "user"}]
    refused(folder, "log.parquet", "users.csv", "'item'", field="item", joins=joins)
    fields = [{"name": "user", "role": "context"}, {"name": "age", "role": "context", "kind": "number"}]
    assert open_log(write(folder, joins=joins, fields=fields), folder / "cache").rows == 3


def test_columns_of_types_that_are_no_values(folder: Path) -> None:
    odd = {**COLUMNS, "item": [[1], [2], [3]], "user": pa.array([1, 2, 3], pa.date32())}
    pq.write_table(pa.table(odd), folder / "odd.parquet")
    refused(folder, "odd.parquet", "'user'", "DATE", field="user", files=["odd.parquet"])
    refused(folder, "odd.parquet", "'item'", "[]", field="item", files=["odd.parquet"], fields=[GOOD["fields"][1]])
    refused(folder, "odd.parquet", field="user", files=["odd.parquet"], time={"column": "user", "unit": "s"})
    pq.write_table(pa.table({**COLUMNS, "r": pa.array([1, 2, 3], pa.date32())}), folder / "other.parquet")
    files = ["log.parquet", "other.parquet"]  # no common text of a date and a number
    refused(folder, "log.parquet", "other.parquet", "BIGINT", "DATE", field="r", files=files, drop_duplicates=["r"])


@pytest.mark.parametrize("times", [["1", "soon", "3"], [1, None, 3], [1.0, float("nan"), 3.0], [START, 2**62, START]])
def test_times_that_do_not_parse(folder: Path, times: list[Any]) -> None:
    unusable(folder, "log.parquet, row 2", "'t' does not parse as a time", field="t", columns={"t": times})


@pytest.mark.parametrize(
    ("times", "unit", "said"),
    [
        (
            [START, START // 1000, START],
            "ms",
            "1700000000 is 1970-01-20 16:13:20 UTC in ms, before the year 2000; unit: s would",
        ),
        (
            [START // 1000, START, START // 1000],
            "s",
            "is 55840-11-08 22:13:20 UTC in s, in the future; unit: ms would fit",
        ),
        ([START, START * 10**6, START], "ms", "is no time in ms; unit: ns would fit"),
        (["1700000000000", "1700000000000000", "1700000000000"], "ms", "in the future; unit: us would fit"),
        ([START, 12, START], "ms", "12 is 1970-01-01 00:00:00 UTC in ms, before the year 2000; correct it"),
        ([START, 4_102_444_800_000, START], "ms", "is 2100-01-01 00:00:00 UTC in ms, in the future; correct it"),
        (
            pa.array([START, 4_102_444_800_000, START], pa.timestamp("ms")),
            "s",
            "is 2100-01-01 00:00:00 UTC, in the future",
        ),
    ],
)
def test_times_before_2000_or_in_the_future(folder: Path, times: Any, unit: str, said: str) -> None:
    time = {"column": "t", "unit": unit}
    unusable(folder, "log.parquet, row 2", "'t'", said, field="t", columns={"t": times}, time=time)


@pytest.mark.parametrize("labels", [[0, 1, None], [0.0, 1.0, float("nan")], ["0", "1", ""]])
def test_labels_that_are_missing(folder: Path, labels: list[Any]) -> None:
    unusable(folder, "log.parquet, row 3", "'y' is missing", field="y", columns={"y": labels})


def test_labels_that_are_constant(folder: Path) -> None:
    unusable(folder, "log.parquet", "'y'", "every row is negative", "0", field="y", columns={"y": [0, 0, 0]})
    unusable(folder, "'y'", "every row is positive", field="y", label={"column": "y", "positive": [0, 1]}, columns={})


def test_a_log_without_rows(folder: Path) -> None:
    (folder / "log.csv").write_text("t,y,user,item\n", "utf-8")
    unusable(folder, "log.csv", "no rows", field="y", files=["log.csv"])


def test_a_csv_with_a_broken_line(folder: Path) -> None:
    (folder / "log.csv").write_text("t,y,user,item\n1,0,1,2\n2,1,1\n3,1,1,1,1,1\n", "utf-8")
    with pytest.raises(DataError, match=r"log\.csv"):
        open_log(write(folder, files=["log.csv"]), folder / "cache")


def test_a_join_whose_key_is_not_unique(folder: Path) -> None:
    (folder / "items.csv").write_text("item,author\na,1\nb,2\na,3\n", "utf-8")
    fields = [{"name": "author", "role": "candidate"}]
    joins = [{"file": "items.csv", "on": "item"}]
    unusable(folder, "items.csv", "'item'", "'a' stands in 2 rows", field="item", joins=joins, fields=fields)


def test_a_join_that_finds_nothing(folder: Path) -> None:
    (folder / "items.csv").write_text("item,author\nx,1\n", "utf-8")
    fields = [{"name": "author", "role": "candidate"}]
    joins = [{"file": "items.csv", "on": "item"}]
    unusable(folder, "items.csv", "no row of the log finds its key", field="item", joins=joins, fields=fields)


def test_numbers_that_are_none(folder: Path) -> None:
    unusable(
        folder,
        "log.parquet, row 2",
        "'item': 'b' is not",
        field="item",
        fields=NUMBER,
        columns={"item": ["1", "b", ""]},
    )
    for value in (float("inf"), -float("inf"), 1e39):
        columns = {"item": [1.0, value, 2.0]}
        unusable(folder, "log.parquet, row 2", "'item'", "infinite", field="item", fields=NUMBER, columns=columns)


@pytest.mark.parametrize("keys", [[None, 1, 1], ["", "a", "a"], [float("nan"), 1.0, 1.0]])
def test_a_request_without_a_key(folder: Path, keys: list[Any]) -> None:
    unusable(folder, "log.parquet, row 1", "'r' is missing", field="r", request="r", columns={"r": keys})


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ({}, ["x", "y", "z"]),
        ({}, ["x", None, "z"]),
        ({"kind": "number"}, [1.0, float("nan"), 2.0]),
        ({"kind": "bag", "separator": ","}, ["a,b", "b,a", ""]),
    ],
)
def test_context_that_varies_within_a_request(folder: Path, kind: dict[str, str], values: list[Any]) -> None:
    fields = [{"name": "user", "role": "context", **kind}, GOOD["fields"][1]]
    columns = {"user": values, "r": ["p", "p", "q"]}
    unusable(
        folder, "row 2", "'user' varies within request 'p'", field="user", fields=fields, request="r", columns=columns
    )
    fields[0]["role"] = "candidate"
    assert open_log(write(folder, fields=fields, request="r"), folder / "cache").request_count == 2


def test_context_that_is_missing_in_every_way_is_one_value(folder: Path) -> None:
    pq.write_table(
        pa.table({**COLUMNS, "user": [None, "", None], "age": [None, float("nan"), 1.0]}), folder / "log.parquet"
    )
    fields = [{"name": "user", "role": "context"}, {"name": "age", "role": "context", "kind": "number"}]
    assert open_log(write(folder, fields=fields, request="r"), folder / "cache").request_count == 2


def test_context_that_varies_across_two_batches_of_a_request(folder: Path) -> None:
    n = 70_000  # more than one batch
    columns = {"t": list(range(START, START + n)), "y": [i % 2 for i in range(n)], "r": [1] * n, "item": ["a"] * n}
    pq.write_table(pa.table({**columns, "user": [int(i >= 65_536) for i in range(n)]}), folder / "log.parquet")
    unusable(folder, "row 65537", "'user' varies within request 1", field="user", request="r")
    pq.write_table(pa.table({**columns, "user": [1] * n}), folder / "log.parquet")
    log = open_log(folder / "dataset.yaml", folder / "cache")
    assert (log.request_count, log.rows) == (1, n)
    assert [len(chunk) for chunk in log.chunks()] == [n]


KEEP = {"keep": 0.1, "where": {"y": 0}}


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        ({**KEEP, "probability": {"column": "r"}}, ("keep 0.1", "probability of column 'r'", "remove one")),
        ({**KEEP, "inverse": "r"}, ("keep 0.1", "inverse of column 'r'")),
        ({"probability": "r", "inverse": "r"}, ("probability of column 'r'", "inverse of column 'r'")),
        ({}, ("nothing is said", "give keep")),
        ({"keep": 0.0, "where": {"y": 0}}, ("sampling.keep", "greater than 0")),
        ({"keep": 0.1, "where": {"click": 0}}, ("names 'click'", "column 'y'")),
        ({"keep": 0.1, "where": {"y": 0, "z": 1}}, ("where goes with keep", "one label")),
        ({"probability": "r", "where": {"y": 0}}, ("where goes with keep",)),
        ({"probability": "user"}, ("field 'user'", "sampling", "must not see it")),
        ({"inverse": "gone"}, ("no column 'gone'", "sampling")),
    ],
)
def test_sampling_says_one_thing(folder: Path, sampling: dict[str, Any], said: tuple[str, ...]) -> None:
    refused(folder, *said, sampling=sampling)


def test_what_sampling_names_must_be_a_value_of_the_label(folder: Path) -> None:
    strict = {"column": "y", "positive": [1], "negative": [0]}
    refused(folder, "'2' is neither in", label=strict, sampling={"keep": 0.1, "where": {"y": 2}})
    unusable(folder, "no row has a value", "values seen: 1, 0", field="y", sampling={"keep": 0.1, "where": {"y": "no"}})


@pytest.mark.parametrize(
    ("sampling", "values", "said"),
    [
        ("probability", [0.5, 1.2, 1.0], "row 2: column 'p' is 1.2; a probability is above 0 and at most 1"),
        ("probability", [0.5, 0.0, 1.0], "row 2: column 'p' is 0; "),
        ("probability", [0.5, None, 1.0], "row 2: column 'p' is missing"),
        ("probability", ["a", "0.5", "1"], "'a' is not a number"),
        ("inverse", [1.0, 2.0, 0.5], "row 3: column 'p' is 0.5; 1 / probability is a finite number of at least 1"),
        ("inverse", [1.0, float("inf"), 2.0], "row 2: column 'p' is inf"),
    ],
)
def test_shares_outside_their_range_are_refused(folder: Path, sampling: str, values: list[Any], said: str) -> None:
    unusable(folder, "log.parquet", said, field="p", columns={"p": values}, sampling={sampling: {"column": "p"}})


def test_weights_are_finite_and_not_all_zero(folder: Path) -> None:
    unusable(folder, "row 1: column 'w' is -1", field="w", columns={"w": [-1, 1, 1]}, sample_weight="w")
    unusable(folder, "every row's weight is 0", field="w", columns={"w": [0, 0, 0]}, sample_weight="w")


def test_rows_carry_what_they_stand_for(folder: Path) -> None:
    columns = {**COLUMNS, "p": [0.25, 1.0, 0.25], "v": [4, 1, 4], "w": [1.0, 5.0, 1.0]}
    pq.write_table(pa.table(columns), folder / "log.parquet")
    ways = ({"keep": 0.25, "where": {"y": 0}}, {"probability": "p"}, {"inverse": {"column": "v"}})
    logs = [open_log(write(folder, sampling=way, sample_weight="w"), folder / "cache") for way in ways]
    for log in logs:
        (chunk,) = log.chunks()
        assert chunk.probability.tolist() == [0.25, 1.0, 0.25]
        assert chunk.stands_for.tolist() == [4, 1, 4]
        assert chunk.weight.tolist() == [1, 5, 1]
        assert "3 rows stand for 9 of the traffic, of which 11.11% are positive" in log.notes[-1]
        assert [r.probability.tolist() for r in log.requests()] == [[0.25], [1.0], [0.25]]
    assert logs[0].label_offset == pytest.approx(1.3863, abs=1e-4)
    assert [log.label_offset for log in logs[1:]] == [None, None]
    plain = open_log(write(folder), folder / "cache")
    assert plain.label_offset == 0.0
    assert next(plain.chunks()).stands_for.tolist() == [1, 1, 1]


def test_all_that_is_wrong_is_said_at_once(folder: Path) -> None:
    fields = [*GOOD["fields"], {"name": "brand", "role": "candidate"}, {"name": "color", "role": "user"}]
    path = write(folder, labels=1, request="session", fields=fields, sampling={"keep": 2.0}, routing_key="visitor")
    with pytest.raises(DataError) as caught:
        Dataset.load(path)
    lines = str(caught.value).split("\n  ")
    assert lines[0] == f"{path}: 6 things to correct:"
    wanted = (
        "sampling.keep: Input should be less than or equal to 1",
        "fields.3.role: Input should be 'context' or 'candidate'",
        "labels: unknown key; remove it or correct its spelling",
        "no column 'session' (named in request)",
        "no column 'visitor' (named in routing_key)",
        "no column 'brand' (named in fields)",
    )
    for said, line in zip(wanted, lines[1:], strict=True):
        assert said in line


def test_contradictions_and_columns_of_other_types_are_said_together(folder: Path) -> None:
    columns = {**COLUMNS, "when": [{"a": 1}] * 3, "place": [{"b": 2}] * 3}
    pq.write_table(pa.table(columns), folder / "log.parquet")
    fields = [{"name": "place", "role": "candidate"}, *NUMBER]
    refused(folder, "2 things", "'when' is of type", "'place' is of type", fields=fields, request="when")
    twice = [GOOD["fields"][0], GOOD["fields"][0], {"name": "y", "role": "candidate"}]
    refused(folder, "2 things", "'y' is the label", "'user' is named twice", fields=twice)

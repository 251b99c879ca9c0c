"""Export and import of labelled rows, into another log or the same: complete, exactly once, repeatable."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from traffic_places import Place
from traffic_samples import CANDIDATE, IDS, LATE_MS, WINDOW_MS

from pipeline.errors import DataError, InvalidInput
from pipeline.features import Bag, Features, IdPart, NumberPart
from pipeline.hashing import hash_value
from pipeline.schema import FieldSpec, Schema
from pipeline.traffic.export import reading
from pipeline.traffic.export.reading import read_rows
from pipeline.traffic.export.writing import export_rows
from pipeline.traffic.local.log import LocalTrafficLog
from pipeline.traffic.log import Exposure, FeedbackEntry, Labelled, Outcome, Scores, TrafficLog
from pipeline.traffic.prediction import PredictionIds
from pipeline.traffic.record import PredictionRecord, pack, unpack
from pipeline.traffic.redaction import REDACTED, Redaction
from pipeline.traffic.restore import restore

START = 1_700_000_000_000
N = 5
EVERYTHING_MS = START + 10**7


@pytest.fixture
def log(place: Place) -> Iterator[TrafficLog]:
    log = place.open(late_ms=LATE_MS)
    yield log
    log.close()


def predict(log: TrafficLog, time_ms: int, *, endpoint: str = "ranker", other: bool = True) -> str:
    """Context once, two parts of ids in turned order, numbers with a gap, bags of which some are empty."""
    prediction_id = IDS.new(time_ms)
    rng = np.random.default_rng(time_ms % 1000)
    features = Features(
        N,
        (
            IdPart(np.array([2, 0], np.int32), rng.integers(1, 1 << 60, (1, 2))),
            IdPart(np.array([1], np.int32), rng.integers(1, 1 << 60, (N, 1))),
        ),
        (NumberPart(np.zeros(1, np.int32), np.array([[np.nan], [1], [2], [3], [4]], np.float32)),),
        (Bag(0, np.array([0, 2, 2, 3, 3, 3], np.int32), rng.integers(1, 1 << 60, 3)),),
    )
    scores = rng.random(N, np.float32)
    candidates = np.arange(CANDIDATE, CANDIDATE + N)
    log.append_predictions(
        [pack(PredictionRecord(prediction_id, time_ms, endpoint, "stable", "t", 7, features, scores, 1 << 63, False, candidates))]
    )  # fmt: skip
    if other:
        log.append_scores([(prediction_id, Scores("candidate", "s", 3, rng.random(N, np.float32)))])
    return prediction_id


def fill(log: TrafficLog) -> None:
    """Some rows shown, some labels revised, a row shown after its prediction had closed, nothing shown at first."""
    ids = [predict(log, START + i, other=bool(i % 2)) for i in range(4)]
    for prediction_id in ids[:3]:
        shown = [Exposure(3, position=1), Exposure(1), Exposure(4, position=0)]
        log.append_feedback([FeedbackEntry(prediction_id, shown, [Outcome(3, 1.0)])], START + 10)
    while log.join(START + 2 * WINDOW_MS):
        pass
    later = START + 3 * WINDOW_MS
    log.append_feedback(
        [FeedbackEntry(ids[0], (), [Outcome(1, 1.0)]), FeedbackEntry(ids[1], (), [Outcome(3, 0.5)])], later
    )
    log.append_feedback([FeedbackEntry(ids[2], [Exposure(0)]), FeedbackEntry(ids[3], [Exposure(2)])], later)
    while log.join(EVERYTHING_MS):
        pass


def entries(log: TrafficLog) -> list[Labelled]:
    return log.labelled(0, 1000)


def last(log: TrafficLog) -> dict[tuple[int, int], tuple[object, ...]]:
    """Each labelled row by its prediction's time and its index: label, position, features and scores by arm."""
    rows: dict[tuple[int, int], tuple[object, ...]] = {}
    for entry in entries(log):
        record = unpack(entry.record)
        arms = {record.arm: record.scores} | {other.arm: other.scores for other in entry.other}
        for index, label, position in zip(entry.indices.tolist(), entry.labels.tolist(), entry.positions, strict=True):
            f = record.features
            ids = {int(c): int(p.values[index % len(p.values), k]) for p in f.ids for k, c in enumerate(p.columns)}
            bag = f.bags[0].take(np.array([index])).values.tolist()
            number = repr(float(f.numbers[0].values[index, 0]))
            told = {arm: float(scores[index]) for arm, scores in arms.items()}
            rows[record.time_ms, index] = label, int(position), ids, number, bag, told, record.routing_hash
    return rows


def bring(log: TrafficLog, path: Path, ids: PredictionIds = IDS) -> tuple[int, int]:
    done = restore(log, ids, read_rows(path, EVERYTHING_MS))
    while log.join(EVERYTHING_MS):
        pass
    return done.new, done.new_rows


def test_a_round_trip_keeps_every_row_and_a_second_one_changes_nothing(log: TrafficLog, tmp_path: Path) -> None:
    fill(log)
    path = tmp_path / "rows.parquet"
    assert export_rows(log, path) == sum(len(e.indices) for e in entries(log)) == 13
    other = LocalTrafficLog(tmp_path / "other", PredictionIds(b"z" * 32), WINDOW_MS, LATE_MS)
    assert bring(other, path, PredictionIds(b"z" * 32)) == (4, 11)
    assert last(other) == last(log)
    assert all(unpack(e.record).overridden for e in entries(other))
    before = len(entries(other))
    assert bring(other, path, PredictionIds(b"z" * 32)) == (0, 0)
    assert len(entries(other)) == before
    other.close()
    mine = [(e.seq, e.prediction_id, e.revision, e.labels.tolist()) for e in entries(log)]
    assert bring(log, path) == (0, 0)
    assert [(e.seq, e.prediction_id, e.revision, e.labels.tolist()) for e in entries(log)] == mine


def test_an_import_that_was_broken_off_goes_on(log: TrafficLog, tmp_path: Path) -> None:
    fill(log)
    path = tmp_path / "rows.parquet"
    export_rows(log, path)
    other = LocalTrafficLog(tmp_path / "other", IDS, WINDOW_MS, LATE_MS)
    restore(other, IDS, list(read_rows(path, EVERYTHING_MS))[:2])
    assert bring(other, path)[0] == 2
    assert last(other) == last(log)
    other.close()


def of_texts(log: TrafficLog) -> str:
    """A prediction of which rows 1 and 3 are labelled, with what its caller wrote."""
    prediction_id = IDS.new(START)
    features = Features(N, (IdPart(np.zeros(1, np.int32), np.arange(1, N + 1).reshape(N, 1)),))
    record = PredictionRecord(
        prediction_id, START, "ranker", "stable", "t", 7, features, np.zeros(N, np.float32),
        request_id="r-7", candidate_texts=[f"item-{i}" for i in range(N)],
    )  # fmt: skip
    log.append_predictions([pack(record)])
    log.append_feedback([FeedbackEntry(prediction_id, [Exposure(1), Exposure(3)], [Outcome(3, 1.0)])], START)
    while log.join(EVERYTHING_MS):
        pass
    return prediction_id


def test_an_export_has_the_texts_of_callers_where_they_are_kept(log: TrafficLog, tmp_path: Path) -> None:
    of_texts(log)
    path = tmp_path / "rows.parquet"
    export_rows(log, path)
    table = pq.read_table(path)
    assert table.column("request_id").to_pylist() == ["r-7", "r-7"]
    assert table.column("candidate_text").to_pylist() == ["item-1", "item-3"]
    other = LocalTrafficLog(tmp_path / "other", IDS, WINDOW_MS, LATE_MS)
    bring(other, path)
    record = unpack(entries(other)[0].record)
    assert (record.request_id, list(record.candidate_texts)) == ("r-7", ["", "item-1", "", "item-3", ""])
    other.close()


def test_texts_of_callers_are_dropped_and_hashed_again(log: TrafficLog, tmp_path: Path) -> None:
    of_texts(log)
    path = tmp_path / "rows.parquet"
    schema = Schema(fields=(FieldSpec(name="item", role="candidate", kind="id"),))

    def written(drop: list[str], rekey: list[str]) -> list[dict[str, Any]]:
        redaction = Redaction(schema, drop, rekey)
        assert [
            name for name in ("request_id", "candidate_text") if any(name in said for said in redaction.kept())
        ] == [name for name in ("request_id", "candidate_text") if name not in drop + rekey]
        export_rows(log, path, redaction=redaction)
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows

    assert not {"request_id", "candidate_text"} & set(written(["request_id", "candidate_text"], [])[0])
    rows = written([], ["request_id", "candidate_text"])
    assert len({row["request_id"] for row in rows}) == 1
    assert len({row["candidate_text"] for row in rows}) == 2
    for secret in (b"r-7", b"item-1"):
        assert secret not in path.read_bytes()
    again = written([], ["request_id", "candidate_text"])
    assert {row["candidate_text"] for row in rows}.isdisjoint(row["candidate_text"] for row in again)
    assert [row["request_id"] for row in written(["candidate_text"], [])] == ["r-7", "r-7"]


def test_an_export_of_baton_0_1_is_read(log: TrafficLog, tmp_path: Path) -> None:
    fill(log)
    path = tmp_path / "rows.parquet"
    export_rows(log, path)
    pq.write_table(pq.read_table(path).drop_columns(["request_id", "candidate_text"]), path)
    other = LocalTrafficLog(tmp_path / "other", IDS, WINDOW_MS, LATE_MS)
    bring(other, path)
    assert last(other) == last(log)
    other.close()


def test_rows_shown_after_an_earlier_export_are_left_out(log: TrafficLog, tmp_path: Path) -> None:
    prediction_id = predict(log, START)
    log.append_feedback([FeedbackEntry(prediction_id, [Exposure(1)], [Outcome(1, 1.0, final=True)])], START)
    log.join(EVERYTHING_MS)
    first, second = tmp_path / "first.parquet", tmp_path / "second.parquet"
    export_rows(log, first)
    log.append_feedback([FeedbackEntry(prediction_id, [Exposure(2)], [Outcome(2, 1.0, final=True)])], START + 5)
    log.join(EVERYTHING_MS)
    export_rows(log, second)
    other = LocalTrafficLog(tmp_path / "other", IDS, WINDOW_MS, LATE_MS)
    bring(other, first)
    done = restore(other, IDS, read_rows(second, EVERYTHING_MS))
    assert (done.new_rows, done.left_out) == (0, 1)
    other.join(EVERYTHING_MS)
    assert list(last(other)) == [(START, 1)]
    other.close()


def test_only_what_is_asked_for_is_exported(log: TrafficLog, tmp_path: Path) -> None:
    for i, endpoint in enumerate(("ranker", "other", "ranker", "ranker")):
        prediction_id = predict(log, START + i, endpoint=endpoint)
        log.append_feedback([FeedbackEntry(prediction_id, [Exposure(1)], [Outcome(1, 1.0, final=True)])], START + i)
    log.join(EVERYTHING_MS)
    path = tmp_path / "rows.parquet"
    assert export_rows(log, path, endpoint="ranker", since_ms=START + 1, until_ms=START + 3) == 1
    table = pq.read_table(path)
    assert table.column("time").to_pylist()[0].timestamp() * 1000 == START + 2
    assert table.column("candidate_id").to_pylist() == [CANDIDATE + 1]
    assert table.column("stable").to_pylist()[0]["bundle"] == "t"
    assert table.column("direct").null_count == 1
    assert sorted(p.name for p in tmp_path.glob("*.parquet")) == ["rows.parquet"]


@pytest.mark.parametrize(
    ("time_ms", "said"),
    [
        (START // 1000, r"column 'time': 1970-01-20 16:13:20 UTC is before the year 2000"),
        (EVERYTHING_MS + 9 * 3_600_000, r"column 'time': .* is in the future; times are UTC"),
        (1 << 60, r"column 'time': .* is in the future"),
    ],
)
def test_rows_of_no_possible_time_are_refused(log: TrafficLog, tmp_path: Path, time_ms: int, said: str) -> None:
    for made_ms in (START, START + 1):
        log.append_feedback(
            [FeedbackEntry(predict(log, made_ms), (), [Outcome(1, 1.0, final=True)], exposed_all=True)], made_ms
        )
    log.join(EVERYTHING_MS)
    path = tmp_path / "rows.parquet"
    export_rows(log, path)
    table = pq.read_table(path)
    times = [*table.column("time").cast(pa.int64()).to_pylist()[:-1], time_ms]
    column = pa.array(times).cast(pa.timestamp("ms", "UTC"))
    pq.write_table(table.set_column(3, table.schema.field("time"), column), path)
    with pytest.raises(DataError, match=said):
        list(read_rows(path, EVERYTHING_MS))


def test_files_that_are_no_export_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_text("no parquet at all")
    with pytest.raises(DataError, match="is not Parquet"):
        list(read_rows(path, EVERYTHING_MS))
    pq.write_table(pa.table({"seq": [1]}), path)
    with pytest.raises(DataError, match=r"no column 'prediction_id'; describe other logs by a dataset\.yaml"):
        list(read_rows(path, EVERYTHING_MS))


FIELDS = Schema(
    fields=(
        FieldSpec(name="user_id", role="context", kind="id"),
        FieldSpec(name="item", role="candidate", kind="id"),
        FieldSpec(name="age", role="context", kind="number"),
        FieldSpec(name="city", role="context", kind="id"),
        FieldSpec(name="tags", role="candidate", kind="bag", separator=","),
    )
)
USERS = 4


def of_users(log: TrafficLog) -> None:
    """Three requests of each of some users, one of them without a city; tags are the users' names again."""
    for n in range(3 * USERS):
        user = n % USERS
        city = hash_value("city", None if user == 0 else f"c{user}")
        ids = np.array([[hash_value("user_id", f"u{user}"), city]], np.int64)
        features = Features(
            2,
            (IdPart(np.array([0, 2], np.int32), ids), IdPart(np.array([1], np.int32), np.array([[7], [8]], np.int64))),
            (NumberPart(np.zeros(1, np.int32), np.array([[30.5 + user]], np.float32)),),
            (Bag(0, np.array([0, 1, 3], np.int32), np.array([ids[0, 0], 5, ids[0, 0]], np.int64)),),
        )
        made = IDS.new(START + n)
        record = PredictionRecord(
            made, START + n, "ranker", "stable", "t", 7, features, np.array([0.1, 0.2], np.float32), 1000 + user, False,
            np.array([70, 80], np.int64),
        )  # fmt: skip
        log.append_predictions([pack(record)])
        log.append_feedback([FeedbackEntry(made, [Exposure(0), Exposure(1)], [Outcome(1, 1.0)])], START + 20)
    while log.join(EVERYTHING_MS):
        pass


def exported(
    log: TrafficLog, path: Path, drop: tuple[str, ...] = (), rekey: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    export_rows(log, path, redaction=Redaction(FIELDS, drop, rekey))
    rows: list[dict[str, Any]] = pq.read_table(path).sort_by("seq").to_pylist()
    return rows


def test_a_user_is_found_in_an_export_by_a_list_of_users_and_not_once_the_field_is_rekeyed(
    log: TrafficLog, tmp_path: Path
) -> None:
    of_users(log)
    guesses = {hash_value("user_id", f"u{user}") for user in range(1000)}
    export_rows(log, tmp_path / "plain.parquet")
    plain = pq.read_table(tmp_path / "plain.parquet").sort_by("seq").to_pylist()
    assert all(row["ids"][0] in guesses for row in plain)
    mine = exported(log, tmp_path / "mine.parquet", rekey=("user_id", "tags", "city", "routing_hash", "candidate_id"))
    other = exported(log, tmp_path / "other.parquet", rekey=("user_id", "tags", "city"))
    seen = [value for row in mine for value in (row["ids"][0], *(tag for bag in row["bags"] for tag in bag))]
    assert not guesses & set(seen)
    assert not {row["ids"][0] for row in mine} & {row["ids"][0] for row in other}
    same = {(row["ids"][0], again["ids"][0]) for row, again in zip(plain, mine, strict=True)}
    assert len(same) == USERS  # one name a user, in every row
    assert all(row["ids"][0] in row["bags"][0] for row in mine)  # equal ids stay equal, in bags too
    assert [len(row["bags"][0]) for row in mine] == [len(row["bags"][0]) for row in plain]
    missing = hash_value("city", None)
    assert [row["ids"][2] == missing for row in mine] == [row["ids"][2] == missing for row in plain]
    assert [row["ids"][1] for row in mine] == [row["ids"][1] for row in plain]  # not named: as it was
    assert not {row["routing_hash"] for row in mine} & {row["routing_hash"] for row in plain}
    assert len({row["routing_hash"] for row in mine}) == USERS
    assert not {row["candidate_id"] for row in mine} & {70, 80}
    assert {row["routing_hash"] for row in other} == {row["routing_hash"] for row in plain}


def test_a_dropped_field_is_not_in_the_file_which_says_so(log: TrafficLog, tmp_path: Path) -> None:
    of_users(log)
    path = tmp_path / "rows.parquet"
    rows = exported(log, path, drop=("user_id", "age", "tags", "prediction_id", "routing_hash"))
    assert [len(row["ids"]) for row in rows] == [2] * len(rows)
    assert {tuple(row["numbers"]) for row in rows} == {()}
    assert {tuple(row["bags"]) for row in rows} == {()}
    assert not {"prediction_id", "routing_hash"} & set(rows[0])
    assert [row["ids"][0] for row in rows] == [7, 8] * (len(rows) // 2)
    said = json.loads(pq.read_schema(path).metadata[REDACTED])
    assert said["dropped"] == ["age", "prediction_id", "routing_hash", "tags", "user_id"]
    assert said["fields"] == {"ids": ["item", "city"], "numbers": [], "bags": []}
    for drop, rekey in ((("age",), ()), ((), ("user_id",))):
        exported(log, path, drop, rekey)
        with pytest.raises(DataError, match=r"left out or hashed again.*without --drop and --rekey"):
            list(read_rows(path, EVERYTHING_MS))


def test_names_that_cannot_be_redacted_are_refused_with_those_that_can(log: TrafficLog, tmp_path: Path) -> None:
    with pytest.raises(
        InvalidInput, match="--drop usr: there is no such field; there are user_id, item, age, city, tags"
    ):
        Redaction(FIELDS, ["usr"], [])
    with pytest.raises(InvalidInput, match=r"--rekey label.*user_id.*routing_hash"):
        Redaction(FIELDS, [], ["label"])
    with pytest.raises(InvalidInput, match="--rekey age: it is a number"):
        Redaction(FIELDS, [], ["age"])
    with pytest.raises(InvalidInput, match="in --drop and in --rekey"):
        Redaction(FIELDS, ["item"], ["item"])
    of_users(log)
    path = tmp_path / "rows.parquet"
    with pytest.raises(DataError, match=r"3 ids, 1 numbers and 1 bags.*--since"):
        export_rows(log, path, redaction=Redaction(Schema(fields=FIELDS.fields[:2]), ["user_id"], []))
    turned = Schema(fields=FIELDS.fields[::-1])
    with pytest.raises(DataError, match="answered by t 7 with other fields"):
        export_rows(log, path, redaction=Redaction(FIELDS, ["user_id"], [], lambda bundle, version: turned))
    assert not path.exists()


@pytest.mark.parametrize("mask", [0, 0o022, 0o777])
def test_an_export_is_its_owners_alone_whatever_the_umask(log: TrafficLog, tmp_path: Path, mask: int) -> None:
    path = tmp_path / "rows.parquet"
    path.touch()
    path.chmod(0o666)
    before = os.umask(mask & 0o177)
    try:
        export_rows(log, path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("candidates", 2**31 - 1, "2147483647 candidates"),
        ("candidates", 0, "has 0 candidates"),
        ("index", 99, "a row of another one"),
        ("index", -1, "a row of another one"),
    ],
)
def test_a_forged_export_takes_no_memory_on_its_word(
    log: TrafficLog, tmp_path: Path, column: str, value: object, message: str
) -> None:
    fill(log)
    path = tmp_path / "rows.parquet"
    export_rows(log, path)
    table = pq.read_table(path)
    values = table[column].to_pylist()
    values[0] = value
    table = table.set_column(
        table.column_names.index(column), table.schema.field(column), pa.array(values, table.schema.field(column).type)
    )
    pq.write_table(table, path)
    with pytest.raises(DataError, match=message) as refused:
        list(read_rows(path, EVERYTHING_MS))
    assert "rows.parquet" in str(refused.value)


def test_an_export_that_is_far_more_once_unpacked_is_refused_by_number(
    log: TrafficLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PLAIN_VALUES", 1_000_000)
    fill(log)
    path = tmp_path / "rows.parquet"
    export_rows(log, path)
    table = pq.read_table(path)
    row = table.slice(0, 1)
    pq.write_table(row.take(pa.array(np.zeros(200_000, np.int32))), path, row_group_size=1 << 20)
    with pytest.raises(DataError, match=r"rows\.parquet: holds [0-9,]+ values in [0-9,]+ bytes"):
        list(read_rows(path, EVERYTHING_MS))

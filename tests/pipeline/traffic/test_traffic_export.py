"""Export and import of labelled rows, into another log or the same: complete, exactly once, repeatable."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from traffic_places import Place
from traffic_samples import CANDIDATE, IDS, LATE_MS, WINDOW_MS

from pipeline.errors import DataError
from pipeline.features import Bag, Features, IdPart, NumberPart
from pipeline.traffic.log import Exposure, FeedbackEntry, Labelled, Outcome, Scores, TrafficLog
from pipeline.traffic.parquet import export_rows, read_rows
from pipeline.traffic.prediction import PredictionIds
from pipeline.traffic.record import PredictionRecord, pack, unpack
from pipeline.traffic.restore import restore
from pipeline.traffic.sqlite.log import SqliteTrafficLog

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
    other = SqliteTrafficLog(tmp_path / "other.db", PredictionIds(b"z" * 32), WINDOW_MS, LATE_MS)
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
    other = SqliteTrafficLog(tmp_path / "other.db", IDS, WINDOW_MS, LATE_MS)
    restore(other, IDS, list(read_rows(path, EVERYTHING_MS))[:2])
    assert bring(other, path)[0] == 2
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
    other = SqliteTrafficLog(tmp_path / "other.db", IDS, WINDOW_MS, LATE_MS)
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

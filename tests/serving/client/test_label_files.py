"""Labels from files: every kind, files that grow, places that survive, rows that cannot be taken."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipeline.errors import InvalidInput, NotReady
from pipeline.traffic.log import ACCEPTED, DUPLICATE, EXPIRED, FeedbackEntry, FeedbackReply
from serving.cli.main import app
from serving.client import ObservedAnswer, RankingClient
from serving.client.label_files import label_files
from serving.client.labels import LabelColumns, LabelImport
from serving.client.testing import FakeServer


class Kept:
    """Answers as the log does, and keeps what was new; `away` calls fail first."""

    def __init__(self) -> None:
        self.seen: set[tuple[object, ...]] = set()
        self.entries: list[FeedbackEntry] = []
        self.away = 0

    def feedback(self, entries: Sequence[FeedbackEntry], /) -> list[FeedbackReply]:
        if self.away:
            self.away -= 1
            raise NotReady("restarting")
        self.entries += entries
        return [self._reply(entry) for entry in entries]

    def _reply(self, entry: FeedbackEntry) -> FeedbackReply:
        if entry.request_id == "old":
            return FeedbackReply((EXPIRED,) * len(entry.exposed), (EXPIRED,) * len(entry.outcomes), "too old")
        keys = [
            [(entry.request_id, entry.prediction_id, kind, p.name, p.index) for p in parts]
            for kind, parts in (("shown", entry.exposed), ("label", entry.outcomes))
        ]
        exposed, outcomes = ([DUPLICATE if key in self.seen else ACCEPTED for key in some] for some in keys)
        self.seen.update(*keys)
        return FeedbackReply(tuple(exposed), tuple(outcomes))


@pytest.fixture
def kept() -> Kept:
    return Kept()


def work(kept: Kept, folder: Path, **columns: object) -> LabelImport:
    return LabelImport(kept, "ranker", LabelColumns(**columns), folder / "place.json", sleep=lambda _: None)  # type: ignore[arg-type]


ROWS = [
    {"request_id": "r1", "candidate_id": "a", "label": "exposure", "value": None, "time": 1000, "position": 0},
    {"request_id": "r1", "candidate_id": "b", "label": "exposure", "value": None, "time": 1000, "position": 1},
    {"request_id": "r1", "candidate_id": "b", "label": "click", "value": 1.0, "time": 2000, "position": None},
    {"request_id": "r2", "candidate_id": 7, "label": "click", "value": 0.5, "time": 3000, "position": None},
]


def write(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([{**r, "candidate_id": str(r["candidate_id"])} for r in rows]), path)
    elif path.suffix == ".csv":
        lines = [",".join("" if v is None else str(v) for v in row.values()) for row in rows]
        path.write_text("\n".join([",".join(rows[0]), *lines]) + "\n")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_the_same_labels_come_of_every_kind_of_file_and_once(tmp_path: Path, kept: Kept, ending: str) -> None:
    path = write(tmp_path / f"labels.{ending}", ROWS)
    first = work(kept, tmp_path)
    assert first.run([path]) == 4
    assert first.totals.statuses == {ACCEPTED: 4}
    one, two = kept.entries
    assert (one.request_id, one.endpoint, two.request_id) == ("r1", "ranker", "r2")
    assert [(e.name, e.position, e.time_ms) for e in one.exposed] == [("a", 0, 1000), ("b", 1, 1000)]
    assert [(o.name, o.label, o.time_ms) for e in (one, two) for o in e.outcomes] == [("b", 1, 2000), ("7", 0.5, 3000)]
    assert work(kept, tmp_path).run([path]) == 0, "another run goes on where this one ended"
    (tmp_path / "place.json").unlink()
    again = work(kept, tmp_path)
    again.run([path])
    assert again.totals.statuses == {DUPLICATE: 4}


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_file_that_grows_is_read_on_and_never_in_the_middle_of_a_row(tmp_path: Path, kept: Kept, ending: str) -> None:
    whole = write(tmp_path / f"whole.{ending}", ROWS).read_bytes()
    folder = tmp_path / "in"
    folder.mkdir()
    growing = folder / f"labels.{ending}"
    job = work(kept, tmp_path)
    for size in range(0, len(whole), 7):
        growing.write_bytes(whole[:size])
        job.run([folder], growing=True)
    growing.write_bytes(whole)
    job.run([folder], growing=True)
    assert job.totals.statuses == {ACCEPTED: 4}
    write(folder / "more.parquet", [ROWS[3] | {"request_id": "r9"}])
    (folder / "half.parquet").write_bytes(b"PAR1 not yet")
    assert job.run([folder], growing=True) == 1
    with pytest.raises(InvalidInput, match="is no whole Parquet file"):
        job.run([folder])


def test_rows_that_cannot_be_taken_are_counted_and_named(tmp_path: Path, kept: Kept) -> None:
    path = tmp_path / "labels.jsonl"
    rows = [
        '{"candidate_id": "a"}', "no json", '{"request_id": "r1"}', '{"request_id": "r1", "candidate_id": "a", "value": "x"}',
        '{"request_id": "old", "candidate_id": "a"}', '{"request_id": "r2", "index": 3, "label": "click"}',
        '{"prediction_id": "p1", "request_id": "r3", "index": 0, "label": "buy"}',
    ]  # fmt: skip
    path.write_text("\n".join(rows))
    job = work(kept, tmp_path, only="click", exposed_all=True)
    job.run([path])
    assert job.totals.statuses == {"invalid": 4, "expired": 1, ACCEPTED: 1}
    assert (job.totals.skipped, job.totals.refused, job.totals.rows) == (1, 5, 7)
    assert any("row 1: it has neither request_id nor prediction_id" in reason for reason in job.totals.reasons)
    last = kept.entries[-1]
    assert (last.request_id, last.outcomes[0].index, last.exposed_all) == ("r2", 3, True)


def test_times_and_other_names_of_columns(tmp_path: Path, kept: Kept) -> None:
    at = datetime(2026, 5, 1, 12, tzinfo=UTC)
    pq.write_table(pa.table({"key": ["r1"], "item": ["a"], "when": [at]}), tmp_path / "t.parquet")
    (tmp_path / "u.csv").write_text('key,item,when\n"r,1","b\n""c""",1777636800\nr2,d,2026-05-01T12:00:00+00:00\n')
    job = work(kept, tmp_path, request_id="key", candidate="item", time="when", unit="s")
    job.run([tmp_path])
    labels = [(e.request_id, o.name, o.time_ms) for e in kept.entries for o in e.outcomes]
    ms = round(at.timestamp() * 1000)
    assert labels == [("r1", "a", ms), ("r,1", 'b\n"c"', ms), ("r2", "d", ms)]
    with pytest.raises(InvalidInput, match="unit of times"):
        LabelColumns(unit="h")


def test_a_server_that_is_away_is_waited_for_and_the_place_stays(tmp_path: Path, kept: Kept) -> None:
    path = write(tmp_path / "labels.csv", ROWS)
    kept.away = 3
    job = work(kept, tmp_path)
    job.run([path])
    assert job.totals.statuses == {ACCEPTED: 4}
    (tmp_path / "place.json").unlink()
    kept.away = 1000
    with pytest.raises(NotReady):
        work(kept, tmp_path).run([path])
    assert not (tmp_path / "place.json").exists()


def test_files_that_are_none(tmp_path: Path, kept: Kept) -> None:
    (tmp_path / "labels.txt").touch()
    for wrong, why in (("nothing.csv", "is not there"), ("labels.txt", "is none of")):
        with pytest.raises(InvalidInput, match=why):
            label_files([tmp_path / wrong])
    (tmp_path / "place.json").write_text("{")
    with pytest.raises(InvalidInput, match="does not say how far"):
        work(kept, tmp_path)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server, RankingClient(server.target) as client:
        told = [ObservedAnswer(name, scores=[0.1, 0.2]) for name in ("r1", "r2")]
        client.observe("ranker", told)
        yield server


def test_the_command_counts_and_ends_with_1_on_what_was_refused(tmp_path: Path, server: FakeServer) -> None:
    path = write(tmp_path / "labels.csv", ROWS)
    command = ["labels", "import", str(path), "--endpoint", "ranker", "--target", server.target, "-o", "json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert {name: result[name] for name in ("rows", "accepted", "duplicate", "invalid")} == {
        "rows": 4, "accepted": 4, "duplicate": 0, "invalid": 0,
    }  # fmt: skip
    assert (tmp_path / ".baton-labels.json").exists()
    unknown = write(tmp_path / "more.csv", [ROWS[3] | {"request_id": "r3"}])
    done = CliRunner().invoke(app, [*command[:2], str(unknown), *command[3:]])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["invalid"] == 1

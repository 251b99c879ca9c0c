"""`baton log`: show, export and import records of the traffic log."""

from __future__ import annotations

import json
import stat
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from handmade import SCHEMA, random_rows, random_tables
from installation import Installation
from typer.testing import CliRunner, Result

from pipeline.features import Features, IdPart
from pipeline.hashing import hash_value
from pipeline.model.frame import rows_of
from pipeline.traffic.log import FeedbackEntry, Outcome
from pipeline.traffic.prediction import PredictionIds, load_secret
from pipeline.traffic.record import PredictionRecord, pack, unpack
from pipeline.traffic.requests import request_key
from serving.cli.main import app
from serving.wiring.traffic import open_traffic_log

START = 1_700_000_000_000


def baton(made: Installation, *words: str) -> Result:
    config = made.home / "baton.yaml"
    endpoints = {"ranker": {"stable": {"bundle": "teacher"}, "candidate": {"bundle": "student"}}}
    traffic = {"keep_text": made.config.traffic.keep_text}
    config.write_text(yaml.safe_dump({"home": ".", "endpoints": endpoints, "traffic": traffic}))
    return CliRunner().invoke(app, ["log", *words, "--config", str(config)])


def fill(made: Installation, count: int = 5) -> list[str]:
    log = open_traffic_log(made.config)
    ids = PredictionIds(load_secret(made.config.secret))
    made_ids = [ids.new(START + i) for i in range(count)]
    features = Features(2, (IdPart(np.zeros(1, np.int32), np.ones((2, 1), np.int64)),))
    scores = np.array([0.25, 0.5], np.float32)
    log.append_predictions(
        [pack(PredictionRecord(one, START + i, "ranker", "stable", "teacher", 1, features, scores)) for i, one in enumerate(made_ids)]
    )  # fmt: skip
    log.append_feedback(
        [FeedbackEntry(one, outcomes=[Outcome(r, float(r), final=True) for r in (0, 1)], exposed_all=True) for one in made_ids],
        START + count,
    )  # fmt: skip
    log.join(START + count)
    log.close()
    return made_ids


def test_tail_shows_the_last_entries_as_json_lines(installation: Installation) -> None:
    ids = fill(installation)
    shown = [json.loads(line) for line in baton(installation, "tail", "-n", "2", "-o", "json").stdout.splitlines()]
    assert [(s["seq"], s["prediction_id"], s["labels"]) for s in shown] == [(4, ids[3], [0, 1]), (5, ids[4], [0, 1])]
    assert shown[0]["scores"] == {"stable": [0.25, 0.5]}
    answered = baton(installation, "tail", "--what", "predictions", "-o", "json").stdout.splitlines()
    assert [json.loads(line)["prediction_id"] for line in answered] == ids
    assert "teacher" in baton(installation, "tail").stdout


def test_an_export_leaves_out_a_record_whose_bytes_have_changed_and_says_so(
    installation: Installation, tmp_path: Path
) -> None:
    fill(installation)
    (records,) = (installation.home / "traffic" / "lanes").rglob("*.log")
    content = bytearray(records.read_bytes())
    content[len(content) // 2] ^= 1
    records.write_bytes(content)
    for _ in range(2):
        done = baton(installation, "export", str(tmp_path / "rows.parquet"), "-o", "json")
        assert json.loads(done.stdout)["rows"] == 8
        assert done.stderr == "records of the log that are damaged and left out: 1\n"


def test_an_export_comes_back_once(installation: Installation, tmp_path: Path) -> None:
    fill(installation)
    out = tmp_path / "rows.parquet"
    result = json.loads(baton(installation, "export", str(out), "-o", "json", "--since", "2023-11-14T22:13:20").stdout)
    assert (result["rows"], pq.read_metadata(out).num_rows) == (10, 10)
    other = Installation(tmp_path / "other")
    for expected in ((5, 10, 5), (0, 0, 0)):
        done = baton(other, "import", str(out), "-o", "json")
        found = json.loads(done.stdout)
        assert (found["new"], found["new_rows"], found["labelled_entries"]) == expected
    other.store.close()
    assert baton(installation, "export", str(tmp_path / "no" / "rows.parquet")).exit_code == 1


def test_a_described_log_comes_in_as_labelled_rows_without_scores(installation: Installation, tmp_path: Path) -> None:
    rows = 40
    table: dict[str, list[object]] = {
        "when": [START // 1000 + i // 4 for i in range(rows)],
        "list": [i // 4 for i in range(rows)],
        "click": [i % 4 == 1 for i in range(rows)],
    }
    for field in SCHEMA.fields:
        values = {"id": lambda i: f"v{i % 7}", "number": float, "bag": lambda i: "a,b"}
        table[field.name] = [values[field.kind](i // 4 if field.role == "context" else i) for i in range(rows)]  # type: ignore[operator]
    pq.write_table(pa.table(table), tmp_path / "log.parquet")
    described = {
        "name": "old",
        "files": ["log.parquet"],
        "time": {"column": "when", "unit": "s"},
        "label": {"column": "click", "positive": [True]},
        "request": "list",
        "fields": [
            {"name": f.name, "role": f.role, "kind": f.kind, **({"separator": f.separator} if f.separator else {})}
            for f in SCHEMA.fields
        ],
    }
    path = tmp_path / "dataset.yaml"
    path.write_text(yaml.safe_dump(described))
    words = ("import", str(path), "--cache", str(tmp_path / "cache"), "-o", "json")
    assert "--endpoint" in baton(installation, *words).output
    for expected in ((10, 40, 10), (0, 0, 0)):
        done = baton(installation, *words, "--endpoint", "ranker")
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        assert (found["new"], found["new_rows"], found["labelled_entries"]) == expected
    log = open_traffic_log(installation.config)
    entries = log.labelled(0)
    log.close()
    assert [e.labels.tolist() for e in entries] == [[0.0, 1.0, 0.0, 0.0]] * 10
    record = unpack(entries[0].record)
    record.features.check(SCHEMA)
    assert (record.endpoint, record.overridden, record.bundle) == ("ranker", True, "old")
    assert np.isnan(record.scores).all()
    assert not entries[0].other
    thinned = described | {"name": "thin", "sampling": {"keep": 0.25, "where": {"click": False}}}
    (tmp_path / "thin.yaml").write_text(yaml.safe_dump(thinned))
    done = baton(installation, "import", str(tmp_path / "thin.yaml"), *words[2:], "--endpoint", "ranker")
    assert (json.loads(done.stdout)["new"], json.loads(done.stdout)["new_rows"]) == (20, 40), done.output
    log = open_traffic_log(installation.config)
    entries = log.labelled(entries[-1].seq)
    log.close()
    # A request of one click and three rows without becomes a prediction for each share.
    found = {(unpack(e.record).inclusion_probability, tuple(e.labels.tolist())) for e in entries}
    assert found == {(1.0, (1.0,)), (0.25, (0.0, 0.0, 0.0))}
    for entry in entries:
        unpack(entry.record).features.check(SCHEMA)
    described["fields"][0]["missing"] = ["gone"]  # type: ignore[index]
    path.write_text(yaml.safe_dump(described))
    assert "missing is ('gone',) here" in baton(installation, *words, "--endpoint", "ranker").output
    described["fields"] = described["fields"][:-1]  # type: ignore[index]
    path.write_text(yaml.safe_dump(described))
    assert "its fields are not those of endpoint 'ranker'" in baton(installation, *words, "--endpoint", "ranker").output


@pytest.mark.parametrize("keep_text", [False, True])
def test_an_import_keeps_the_texts_of_a_file_where_the_log_is_to_have_them(tmp_path: Path, keep_text: bool) -> None:
    source = Installation(tmp_path / "source", traffic={"keep_text": True})
    made = Installation(tmp_path / "home", traffic={"keep_text": keep_text})
    with closing(open_traffic_log(source.config)) as log:
        one = PredictionIds(load_secret(source.config.secret)).new(START)
        features = Features.from_rows(random_rows(np.random.default_rng(0), 2, random_tables(1)))
        record = PredictionRecord(one, START, "ranker", "stable", "teacher", 1, features, np.zeros(2, np.float32))
        log.append_predictions([pack(replace(record, request_id="r-7", candidate_texts=["a", "b"]))])
        log.append_feedback([FeedbackEntry(one, outcomes=[Outcome(1, 1.0, final=True)], exposed_all=True)], START + 1)
        while log.join(log.now_ms()):
            pass
    out = tmp_path / "rows.parquet"
    assert baton(source, "export", str(out)).exit_code == 0
    assert baton(made, "import", str(out)).exit_code == 0
    with closing(open_traffic_log(made.config)) as log:
        kept = unpack(log.labelled(0)[0].record)
    assert (kept.request_id, list(kept.candidate_texts)) == (("r-7", ["a", "b"]) if keep_text else ("", []))
    for installation in (source, made):
        installation.store.close()


def test_an_export_joins_to_a_teams_own_tables_and_comes_back_whole(tmp_path: Path) -> None:
    source = Installation(tmp_path / "source", traffic={"keep_text": True})
    made = Installation(tmp_path / "home", traffic={"keep_text": True})
    table = pa.table(
        {"user": ["u7", "u7"], "age": [31.5, None], "tags": ["a,b", "a,b"], "item": ["i1", "i2"], "price": [2.0, 3.0],
         "genres": ["x|y", ""]}
    )  # fmt: skip
    rows = rows_of(table, SCHEMA)
    how = {"network": "context.onnx", "stable_version": 1, "candidate_version": 3, "inclusion_probability": 0.125,
           "keep_fraction": 0.5, "load": 0.25, "request_key": request_key("ranker", "r-7"), "routing_hash": 77, "request_id": "r-7", "candidate_texts": ["i1", "i2"],
           "candidate_ids": np.array([5, 6], np.int64)}  # fmt: skip
    with closing(open_traffic_log(source.config)) as log:
        one = PredictionIds(load_secret(source.config.secret)).new(START)
        record = PredictionRecord(
            one, START, "ranker", "stable", "teacher", 1, Features.from_rows(rows), np.array([0.25, 0.5], np.float32), **how
        )  # type: ignore[arg-type]  # fmt: skip
        log.append_predictions([pack(record)])
        log.append_feedback([FeedbackEntry(one, outcomes=[Outcome(1, 1.0, final=True)], exposed_all=True)], START + 1)
        while log.join(log.now_ms()):
            pass
    out = tmp_path / "rows.parquet"
    assert baton(source, "export", str(out)).exit_code == 0
    exported = pq.read_table(out)
    own = {name: exported.column(name).to_pylist() for name in exported.column_names}
    assert own["user"] == [hash_value("user", "u7")] * 2
    assert own["item"] == [hash_value("item", "i1"), hash_value("item", "i2")]
    assert own["price"] == [2.0, 3.0]
    assert own["genres"][0] == [hash_value("genres", "x"), hash_value("genres", "y")]
    for name in (
        "request_id",
        "inclusion_probability",
        "network",
        "stable_version",
        "candidate_version",
        "routing_hash",
    ):
        assert own[name] == [how[name]] * 2, name
    assert (own["candidate_text"], own["candidate_id"]) == (["i1", "i2"], [5, 6])
    assert own["ids"] == own["numbers"] == own["bags"] == [None, None]
    tailed = baton(source, "tail", "-o", "json").stdout
    assert (json.loads(tailed)["request_id"], json.loads(tailed)["candidate_ids"]) == ("r-7", ["i1", "i2"])
    assert "r-7" in baton(source, "tail", "--what", "predictions").stdout
    assert baton(made, "import", str(out)).exit_code == 0
    with closing(open_traffic_log(made.config)) as log:
        back = unpack(log.labelled(0)[0].record)
    assert {name: getattr(back, name) for name in how if name not in ("candidate_ids", "candidate_texts")} == {
        name: value for name, value in how.items() if name not in ("candidate_ids", "candidate_texts")
    }
    found = back.features.rows(SCHEMA)
    assert (found.ids.tolist(), repr(found.numbers.tolist())) == (rows.ids.tolist(), repr(rows.numbers.tolist()))
    assert [bag.values.tolist() for bag in found.bags] == [bag.values.tolist() for bag in rows.bags]
    for installation in (source, made):
        installation.store.close()


def test_an_export_leaves_out_and_hashes_again_what_is_named_by_the_endpoints_fields(
    installation: Installation, tmp_path: Path
) -> None:
    log = open_traffic_log(installation.config)
    one = PredictionIds(load_secret(installation.config.secret)).new(START)
    features = Features.from_rows(random_rows(np.random.default_rng(0), 2, random_tables(1)))
    log.append_predictions(
        [pack(PredictionRecord(one, START, "ranker", "stable", "teacher", 1, features, np.zeros(2, np.float32)))]
    )
    log.append_feedback([FeedbackEntry(one, outcomes=[Outcome(1, 1.0, final=True)], exposed_all=True)], START + 1)
    while log.join(log.now_ms()):
        pass
    log.close()
    out = tmp_path / "rows.parquet"
    done = baton(
        installation, "export", str(out), "--drop", "age", "--rekey", "user", "--rekey", "genres", "-o", "json"
    )
    assert done.exit_code == 0, done.output
    assert "still in the file: candidate_id" in done.stderr
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    rows = pq.read_table(out).to_pylist()
    assert [name for name in ("user", "age", "tags", "item", "price", "genres") if name in rows[0]] == [
        "user", "tags", "item", "price", "genres",
    ]  # fmt: skip
    plain = tmp_path / "plain.parquet"
    assert baton(installation, "export", str(plain)).exit_code == 0
    assert not {row["user"] for row in rows} & {row["user"] for row in pq.read_table(plain).to_pylist()}
    refused = baton(installation, "export", str(out), "--drop", "usr")
    assert refused.exit_code == 1
    assert "user, age, tags, item, price, genres" in refused.stderr
    assert baton(installation, "export", str(out), "--rekey", "price").exit_code == 1
    again = baton(installation, "import", str(out))
    assert again.exit_code == 1
    assert "without --drop and --rekey" in again.stderr

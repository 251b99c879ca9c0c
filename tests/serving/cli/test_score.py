"""Scores without a server: of a described log, of plain files, of frames, and the same as a lane's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from handmade import SCHEMA, random_tables, write_bundle
from nightly import train_once, write_log
from typer.testing import CliRunner, Result

from pipeline.bundle.bundle import Bundle
from pipeline.bundle.versions import Repository
from pipeline.errors import BundleError, InvalidInput
from pipeline.features import Features
from pipeline.model.frame import rows_of
from pipeline.model.model import Model
from pipeline.model.scorer import Scorer
from serving.cli.main import app


def baton(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("log"), 2000)


@pytest.fixture(scope="module")
def made(data: Path) -> Bundle:
    return train_once(data, data.parent / "bundles" / "nightly" / "1")


def frame_of(data: Path) -> dict[str, list[object]]:
    texts = csv.ConvertOptions(column_types=dict.fromkeys(("time", "request", "user", "item", "tags"), pa.string()))
    return dict(csv.read_csv(data.parent / "log.csv", convert_options=texts).to_pydict())


def test_a_described_log_is_scored_row_by_row_with_its_keys(made: Bundle, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.parquet"
    done = baton("score", "--bundle", made.path, "--data", data, "--out", out, "--cache", tmp_path / "c", "-o", "json")
    assert done.exit_code == 0, done.output
    scored = pq.read_table(out)
    assert scored.column_names == ["time", "request", "routing_key", "item", "label", "score", "logit"]
    own = frame_of(data)
    with Scorer(made) as scorer:
        expected = scorer.score(own)
    by_key: dict[tuple[object, object], list[float]] = {}
    for request, item, score in zip(own["request"], own["item"], expected.tolist(), strict=True):
        by_key.setdefault((request, item), []).append(score)
    found: dict[tuple[object, object], list[float]] = {}
    for row in scored.to_pylist():
        found.setdefault((row["request"], row["item"]), []).append(row["score"])
    assert found == by_key
    assert sum(scored.column("label").to_pylist()) == sum(own["click"])  # type: ignore[arg-type]
    said = json.loads(done.stdout)
    assert said["rows"] == 2000
    assert said["mean_score"] == pytest.approx(said["mean_label"], rel=0.1)
    alpha, beta = made.manifest.calibration.alpha, made.manifest.calibration.beta
    logit = scored.column("logit").to_numpy()
    assert scored.column("score").to_numpy() == pytest.approx(1 / (1 + np.exp(-(alpha * logit + beta))), abs=1e-6)


def test_a_plain_file_needs_no_label_and_keeps_its_columns_and_order(made: Bundle, data: Path, tmp_path: Path) -> None:
    rows = {"key": ["a", "b", "c"], "user": ["u1", "u2", ""], "item": ["i1", "new", "i3"], "price": [1.5, None, 2.0], "score": [0, 0, 0],
            "tags": ["a|b1", "", "b2"]}  # fmt: skip
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    csv.write_csv(pa.table(rows), tmp_path / "rows.csv")
    config = tmp_path / "baton.yaml"
    config.write_text(f"home: {made.path.parent.parent.parent}")
    with Scorer(made) as scorer:
        expected = scorer.score(rows)
    for file, bundle in (("rows.parquet", made.path), ("rows.csv", "nightly"), ("rows.csv", "nightly/1")):
        for out in ("scores.parquet", "scores.csv"):
            done = baton(
                "score", "--bundle", bundle, "--data", tmp_path / file, "--out", tmp_path / out, "--config", config
            )
            assert done.exit_code == 0, done.output
        table = pq.read_table(tmp_path / "scores.parquet")
        assert table.column_names == ["key", "user", "item", "price", "own_score", "tags", "score", "logit"]
        assert table.column("key").to_pylist() == ["a", "b", "c"]
        assert table.column("score").to_pylist() == expected.tolist()
        assert csv.read_csv(tmp_path / "scores.csv").column("score").to_pylist() == pytest.approx(expected.tolist())


def test_what_cannot_be_scored_is_named(made: Bundle, data: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"user": ["u1"], "price": ["dear"], "tags": [""]}), tmp_path / "rows.parquet")
    for arguments, said in (
        (("--bundle", made.path, "--data", tmp_path / "rows.parquet", "--out", tmp_path / "o.parquet"), "'item'"),
        (("--bundle", made.path, "--data", tmp_path / "rows.txt", "--out", tmp_path / "o.parquet"), "rows.txt"),
        (("--bundle", made.path, "--data", data, "--out", tmp_path / "o.txt"), "o.txt"),
        (
            ("--bundle", "nobody", "--data", data, "--out", tmp_path / "o.csv", "--config", tmp_path / "no.yaml"),
            "nobody",
        ),
    ):
        done = baton("score", *arguments)
        assert (done.exit_code, said in done.stderr) == (1, True), done.output
    assert not list(tmp_path.glob("o.*"))
    with Scorer(made) as scorer:
        for frame, said in (
            ({"user": ["u"], "item": ["i"], "price": ["dear"], "tags": [""]}, "price"),
            ({"user": ["u"], "item": ["i", "j"], "price": [1.0], "tags": [""]}, "item"),
            ({"user": ["u"], "item": ["i"], "price": [1e39], "tags": [""]}, "price"),
            ({"user": ["u"], "item": ["i"], "price": [1.0], "tags": [["a|b"]]}, "tags"),
            ({"user": [2.0**60], "item": ["i"], "price": [1.0], "tags": [""]}, "user"),
        ):
            with pytest.raises(InvalidInput, match=said):
                scorer.score(frame)
        assert len(scorer.score({"user": [], "item": [], "price": [], "tags": []})) == 0


def test_frames_of_all_kinds_score_as_a_lane_does(tmp_path: Path) -> None:
    """Of a delta, too: its repository has what it builds on."""
    repository = Repository(tmp_path / "bundles")
    write_bundle(repository, random_tables(1))
    delta = write_bundle(repository, random_tables(2, 20), base="1")
    columns = {"user": ["u1", None, "u3"], "age": [30, None, 45.5], "tags": ["a,b", "", None], "item": [1, 2, 3],
               "price": [1.0, float("nan"), -2.0], "genres": ["x|y", "x", ""]}  # fmt: skip
    table = pa.table(columns)
    lists = table.set_column(5, "genres", pa.array([["x", "y"], ["x"], None]))
    model = Model.load(repository, "ranker", "2", segments=tmp_path / "segments")
    expected = model.score(Features.from_rows(rows_of(table, SCHEMA)))
    with Scorer(delta.path) as scorer:
        for frame in (
            table,
            lists,
            columns,
            table.to_batches()[0],
            {name: np.array(values, object) for name, values in columns.items()},
        ):
            assert scorer.score(frame).tolist() == expected.tolist()
        pandas = pytest.importorskip("pandas")
        frame = pandas.DataFrame(columns)
        frame["user"] = frame["user"].astype("category")
        assert scorer.score(frame).tolist() == expected.tolist()
    (delta.path / "dense.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"dense\.onnx"):
        Scorer(delta.path)

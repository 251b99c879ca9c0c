"""Commands about arms on other servers, by a server whose answers are known: import with every row compared, a student of a
teacher there, doctor and status."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pytest
import yaml
from handmade import SCHEMA as HANDMADE
from installation import Installation, running
from scripted_server import ScriptedServer, response, tensors
from typer.testing import CliRunner

from pipeline.bundle.bundle import Bundle
from pipeline.bundle.versions import Repository
from pipeline.metrics import auc
from pipeline.model.scorer import Scorer
from serving.cli.main import app
from serving.cli.output import Output
from serving.cli.status import _show

FIELDS = [
    {"name": "country", "role": "context"},
    {"name": "price", "role": "candidate", "kind": "number"},
    {"name": "item", "role": "candidate", "index": {"hash": "identity", "buckets": 50}},
]


def click(request: Any, context: Any) -> Any:
    """A click is likelier for cheap things, in France, and of high item numbers."""
    price, country, item = tensors(request)["x"].astype(np.float64).T
    logit = -price + (country == 2) + item / 25 - 1
    return response((1 / (1 + np.exp(-logit))).astype(np.float32), name="p")


def scores(price: np.ndarray, country: np.ndarray, item: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-(-price + (country == "fr") + item / 25 - 1)))


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(click, {"x": ("FP32", [-1, 3])}, {"p": ("FP32", [-1])}) as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path, server: ScriptedServer) -> Path:
    """A spec, rows with the model's answers, and the log of its clicks."""
    spec = {
        "remote": {"address": f"grpc://{server.target}", "model": "ranker", "timeout_ms": 5000},
        "fields": FIELDS,
        "inputs": {"x": {"fields": ["price", "country", "item"]}},
        "codes": {"country": {"de": 1, "fr": 2}},
        "outputs": {"click": "p"},
    }
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(spec))
    (tmp_path / "baton.yaml").write_text(
        yaml.safe_dump({"home": "home", "endpoints": {"ranker": {"stable": {"bundle": "old"}}}})
    )
    rng = np.random.default_rng(0)
    n = 3000
    price, item = rng.random(n).astype(np.float32), rng.integers(0, 50, n)
    country = rng.choice(["de", "fr"], n)
    said = scores(price, country, item)
    clicked = (rng.random(n) < said).astype(int)
    table = pa.table(
        {
            "price": price,
            "country": country,
            "item": item,
            "score": said,
            "clicked": clicked,
            "t": 1_700_000_000 + np.arange(n),
        }
    )
    pa_csv.write_csv(table, tmp_path / "rows.csv")
    data = {
        "name": "clicks", "files": ["rows.csv"], "time": {"column": "t", "unit": "s"},
        "label": {"column": "clicked", "positive": [1]}, "routing_key": "country", "fields": FIELDS,
    }  # fmt: skip
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(data))
    return tmp_path


def run(folder: Path, *words: str) -> Any:
    return CliRunner().invoke(app, [word.replace("FOLDER", str(folder)) for word in words])


IMPORT = ("bundle", "import-remote", "FOLDER/old.yaml", "--name", "old", "--config", "FOLDER/baton.yaml", "-o", "json")


def test_every_row_is_compared_before_there_is_a_bundle(folder: Path, server: ScriptedServer) -> None:
    right = server.answer
    server.answer = lambda request, context: response(
        np.float32(0.5) * np.ones(request.inputs[0].shape[0], np.float32), name="p"
    )
    result = run(folder, *IMPORT, "--check", "FOLDER/rows.csv")
    assert result.exit_code == 1
    assert "does not answer as the model does" in " ".join(result.output.split())
    assert not (folder / "home" / "bundles" / "old" / "1").exists()
    server.answer = right
    result = run(folder, *IMPORT, "--check", "FOLDER/rows.csv")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["rows compared"] == 3000
    assert run(folder, *IMPORT, "--offline", "--check", "FOLDER/rows.csv").exit_code == 1


def test_a_student_learns_from_a_teacher_that_stays_where_it_is(folder: Path) -> None:
    assert run(folder, *IMPORT).exit_code == 0
    teach = ("transfer", "--teacher", "FOLDER/home/bundles/old/1", "--arch", "lr", "--data", "FOLDER/dataset.yaml")
    out = ("--out", "FOLDER/student", "--cache", "FOLDER/cache", "--to", "0.8", "-o", "json")
    refused = run(folder, *teach, *out, "--teachers", "2")
    assert refused.exit_code == 1
    assert "on another server" in " ".join(refused.output.split())
    result = run(folder, *teach, *out)
    assert result.exit_code == 0, result.output
    assert Bundle.open(folder / "student").manifest.architecture == "lr"


def test_doctor_asks_the_server_and_status_shows_it(
    folder: Path, server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, *IMPORT).exit_code == 0
    assert "another server" not in run(folder, "bundle", "inspect", "FOLDER/home/bundles/old/1").output

    def found() -> dict[str, Any]:
        checks = json.loads(run(folder, "doctor", "--config", "FOLDER/baton.yaml", "-o", "json").stdout)["checks"]
        return {check["check"]: check for check in checks}["ranker/stable server"]

    assert found()["ok"] is True
    assert "has ranker ready and takes these inputs" in found()["detail"]
    server.inputs = {"x": ("FP32", [-1, 4])}
    assert found()["ok"] is False
    assert "input 'x' has shape [-1, 4] there" in found()["detail"]
    remote = {
        "address": "grpc://triton:8001", "model": "ranker", "breaker": "open", "opened": 2, "calls": 7, "rows": 700,
        "failed": {"RemoteTimeout": 3}, "reason": "did not answer within 20 ms", "ids": 0, "unknown": 0,
    }  # fmt: skip
    lane = {"time_ms": 0, "fresh": True, "remotes": {"old/1": remote}}
    _show({"processes": [], "lanes": {"lane-0": lane}}, {}, Output.table)
    told = " ".join(capsys.readouterr().out.split())
    assert "models on other servers" in told
    assert "open" in told


def test_a_model_on_a_second_baton_is_judged_before_it_becomes_a_version(tmp_path: Path) -> None:
    away = Installation(tmp_path / "away")
    served = away.repository.newest("teacher")[-1]
    rng, n = np.random.default_rng(1), 4000
    tags = [",".join(rng.choice(list("abcd"), rng.integers(0, 4))) for _ in range(n)]
    frame = {
        "user": rng.integers(0, 40, n), "age": rng.normal(size=n), "tags": tags, "item": rng.integers(0, 60, n),
        "price": rng.normal(size=n), "genres": rng.choice(["x|y", "z", ""], n).tolist(),
    }  # fmt: skip
    with Scorer(served) as scorer:
        clicked = rng.random(n) < scorer.score(frame)
    padded = ("tags", "genres")
    inputs = {"ids": {"fields": ["user", "item"], "hashed": True}, "numbers": {"fields": ["age", "price"]}}
    inputs |= {f"bag:{name}": {"field": name, "hashed": True, "pad_to": 4} for name in padded}
    fields = [f.model_dump(include={"name", "role", "kind", "separator"}) for f in HANDMADE.fields]
    time = {"column": "t", "unit": "s"}
    for name, labels in (("right", clicked), ("wrong", ~clicked)):
        table = pa.table({**frame, "clicked": labels.astype(int), "t": 1_700_000_000 + np.arange(n)})
        pa_csv.write_csv(table, tmp_path / f"{name}.csv")
        data = {"name": name, "files": [f"{name}.csv"], "time": time, "label": {"column": "clicked", "positive": [1]}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**data, "fields": fields}))
    (tmp_path / "baton.yaml").write_text("home: home\n")
    cache = ("--cache", "FOLDER/cache", "--config", "FOLDER/baton.yaml", "-o", "json")
    publish = ("bundle", "publish", "FOLDER/made", "--name", "old", *cache, "--gate")
    with running(away.config) as lane:
        remote = {"address": f"grpc://{lane.target}", "model": "teacher", "timeout_ms": 20_000}
        spec = {"remote": remote, "fields": fields, "inputs": inputs, "outputs": {"click": "score"}}
        (tmp_path / "old.yaml").write_text(yaml.safe_dump(spec))
        made = run(tmp_path, "bundle", "import-remote", "FOLDER/old.yaml", "--out", "FOLDER/made", *cache[2:])
        assert made.exit_code == 0, made.output
        first = run(tmp_path, *publish, "FOLDER/right.yaml")
        assert first.exit_code == 0, first.output
        figures = json.loads(first.stdout)["figures"]
        assert (figures["rows"], figures["positives"]) == (n, clicked.sum())
        with Scorer(served) as scorer:
            assert figures["auc"] == pytest.approx(auc(clicked, scorer.score(frame)), abs=1e-6)
        again = run(tmp_path, *publish, "FOLDER/right.yaml")
        assert json.loads(again.stdout)["figures"]["serving_auc"] == pytest.approx(figures["auc"], abs=1e-6)
        refused = run(tmp_path, *publish, "FOLDER/wrong.yaml")
        assert refused.exit_code == 1
        assert json.loads(refused.stdout)["gate"] == "refused"
        assert [b.manifest.version for b in Repository(tmp_path / "home" / "bundles").newest("old")] == ["2"]
    gone = run(tmp_path, *publish, "FOLDER/right.yaml")
    assert gone.exit_code == 1
    assert lane.target in " ".join(gone.output.split())
    assert Repository(tmp_path / "home" / "bundles").versions("old") == ["1", "2", "3"], "no number without a judgement"

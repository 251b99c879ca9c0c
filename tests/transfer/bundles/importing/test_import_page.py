"""What docs/import.md shows is run as it stands there: the tutorial, and every command on files of each kind."""

import pickle
import re
import shutil
import sys
import types
from pathlib import Path

import lightgbm
import numpy as np
import onnx
import pandas as pd
import pytest
import torch
import yaml
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from torch import nn
from typer.testing import CliRunner

from pipeline.bundle.bundle import Bundle
from pipeline.farmhash import farm64
from serving.cli.main import app

PAGE = (Path(__file__).parents[4] / "docs" / "import.md").read_text()
ROWS = 200


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_tutorial_makes_a_bundle_that_answers_as_the_network_and_learns_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = blocks("python")
    assert len([line for line in second.splitlines() if line.strip()]) < 30
    team = types.ModuleType("team_ranker")
    monkeypatch.setitem(sys.modules, "team_ranker", team)
    exec(first, team.__dict__)
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        {
            "user_id": [f"u{n}" for n in rng.integers(0, 10**6, ROWS)],
            "item_id": [f"item-{n}" for n in rng.integers(0, 1000, ROWS)],
            "price": rng.exponential(size=ROWS),
        }
    )
    rows.loc[::3, "price"] = np.nan
    users = team.user_vectors[[farm64(user.encode()) % 256 for user in rows.user_id]]
    items = team.item_vectors[[int(item[5:]) for item in rows.item_id]]
    price = torch.tensor(rows.price.to_numpy(np.float32))
    numbers = torch.stack([torch.log1p(price.nan_to_num()), price.isnan().float()], 1)
    with torch.no_grad():
        rows["score"] = team.network(torch.stack([users, items], 1), None, numbers).numpy()
    rows.to_parquet("rows.parquet")
    exec(second, team.__dict__)
    assert team.made.parity.rows == ROWS
    assert team.made.warnings == []
    bundle = Bundle.open(Path("home/bundles/ranker/1"), verify=True)
    assert bundle.manifest.architecture == "team_ranker:Tower"
    assert not bundle.frozen


class Whole(nn.Module):
    """A model of fields as an ONNX file has it, with its tables inside."""

    def __init__(self):
        super().__init__()
        self.users, self.items, self.times = nn.Embedding(256, 8), nn.Embedding(1000, 8), nn.Embedding(31, 4)
        self.register_buffer("offsets", torch.tensor([0, 24]))
        self.layers = nn.Sequential(nn.Linear(25, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, user_id, item_id, times, price):
        vectors = [self.users(user_id), self.items(item_id), self.times(times + self.offsets).flatten(1), price]
        return torch.sigmoid(self.layers(torch.cat(vectors, 1)).squeeze(1))


def whole_model(folder):
    """model.onnx as torch's default exporter writes it, with its data beside it, the schema of the page and rows."""
    torch.manual_seed(0)
    model, rows = torch.export.Dim("rows"), 4
    net = Whole().eval()
    user, item = torch.zeros(rows, dtype=torch.int64), torch.ones(rows, dtype=torch.int64)
    torch.onnx.export(
        net, (user, item, torch.zeros(rows, 2, dtype=torch.int64), torch.zeros(rows, 1)), str(folder / "model.onnx"), dynamo=True,
        external_data=True, dynamic_shapes=({0: model}, {0: model}, {0: model}, {0: model}), verbose=False,
    )  # fmt: skip
    assert (folder / "model.onnx.data").exists()
    (folder / "items.txt").write_text("".join(f"item-{n}\n" for n in range(1000)))
    (folder / "schema.yaml").write_text(next(b for b in blocks("yaml") if "inputs:" in b))
    rng = np.random.default_rng(0)
    items, hours, days = rng.integers(0, 1000, ROWS), rng.integers(0, 24, ROWS), rng.integers(0, 7, ROWS)
    users, price = [f"u{n}" for n in rng.integers(0, 10**6, ROWS)], rng.normal(size=ROWS).astype(np.float32)
    buckets = torch.tensor([farm64(user.encode()) % 256 for user in users])
    with torch.no_grad():
        times = torch.tensor(np.stack([hours, days], 1))
        answers = net(buckets, torch.tensor(items), times, torch.tensor(price)[:, None]).numpy()
    frame = {
        "user_id": users,
        "item_id": [f"item-{n}" for n in items],
        "hour": hours,
        "day": days,
        "price": price,
        "score": answers,
    }
    return pd.DataFrame(frame)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_every_command_of_the_page_runs_on_a_file_of_its_kind(tmp_path, monkeypatch):
    rows = whole_model(tmp_path)
    monkeypatch.chdir(tmp_path)
    rows.to_parquet("rows.parquet")
    rows.to_csv("rows.csv", index=False)
    folder = tmp_path / "mlflow-model"
    folder.mkdir()
    flavours = {"onnx": {"data": "model.onnx", "onnx_version": onnx.__version__, "save_as_external_data": True}}
    (folder / "MLmodel").write_text(yaml.safe_dump({"flavors": flavours}))
    onnx.save_model(onnx.load("model.onnx"), folder / "model.onnx", save_as_external_data=True)  # as MLflow does
    assert len(list(folder.iterdir())) == 3
    commands = re.findall(r"^    (baton bundle import .*)$", PAGE, re.MULTILINE)
    assert len(commands) == 5
    for number, command in enumerate(commands):
        path = command.split()[3]
        if path in ("model.txt", "pipeline.pkl") and number > 2:
            trees(path)
        shutil.rmtree("home", ignore_errors=True)
        done = CliRunner().invoke(app, [*command.split()[1:], "-o", "json"])
        assert done.exit_code == 0, f"{command}: {done.output}"
        assert f'"rows compared": {ROWS}' in done.stdout
        version = command.split("home/bundles/ranker/")[1][0]
        manifest = Bundle.open(Path(f"home/bundles/ranker/{version}"), verify=True).manifest
        assert (manifest.name, manifest.version) == ("ranker", version)


def trees(path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"country": rng.choice(["br", "de", "fr"], ROWS), "price": rng.normal(size=ROWS)})
    clicked = rng.random(ROWS) < 1 / (1 + np.exp(-frame.price * (frame.country == "de")))
    fields = [{"name": "country", "role": "context"}, {"name": "price", "role": "candidate", "kind": "number"}]
    Path("schema.yaml").write_text(yaml.safe_dump({"fields": fields, "fill": {"price": 0}}))
    if path == "model.txt":
        frame = frame.astype({"country": "category"})
        model = lightgbm.LGBMClassifier(n_estimators=8, n_jobs=1, verbose=-1).fit(frame, clicked)
        model.booster_.save_model(path)
    else:
        encode = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["country"]), remainder="passthrough")
        model = make_pipeline(encode, LogisticRegression()).fit(frame, clicked)
        Path(path).write_bytes(pickle.dumps(model))
    frame.assign(score=model.predict_proba(frame)[:, 1]).to_csv("rows.csv", index=False)

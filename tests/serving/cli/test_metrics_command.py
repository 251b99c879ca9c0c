"""`baton metrics` shows what REST knows: figures per step and arm, calibration by tenth, slices, drift, the long run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from operated import Operated, http_port, operated, rollout_file
from typer.testing import CliRunner

from pipeline.features import Features, IdPart
from pipeline.hashing import hash_value
from pipeline.traffic.log import FeedbackEntry, Outcome, Scores
from pipeline.traffic.prediction import PredictionIds, load_secret
from pipeline.traffic.record import PredictionRecord, pack
from serving.cli.main import app
from serving.rollout.frame import figures_table
from serving.rollout.spec import Rollout
from serving.rollout.state import Promote

ARMS = {"stable": ("teacher", 1), "candidate": ("student", 1)}


class Traffic:
    """Requests of ten rows that both arms score alike and well, labelled at once."""

    def __init__(self, world: Operated) -> None:
        self.world, self.rng = world, np.random.default_rng(1)
        self.ids = PredictionIds(load_secret(world.made.config.secret), 1)
        self.names = [field.name for field in world.made.repository.open("student").manifest.model_schema.ids]

    def seconds(self, count: int, candidate: float) -> None:
        """Eight requests each, of which the candidate answers a share, and a pass of the rollout loop."""
        for _ in range(count):
            self.world.clock.now += 1
            made = [self._request("candidate" if self.rng.random() < candidate else "stable") for _ in range(8)]
            self.world.traffic.append_predictions([record for record, _, _ in made])
            self.world.traffic.append_scores([scores for _, scores, _ in made])
            self.world.traffic.append_feedback([labels for _, _, labels in made], self.world.clock.wall_ms())
            self.world.traffic.join(self.world.clock.wall_ms())
            self.world.controller.step()

    def _request(self, own: str) -> tuple[bytes, tuple[str, Scores], FeedbackEntry]:
        now, (other,) = self.world.clock.wall_ms(), set(ARMS) - {own}
        made, truth = self.ids.new(now), self.rng.uniform(0.1, 0.5, 10).astype("f4")
        ids = np.array([[hash_value(name, int(self.rng.integers(3))) for name in self.names]])
        features = Features(10, (IdPart(np.arange(len(self.names), dtype=np.int32), ids),))
        key = int(self.rng.integers(1, 1 << 62))
        record = PredictionRecord(made, now, "ranker", own, *ARMS[own], features, truth, routing_hash=key)
        clicks = self.rng.random(10) < truth
        labels = [Outcome(at, float(clicks[at]), final=True) for at in range(10)]
        scores = made, Scores(other, *ARMS[other], truth)
        return pack(record), scores, FeedbackEntry(made, (), labels, exposed_all=True)


def test_all_figures_are_shown(tmp_path: Path) -> None:
    with operated(tmp_path, traffic={"attribution_window": "1s"}) as world:
        traffic = Traffic(world)
        field = traffic.names[0]
        times = {"block": "1s", "breach_window": "60s"}
        file = rollout_file(analysis={**times, "segments": [field]})
        world.controller.start(Rollout.parse(file), "ada", "try", version=1)
        traffic.seconds(8, 0.0)
        world.controller.command("ranker", Promote(full=True), "ada", "push", force=True)
        traffic.seconds(30, 0.7)
        with http_port(world) as port:
            server = ("--server", f"http://127.0.0.1:{port}")
            shown = CliRunner().invoke(app, ["metrics", "ranker", *server])
            assert shown.exit_code == 0, shown.stderr
            for heading in (
                "both arms on the same rows", "outcome per request", "long run at weight 100 with a holdout of 1.0%",
                "calibration and drift", "bias by tenth", "parts of the traffic; drift since the first step (PSI)",
            ):  # fmt: skip
                assert heading in shown.stdout, heading
            figures = json.loads(CliRunner().invoke(app, ["metrics", "ranker", "-o", "json", *server]).stdout)
            name = json.loads(CliRunner().invoke(app, ["rollout", "get", "ranker", "-o", "json", *server]).stdout)["id"]
            same_figures_in_all_forms(figures, name, tmp_path, *server)
    last = figures["phases"][-1]["candidate"]
    assert len(last["deciles"]) == 10
    assert all(abs(tenth["bias"]) < 0.6 for tenth in last["deciles"])
    assert last["score_psi"] < 0.1
    assert set(figures["psi"]) == {field}
    assert {part["field"] for part in figures["segments"]} == {field}
    effect = figures["long_run"]
    assert sum(effect["requests"].values()) > 180
    assert effect["outcome"]["difference"]["low"] < 0 < effect["outcome"]["difference"]["high"]


def same_figures_in_all_forms(figures: dict[str, Any], rollout: str, folder: Path, *server: str) -> None:
    def asked(*words: str) -> str:
        done = CliRunner().invoke(app, ["rollout", "metrics", *words, *server])
        assert done.exit_code == 0, done.output
        return done.stdout

    rows = json.loads(asked("ranker", "-o", "json"))
    assert {row["rollout"] for row in rows} == {rollout}
    last = figures["phases"][-1]
    found = {row["figure"]: row for row in rows if (row["step"], row["arm"]) == (last["step"], "candidate")}
    assert (found["bias"]["value"], found["bias"]["low"]) == (last["candidate"]["bias"], last["candidate"]["low"])
    assert (found["auc"]["value"], found["auc"]["rows"]) == (last["candidate"]["auc"], last["candidate"]["rows"])
    assert found["outcome"]["high"] == last["outcome"]["candidate"]["high"]
    assert {row["segment"] for row in rows if row["scope"] == "segment"} == {p["segment"] for p in figures["segments"]}
    assert sum(row["scope"] == "long_run" for row in rows) == 3
    lines = asked("ranker", "-o", "csv").splitlines()
    assert (len(lines), lines[0].split(",")[:3]) == (len(rows) + 1, ['"rollout"', '"endpoint"', '"scope"'])
    for form in ("csv", "json", "parquet"):
        asked(rollout, "--out", str(folder / f"figures.{form}"))
    table = pq.read_table(folder / "figures.parquet")
    assert table.column("value").to_pylist() == [row["value"] for row in rows]
    assert (folder / "figures.csv").read_text().splitlines() == lines
    assert "segment" in asked("ranker")
    assert CliRunner().invoke(app, ["rollout", "metrics", "ranker", "-o", "parquet", *server]).exit_code == 1
    alone = figures_table(
        json.loads(CliRunner().invoke(app, ["rollout", "get", rollout, "-o", "json", *server]).stdout)
    )
    assert set(alone.column("figure").to_pylist()) == {"bias", "auc", "logloss", "outcome"}

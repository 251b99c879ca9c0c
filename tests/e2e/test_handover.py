"""The whole hand-over on real processes: requests and late labels in, versions out, traffic moved, operators answered."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from machine import ENDPOINT, STUDENT, TEACHER, Machine, Models, rollout_file, until
from prometheus import Prometheus
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from typer.testing import CliRunner, Result

from pipeline.errors import BatonError, InvalidInput, NotFound
from pipeline.features import Bag, Features, Rows
from pipeline.hashing import hash_bag_column, hash_column
from serving.cli.main import app
from serving.cli.replay import Replay, ReplayReport
from serving.client import RankingClient
from serving.wiring.traffic import open_traffic_log
from transfer.data.log import LogRequest

FEWEST, AFTER, MOST = 250, 50, 2500
RATE = 50.0
CLOSE = 1e-5
DEPLOY = Path(__file__).parents[2] / "deploy"
KSERVE = Path(__file__).parents[1] / "support" / "kserve_client.py"


pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def machine(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    made = Machine(tmp_path_factory.mktemp("machine") / "home", models, log_format="json")
    made.start()
    yield made
    assert made.stop() == 0
    lines = (made.home / "serve.log").read_text().splitlines()
    entries = [json.loads(line) for line in lines if line.startswith("{")]  # a C library has its say at the end
    assert {e["process"] for e in entries} >= {"supervisor", "control", "shadow", "lane-0"}


@pytest.fixture(scope="module")
def prometheus(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    rules = DEPLOY / "prometheus" / "alerts.yml"
    with Prometheus(tmp_path_factory.mktemp("prometheus") / "home", machine.url, rules) as running:
        yield running


@dataclass
class Replayed:
    """What a replay sent and what came back."""

    report: ReplayReport
    sent: list[LogRequest]


@pytest.fixture(scope="module")
def replayed(machine: Machine, prometheus: Prometheus) -> Replayed:
    """Traffic with late labels while a rollout runs, until it has reached its last step."""
    machine.admin.post("/rollouts", {"file": rollout_file(), "reason": "hand over"})
    sender = Replay(machine.target, ENDPOINT, machine.log.schema, rate=RATE, label_delay=0.5)
    sent: list[LogRequest] = []
    phases: list[str] = []

    def requests() -> Iterator[LogRequest]:
        while True:
            for request in machine.log.requests(0.5, 0.95):
                sent.append(request)
                yield request

    def look() -> None:
        while not phases or (phases[-1] != "watching" and len(sent) < MOST):
            phases.append(machine.rollout().get("phase", "none"))
            time.sleep(0.2)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    ends: list[int] = []

    def over() -> bool:
        """Some more requests after the last step is reached, so that it has rows of its own."""
        if not watcher.is_alive() and not ends:
            ends.append(max(FEWEST, len(sent) + AFTER))
        return bool(ends) and len(sent) > ends[0]

    report = asyncio.run(sender.run(requests(), over))
    assert phases[-1] == "watching", machine.rollout()["waiting"]
    return Replayed(report, sent[: report.requests])


def some_rows(machine: Machine, number: int = 0) -> Rows:
    """One request's rows from the part of the log that nobody has learned from."""
    chunk = next(machine.log.chunks(0.95, 1.0))
    return chunk.rows.slice(100 * number, 100 * number + 100)


def packed(machine: Machine, rows: Rows) -> dict[str, np.ndarray[Any, Any]]:
    tensors = {"ids": np.ascontiguousarray(rows.ids), "numbers": np.ascontiguousarray(rows.numbers)}
    for field, bag in zip(machine.log.schema.bags, rows.bags, strict=True):
        sizes = np.diff(bag.offsets)
        padded = np.zeros((bag.rows, max(1, int(sizes.max()))), np.int64)
        padded[np.arange(padded.shape[1]) < sizes[:, None]] = bag.values
        tensors[f"bag:{field.name}"] = padded
    return tensors


def infer(machine: Machine, tensors: dict[str, np.ndarray[Any, Any]], name: str = ENDPOINT, **more: Any) -> Any:
    types = {"int64": "INT64", "float32": "FP32", "object": "BYTES"}
    inputs = []
    for key, values in tensors.items():
        tensor = triton.InferInput(key, list(values.shape), types[values.dtype.name])
        tensor.set_data_from_numpy(values)
        inputs.append(tensor)
    with triton.InferenceServerClient(machine.target) as client:
        return client.infer(name, inputs, **more)


def test_all_clients_get_pytorchs_scores(machine: Machine, tmp_path: Path) -> None:
    rows = some_rows(machine)
    expected = machine.model(TEACHER, "1").scores(rows)
    tensors = packed(machine, rows)
    np.savez(tmp_path / "inputs.npz", **tensors)
    done = subprocess.run(
        [sys.executable, KSERVE, machine.target, tmp_path / "inputs.npz", tmp_path / "scores.npz"],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    by_kserve = np.load(tmp_path / "scores.npz")
    with RankingClient(machine.target) as client:
        answer = client.rank(ENDPOINT, machine.log.schema, Features.from_context(machine.log.schema, rows))
    assert (answer.arm, answer.bundle, answer.version) == ("stable", TEACHER, "1")
    direct = infer(machine, tensors, TEACHER, model_version="1").as_numpy("score")
    by_triton = infer(machine, tensors).as_numpy("score")
    for scores in (answer.scores, by_triton, direct, by_kserve["raw"], by_kserve["typed"]):
        np.testing.assert_allclose(scores, expected, rtol=0, atol=CLOSE)
    other = infer(machine, tensors, parameters={"arm": "candidate", "routing_key": "k"}).as_numpy("score")
    np.testing.assert_allclose(other, machine.model(STUDENT, "1").scores(rows), rtol=0, atol=CLOSE)


def test_raw_values_are_hashed_as_the_trainer_hashes_them(machine: Machine) -> None:
    schema, n = machine.log.schema, 5
    random = np.random.default_rng(0)
    texts = {f.name: [f"{f.name}-{random.integers(50)}" for _ in range(n)] for f in schema.ids}
    texts[schema.ids[0].name] = ["", "ü", "7", "a=b", "0"]
    numbers = {f.name: random.normal(size=n).astype(np.float32) for f in schema.numbers}
    numbers[schema.numbers[0].name][1] = np.nan
    bags = {f.name: [(f.separator or ",").join(f"t{i}" for i in range(k)) for k in range(n)] for f in schema.bags}
    tensors = {name: np.array([v.encode() for v in values], np.object_) for name, values in {**texts, **bags}.items()}
    named = infer(machine, {**tensors, **numbers}).as_numpy("score")
    rows = Rows(
        np.stack([hash_column(name, values) for name, values in texts.items()], 1),
        np.stack(list(numbers.values()), 1),
        tuple(Bag(at, *hash_bag_column(f.name, bags[f.name], f.separator or ",")) for at, f in enumerate(schema.bags)),
    )
    np.testing.assert_allclose(named, machine.model(TEACHER, "1").scores(rows), rtol=0, atol=CLOSE)
    np.testing.assert_array_equal(named, infer(machine, packed(machine, rows)).as_numpy("score"))


def test_wrong_requests_are_told_what_is_wrong(machine: Machine) -> None:
    schema, rows = machine.log.schema, some_rows(machine)
    features = Features.from_context(schema, rows)
    with RankingClient(machine.target) as client:
        with pytest.raises(NotFound, match="nobody"):
            client.rank("nobody", schema, features)
        infinite = Rows(rows.ids, np.full_like(rows.numbers, np.inf), rows.bags)
        with pytest.raises(InvalidInput, match=schema.numbers[0].name):
            client.rank(ENDPOINT, schema, Features.from_context(schema, infinite))
        large = Rows(np.ones((40_000, len(schema.ids)), np.int64), np.ones((40_000, len(schema.numbers)), np.float32),
                     tuple(Bag(b.column, np.zeros(40_001, np.int32), np.empty(0, np.int64)) for b in rows.bags))  # fmt: skip
        with pytest.raises(BatonError):
            client.rank(ENDPOINT, schema, Features.from_rows(large))
        tensors = packed(machine, rows)
        for wrong in ({**tensors, "ids": tensors["ids"][:, :-1]}, {k: v for k, v in tensors.items() if k != "numbers"}):
            with pytest.raises(triton.InferenceServerException, match=r"ids|numbers") as refused:
                infer(machine, wrong)
            assert "INVALID_ARGUMENT" in str(refused.value.status())
        assert len(client.rank(ENDPOINT, schema, features).scores) == len(rows)


def test_labels_come_back_and_move_the_traffic(machine: Machine, replayed: Replayed) -> None:
    report, rows = replayed.report, 100 * len(replayed.sent)
    assert (report.rows, dict(report.errors)) == (rows, {})
    assert dict(report.labels) == {"accepted": rows}
    assert set(report.versions) == {"stable", "candidate"}
    rollout = machine.rollout()
    assert rollout["weight"] == 100, [(e["verb"], e["reason"]) for e in machine.admin.list("/audit", "entries")]
    assert {1, 2} <= set(rollout["steps_on_evidence"])
    traffic = open_traffic_log(machine.config)

    def joined() -> bool:
        entries = traffic.labelled(0, 100_000)
        return sum(len(e.indices) for e in entries if e.revision == 0) >= rows

    until(joined, "all labels are joined")
    labels = np.concatenate([e.labels for e in traffic.labelled(0, 100_000) if len(e.indices)])
    traffic.close()
    assert labels.sum() == sum(request.labels.sum() for request in replayed.sent)
    phases = until(
        lambda: (
            [p for p in machine.rollout()["phases"] if p["rows"] and p["weight"] == 100] and machine.rollout()["phases"]
        ),
        "rows of the last step are counted",
    )
    assert all(p["bias"]["stable"]["value"] is not None for p in phases if p["rows"])
    status = machine.admin.get("/status")
    assert status["traffic"]["labelled_rows"] == rows
    assert status["shadow"]["scored"] > 0


def test_the_worker_learns_and_what_it_publishes_answers(machine: Machine, replayed: Replayed) -> None:
    until(lambda: machine.status("worker").get("batches", 0) >= 10, "the worker has learned ten batches")
    status = until(lambda: machine.status("worker"), "the worker tells how it is")
    assert status["position"] > 0
    assert status["trained_rows"] > 10_000
    until(lambda: len(machine.repository.versions(STUDENT)) > 1, "the worker has judged a version")
    for version in machine.repository.versions(STUDENT)[1:]:
        manifest = machine.repository.open(STUDENT, version, verify=True).manifest
        assert manifest.gate is not None
        assert manifest.gate.passed or manifest.gate.reasons
        assert manifest.gate.figures["rows"]
    newest = machine.repository.latest(STUDENT)
    rows = some_rows(machine, 1)
    tensors = packed(machine, rows)

    def answered() -> bool:
        nonlocal newest, scores
        newest = machine.repository.latest(STUDENT)
        answer = infer(machine, tensors, parameters={"routing_key": "anyone"})
        said = answer.get_response().parameters
        scores = answer.as_numpy("score")
        return (said["arm"].string_param, said["version"].string_param) == ("candidate", newest)

    scores: Any = None
    until(answered, "the newest version that passed the gate answers")
    np.testing.assert_allclose(scores, machine.model(STUDENT, newest).scores(rows), rtol=0, atol=CLOSE)


def test_metrics_are_what_prometheus_asks_for(machine: Machine, replayed: Replayed) -> None:
    def scraped(accept: str) -> str:
        answer = httpx.get(f"{machine.url}/metrics", headers={"accept": accept}, trust_env=False, timeout=60)
        assert answer.raise_for_status().headers["content-type"].startswith(accept)
        return answer.text

    def totals() -> dict[str, float]:
        families = text_string_to_metric_families(scraped("application/openmetrics-text"))
        return {f.name: sum(s.value for s in f.samples) for f in families if f.name.startswith("baton_")}

    until(
        lambda: totals().get("baton_traffic_committed", 0) >= 2 * len(replayed.sent), "the lane's figures are written"
    )
    until(lambda: totals()["baton_process_up"] == 5, "all processes, the supervisor among them, are told to be up")
    assert totals()["baton_shadow_scored"] > 0
    figures = machine.admin.get(f"/metrics/{ENDPOINT}")
    assert figures["coverage"] > 0.3
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=scraped("text/plain"), capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_every_query_of_the_dashboard_gives_data(prometheus: Prometheus, replayed: Replayed) -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "baton.json").read_text())
    queries = [t["expr"] for panel in dashboard["panels"] for t in panel.get("targets", ())]
    assert len(queries) > 40
    values = {"$__rate_interval": "5s", "$instance": ".*", "$endpoint": ".*"}

    def silent() -> list[str]:
        return [q for q in filled if not any(v != "NaN" for s in prometheus.series(q) for _, v in s["values"])]

    filled = [reduce(lambda q, pair: q.replace(*pair), values.items(), query) for query in queries]
    until(lambda: not silent(), "all queries give data") if silent() else None
    assert silent() == []
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((\w+)(?:\{.*\})?, (\w+)\)", variable["definition"]).groups()  # type: ignore[union-attr]
            assert any(label in series["metric"] for series in prometheus.series(metric)), variable["name"]
    alerts = prometheus.get("rules")["groups"]
    assert [rule["name"] for group in alerts for rule in group["rules"] if rule["health"] != "ok"] == []


def baton(machine: Machine, *arguments: str, server: str = "") -> Result:
    return CliRunner().invoke(app, [*arguments, "--server", server or machine.url])


def told(machine: Machine, *arguments: str) -> Any:
    """What a command says in JSON; it must succeed."""
    done = baton(machine, *arguments, "-o", "json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_operators_see_and_steer_by_the_command_line(machine: Machine, replayed: Replayed, tmp_path: Path) -> None:
    assert [e["name"] for e in told(machine, "endpoint", "list")] == [ENDPOINT]
    assert told(machine, "endpoint", "get", ENDPOINT)["weight"] == 100
    models = told(machine, "model", "list")
    assert {m["bundle"] for m in models} == {TEACHER, STUDENT}
    assert any(f"{ENDPOINT}/stable" in m["arms"] for m in models)
    assert told(machine, "rollout", "list")[0]["endpoint"] == ENDPOINT
    assert told(machine, "rollout", "abort", ENDPOINT, "--reason", "try again")["phase"] == "aborted"
    file = tmp_path / "rollout.yaml"
    file.write_text(rollout_file(steps=[{"shadow": True, "min_positives": 10**9}, {"weight": 50, "bias_below": 0.01}]))
    assert told(machine, "rollout", "start", str(file), "--reason", "again")["weight"] == 0
    assert told(machine, "rollout", "pause", ENDPOINT, "--reason", "lunch")["phase"] == "paused"
    assert told(machine, "rollout", "resume", ENDPOINT, "--reason", "fed")["phase"] == "progressing"
    assert told(machine, "rollout", "set-weight", ENDPOINT, "40", "--reason", "by hand")["weight"] == 40
    assert told(machine, "endpoint", "get", ENDPOINT)["weight"] == 40
    assert told(machine, "rollout", "get", ENDPOINT)["phase"] == "paused"
    assert told(machine, "metrics", ENDPOINT)["phases"]
    assert told(machine, "endpoint", "kill", ENDPOINT, "--reason", "it burns")["killed"]
    until(lambda: machine.rollout()["phase"] == "aborted", "the kill aborts the rollout")
    assert told(machine, "endpoint", "get", ENDPOINT)["weight"] == 0
    assert not told(machine, "endpoint", "kill", ENDPOINT, "--release")["killed"]
    verbs = [(e["verb"], e["reason"]) for e in told(machine, "audit", "--endpoint", ENDPOINT)]
    assert ("abort", "try again") in verbs
    assert ("set_weight", "by hand") in verbs
    for command in (
        ["endpoint", "list"],
        ["rollout", "get", ENDPOINT],
        ["metrics", ENDPOINT],
        ["audit"],
        ["model", "list"],
    ):
        done = baton(machine, *command)
        assert done.exit_code == 0
        assert done.stdout.strip()
    loaded = CliRunner().invoke(app, ["model", "load", TEACHER, "--target", machine.target])
    assert loaded.exit_code == 0, loaded.output
    doctor = CliRunner().invoke(app, ["doctor", "--config", str(machine.path), "-o", "json"])
    checks = {c["check"]: c for c in json.loads(doctor.stdout)["checks"]}
    assert checks[f"{ENDPOINT}/stable"]["ok"]
    assert "this home has it" in checks["grpc_port"]["detail"]
    assert doctor.exit_code == (0 if all(c["ok"] for c in checks.values()) else 1)


WHY = ("--reason", "a test")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("endpoint", "get", "nobody"), "nobody"),
        (("endpoint", "kill", "nobody"), "nobody"),
        (("endpoint", "set", "other", "--stable", "no-such-bundle", *WHY), "no-such-bundle"),
        (("endpoint", "set", TEACHER, "--stable", TEACHER, *WHY), "namespace"),
        (("endpoint", "set", "other", "--stable", f"{TEACHER}:99", *WHY), "99"),
        (("endpoint", "set", "other", "--stable", TEACHER, "--weight", "5", *WHY), "no candidate"),
        (("rollout", "get", "nobody"), "nobody"),
        (("rollout", "pause", "nobody", *WHY), "nobody"),
        (("rollout", "pause", ENDPOINT), "reason: must not be empty"),
        (("rollout", "start", "no-such-file.yaml"), "no-such-file.yaml"),
        (("metrics", "nobody"), "nobody"),
    ],
)
def test_refusals_end_with_1_and_name_what_is_wrong(machine: Machine, arguments: tuple[str, ...], said: str) -> None:
    done = baton(machine, *arguments)
    assert done.exit_code == 1, done.output
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_usage_ends_with_2_and_no_server_with_1(machine: Machine) -> None:
    command = [sys.executable, "-m", "serving.cli.main"]
    usage = subprocess.run([*command, "rollout", "set-weight", ENDPOINT, "101"], capture_output=True, check=False)
    assert usage.returncode == 2
    alone = baton(machine, "endpoint", "list", server="http://127.0.0.1:9")
    assert alone.exit_code == 1
    assert "no control process answers" in alone.stderr
    assert "--server" in alone.stderr

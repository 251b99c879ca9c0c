"""A home that Baton 0.1 wrote (commit 976f7cb) is opened as it is: same weight, evidence, keys on arms, models, worker.

`tests/data/home-0.1.tar.xz` is such a home, with a rollout at 25 %, a worker that has published, labels that are not
joined yet, a token, a kill flag and a model that was loaded by hand. `expected.json` in it is what 0.1 said about it.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worker_world import SCHEMA, draw

from pipeline.bundle.versions import Repository
from pipeline.clock import SystemClock
from pipeline.features import Features
from pipeline.model.model import Model
from serving.config import Config
from serving.processes.worker import build
from serving.rollout.controller import RolloutController
from serving.rollout.reconcile import Observed
from serving.rollout.routing import on_candidate
from serving.rollout.state import Promote, SetWeight, Undo
from serving.security.tokens import TokenStore
from serving.wiring.state import open_control_store, open_keys, open_kill_switch
from serving.wiring.traffic import open_traffic_log

HOME = Path(__file__).parents[1] / "data" / "home-0.1.tar.xz"
NOW_MS = 1_700_000_010_000


class Clock:
    def wall_ms(self) -> int:
        return NOW_MS

    def monotonic(self) -> float:
        return NOW_MS / 1000


@pytest.fixture
def config(tmp_path: Path) -> Config:
    with tarfile.open(HOME) as archive:
        archive.extractall(tmp_path, filter="data")
    return Config.load(tmp_path / "home" / "baton.yaml")


@pytest.fixture
def expected(config: Config) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((config.home / "expected.json").read_text())
    return found


def test_rollout_endpoint_and_audit_go_on(config: Config, expected: dict[str, Any]) -> None:
    store, traffic = open_control_store(config), open_traffic_log(config)
    endpoint, rollout = store.endpoint("ranker"), store.rollout("ranker")
    assert (endpoint.weight, endpoint.salt) == (25.0, expected["endpoint"]["salt"])
    assert endpoint.stable.model_dump(mode="json") == expected["endpoint"]["stable"]
    assert endpoint.candidate is not None
    assert endpoint.candidate.model_dump(mode="json") == expected["endpoint"]["candidate"]
    state = json.loads(json.dumps(rollout.state.to_json()))
    assert {name: state[name] for name in expected["rollout"]} == expected["rollout"], (
        "later fields have their defaults"
    )
    audit = [{"seq": a.seq, "verb": a.verb, "actor": a.actor, "reason": a.reason} for a in store.audit()]
    assert audit == expected["audit"]
    arms = "".join("c" if on_candidate(endpoint.salt, f"user:{i}", 25) else "s" for i in range(200))
    assert arms == expected["arms"]

    controller = RolloutController(
        store, traffic, Clock(), lambda: lambda *_: Observed(), lambda _: SCHEMA, lambda *_: None
    )
    controller.step()
    figures = json.loads(json.dumps(asdict(controller.snapshot("ranker"))))
    rows = sum(phase["rows"] for phase in figures["phases"])
    assert rows == sum(phase["rows"] for phase in expected["_figures"]["phases"]) > 0
    assert controller.command("ranker", SetWeight(10.0), "cleo", "by hand").state.weight == 10.0
    controller.command("ranker", Promote(full=True), "cleo", "all of it", force=True)
    assert store.endpoint("ranker").weight == 100.0
    controller.command("ranker", Undo(), "cleo", "back")
    assert store.endpoint("ranker").weight == 0.0
    assert [a.verb for a in store.audit()][-3:] == ["set_weight", "promote", "undo"]
    traffic.close()
    store.close()


def test_the_traffic_log_goes_on(config: Config, expected: dict[str, Any]) -> None:
    traffic = open_traffic_log(config)
    entries = traffic.labelled(0, 10_000)
    digest = hashlib.sha256()
    for e in entries:
        one = (e.seq, e.prediction_id, e.revision, e.indices.tolist(), e.labels.tolist())
        digest.update(repr(one).encode() + e.record)
    assert {"entries": len(entries), "sha256": digest.hexdigest()} == expected["labelled"]
    stats = asdict(traffic.stats(NOW_MS))
    assert stats["predictions"] == expected["stats"]["predictions"] == len(entries) + 5
    # What was said to the old home becomes rows in the new one.
    while traffic.join(NOW_MS + 10_000_000):
        pass
    assert len(traffic.labelled(entries[-1].seq, 100)) == 5
    traffic.close()


def test_models_tokens_flags_and_keys_are_there(config: Config, expected: dict[str, Any]) -> None:
    requests = [draw(np.random.default_rng(9))[0] for _ in range(3)]
    for name, scores in expected["scores"].items():
        bundle, version = name.split(":")
        repository = config.home / "bundles"
        assert (repository / bundle / version).is_dir()
        model = Model.load(Repository(repository), bundle, version, segments=config.segments)
        found = [float(x) for rows in requests for x in model.score(Features.from_context(SCHEMA, rows))[:4]]
        np.testing.assert_allclose(found, scores, atol=1e-6)
    token = TokenStore(config.tokens).find(f"Bearer {expected['token']}", SystemClock().wall_ms())
    assert token is not None
    assert token.name == expected["token_name"]
    assert list(open_kill_switch(config).why("other") or ()) == expected["kill"]
    assert [path.name for path in config.loads.iterdir()] == ["teacher"]
    keys = open_keys(config)
    taken = keys.take("ann", "key-1", "digest", 1_700_000_001_000)
    assert taken is not None
    assert json.loads(taken.answer or "") == {"ok": True}
    keys.close()


def test_the_worker_goes_on_from_its_checkpoint(config: Config, expected: dict[str, Any]) -> None:
    follower, stop = build(config), threading.Event()
    timer = threading.Timer(60.0, stop.set)  # a limit, not the plan: the worker stops when it has written its status
    timer.start()
    runner = threading.Thread(target=follower.run, args=(stop,))
    status = config.status / "worker.json"
    before = status.stat().st_mtime_ns
    runner.start()
    while status.stat().st_mtime_ns == before and runner.is_alive() and not stop.is_set():
        stop.wait(0.02)
    stop.set()
    runner.join(60)
    timer.cancel()
    assert status.stat().st_mtime_ns > before  # it ran, and did not end by an error
    now = json.loads(status.read_text())
    old = expected["worker"]
    assert (now["batches"], now["trained_rows"], now["position"]) == (
        old["batches"],
        old["trained_rows"],
        old["position"],
    )
    assert now["chains"].keys() == old["chains"].keys()
    assert now["versions"] == old["versions"]

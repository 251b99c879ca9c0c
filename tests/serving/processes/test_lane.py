from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from handmade import SCHEMA, random_rows
from installation import Installation, eventually, free_port, lane_process, running, status, write_status
from prometheus_client.parser import text_string_to_metric_families

from pipeline.errors import BatonError
from pipeline.features import Features
from pipeline.traffic.log import FeedbackEntry, Outcome
from pipeline.traffic.record import unpack
from serving.client import RankingClient
from serving.processes import lane as lane_module
from serving.processes.lane import Lane
from serving.runtime.status import dumps
from serving.state.kill import KillSwitch
from serving.telemetry import METRICS_DIR, Telemetry, merged
from serving.telemetry.histogram import EDGES, Recent, quantile
from serving.wiring.traffic import open_traffic_log


def features_of(made: Installation, seed: int = 1, n: int = 10) -> Features:
    return Features.from_context(SCHEMA, random_rows(np.random.default_rng(seed), n, made.tables))


class Load:
    """Clients that ask as fast as they can until told to stop; what they saw."""

    def __init__(self, made: Installation, target: str, clients: int = 2) -> None:
        self.answers: Counter[tuple[str, str]] = Counter()
        self.errors: list[BatonError] = []
        self.stopping = threading.Event()
        self._features = features_of(made)
        self._target = target
        self._threads = [threading.Thread(target=self._ask, args=(i,), daemon=True) for i in range(clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self, client_number: int) -> None:
        with RankingClient(self._target) as client:
            i = 0
            while not self.stopping.is_set():
                i += 1
                try:
                    answer = client.rank("ranker", SCHEMA, self._features, routing_key=f"{client_number}-{i % 100}")
                except BatonError as error:
                    self.errors.append(error)
                else:
                    self.answers[answer.arm, answer.version] += 1

    def stop(self) -> None:
        self.stopping.set()
        for thread in self._threads:
            thread.join(20)


def test_versions_are_swapped_under_load_without_losing_a_request(installation: Installation) -> None:
    installation.set(weight=50)
    with running(installation.config) as lane:
        load = Load(installation, lane.target)
        for seed in range(3):
            version = installation.publish("student", 3 + seed).manifest.version
            eventually(lambda v=version: load.answers["candidate", v] > 20, f"version {version} answers")  # type: ignore[misc]
        load.stop()
        assert not load.errors
        assert {version for arm, version in load.answers if arm == "candidate"} == {"1", "2", "3", "4"}
        arm = lane.lane.status().endpoints["ranker"]["candidate"]
        assert (arm.version, arm.errors) == ("4", 0)


def test_the_kill_file_empties_the_candidate_within_a_second(installation: Installation) -> None:
    installation.set(weight=100)
    with running(installation.config) as lane, RankingClient(lane.target) as client:
        features = features_of(installation)
        assert client.rank("ranker", SCHEMA, features, routing_key="u").arm == "candidate"
        KillSwitch(installation.home).engage("ranker", "it burns", "test")
        until = time.monotonic() + 1.0
        while client.rank("ranker", SCHEMA, features, routing_key="u").arm == "candidate":
            assert time.monotonic() < until
        arms = {client.rank("ranker", SCHEMA, features, routing_key=f"u{i}").arm for i in range(50)}
        assert arms == {"stable"}
        assert lane.lane.status().killed == ["ranker"]


def test_the_same_keys_meet_the_same_arms_after_a_restart(installation: Installation) -> None:
    installation.set(weight=40)
    seen = []
    for _ in range(2):
        with running(installation.config) as lane, RankingClient(lane.target) as client:
            features = features_of(installation, n=2)
            seen.append([client.rank("ranker", SCHEMA, features, routing_key=f"u{i}").arm for i in range(50)])
    assert seen[0] == seen[1]
    assert set(seen[0]) == {"stable", "candidate"}


def test_lanes_share_a_port_and_drain_when_told_to(tmp_path: Path) -> None:
    port = free_port()
    made = Installation(
        tmp_path / "home",
        listen={"grpc_port": port},
        endpoints={"ranker": {"stable": {"bundle": "teacher"}, "candidate": {"bundle": "student"}}},
    )
    target = f"127.0.0.1:{port}"
    with lane_process(made, 0) as first, lane_process(made, 1) as second:
        for name in ("lane-0", "lane-1"):
            eventually(lambda n=name: status(made, n).get("state") == "ready", f"{name} is ready", 40)  # type: ignore[misc]
        assert status(made, "lane-0")["port"] == status(made, "lane-1")["port"] == port
        with RankingClient(target) as client:
            answered = [client.rank("ranker", SCHEMA, features_of(made, i)).prediction_id for i in range(30)]
        assert first.end(signal.SIGTERM) == 0
        assert second.end(signal.SIGTERM) == 0
        assert status(made, "lane-0")["state"] == "draining"
    log = open_traffic_log(made.config)
    assert {unpack(blob).prediction_id for _, blob in log.unscored("", 1 << 60).found} == set(answered)
    log.close()
    made.store.close()


def test_draining_says_not_serving_first_and_answers_what_it_took(installation: Installation) -> None:
    with running(installation.config) as lane, grpc.insecure_channel(lane.target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        names = (
            "",
            "inference.GRPCInferenceService",
            "baton.ranking.v1.RankingService",
            "ranker/stable",
            "ranker/candidate",
        )
        for name in names:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with_watch = stub.Watch(health_pb2.HealthCheckRequest(service="ranker/stable"))
        assert next(with_watch).status == health_pb2.HealthCheckResponse.SERVING
        load = Load(installation, lane.target, clients=1)
        eventually(lambda: load.answers.total() > 10, "the load runs")
        told: list[int] = []

        def watch() -> None:
            try:
                told.append(next(with_watch).status)
            except grpc.RpcError:
                told.append(-1)
            load.stopping.set()  # as a balancer would

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        lane.stop()
        watcher.join(10)
        load.stop()
        assert told == [health_pb2.HealthCheckResponse.NOT_SERVING]
        assert not load.errors


def test_a_lane_dies_with_its_parent(installation: Installation) -> None:
    settings = installation.home / "settings.json"
    settings.write_text(installation.config.model_dump_json())
    child = (
        "from pathlib import Path; from serving.config import Config; from serving.processes.lane import run_lane;"
        f"run_lane(Config.model_validate_json(Path({str(settings)!r}).read_text()), 0)"
    )
    parent = (
        "import subprocess, sys, time;"
        f"p = subprocess.Popen([sys.executable, '-c', {child!r}]); print(p.pid, flush=True); time.sleep(100)"
    )
    root = str(Path(__file__).parents[3])
    process = subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, cwd=root, env={"PYTHONPATH": root}
    )
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    eventually(lambda: status(installation, "lane-0").get("state") == "ready", "the lane is ready", 40)
    process.kill()
    process.wait(10)
    process.stdout.close()

    def gone() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
        except FileNotFoundError:
            return True

    eventually(gone, "the lane is gone")


def test_status_and_metrics_tell_what_happened(installation: Installation) -> None:
    with running(installation.config) as lane, RankingClient(lane.target) as client:
        for _ in range(5):
            client.rank("ranker", SCHEMA, features_of(installation), routing_key="secret-user")
        eventually(
            lambda: status(installation, "lane-0")["endpoints"]["ranker"]["stable"]["recent"]["requests"] == 5,
            "the status file has all five",
        )
        arm = status(installation, "lane-0")["endpoints"]["ranker"]["stable"]
        assert (arm["version"], arm["state"], arm["requests"], arm["rows"]) == ("1", "READY", 5, 50)
        assert 0 < arm["recent"]["p50_ms"] <= arm["recent"]["p99_ms"]
        assert sum(arm["recent"]["counts"].values()) == 5
        eventually(
            lambda: b"baton_request_seconds_count" in merged(installation.home / METRICS_DIR), "metrics are there"
        )
    text = merged(installation.home / METRICS_DIR).decode()
    assert "secret-user" not in text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    count = [s for s in families["baton_request_seconds"].samples if s.name.endswith("_count")]
    assert sorted((s.labels["endpoint"], s.labels["arm"], s.labels["version"], s.value) for s in count) == [
        ("ranker", "candidate", "1", 0.0), ("ranker", "stable", "1", 5.0),
    ]  # fmt: skip
    stages = {s.labels["stage"] for s in families["baton_stage_seconds"].samples}
    assert stages >= {"decode", "embed", "infer", "record"}
    batches = {s.name: s.value for s in families["baton_batch_rows"].samples if s.name.endswith(("_count", "_sum"))}
    assert batches == {"baton_batch_rows_count": 5, "baton_batch_rows_sum": 50}


def test_counters_are_there_before_their_first_event(installation: Installation) -> None:
    def counters() -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        families = text_string_to_metric_families(merged(installation.home / METRICS_DIR).decode())
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in families
            for sample in family.samples
            if family.type == "counter"
        }

    def total(name: str) -> float:
        return sum(value for (of, _), value in counters().items() if of == name)

    with running(installation.config) as lane, RankingClient(lane.target) as client:
        eventually(lambda: [name for name, _ in counters()].count("baton_rows_total") == 2, "both arms have series")
        before = counters()
        assert total("baton_rows_total") == total("baton_feedback_total") == total("baton_request_failures_total") == 0
        answer = client.rank("ranker", SCHEMA, features_of(installation), routing_key="u")
        client.feedback([FeedbackEntry(answer.prediction_id, (), [Outcome(0, 1.0)], exposed_all=True)])
        client.feedback([FeedbackEntry("nonsense", (), [Outcome(0, 1.0)])])
        for endpoint in ("ranker", "made up", "made up too"):
            with pytest.raises(BatonError):
                client.rank(endpoint, SCHEMA, features_of(installation), arm="neither")
        eventually(lambda: total("baton_request_failures_total") == 3, "the failures are counted")
        after = counters()
    grown = {key[0] for key, value in after.items() if value}
    assert grown >= {
        "baton_rows_total", "baton_feedback_total", "baton_caller_failures_total", "baton_traffic_committed_total",
        "baton_embedding_ids_total",
    }  # fmt: skip
    assert set(after) - set(before) == set()


def test_metrics_of_all_processes_make_one_text(tmp_path: Path) -> None:
    for process in ("lane-0", "lane-1"):
        telemetry = Telemetry(process)
        telemetry.answered("ranker", "stable", "1", 0.01, 10, {"embed": 0.001})
        telemetry.tally("baton_lost", "Lost things, by reason", "reason", lambda: {"full": 3})
        telemetry.write(tmp_path)
    (tmp_path / "other.prom").write_text("# HELP x y\n# TYPE x counter\nx_total 1\n# EOF\n")
    text = merged(tmp_path).decode()
    assert text.count("# TYPE baton_rows_total counter") == 1
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert sum(s.value for s in families["baton_rows"].samples if s.name == "baton_rows_total") == 20
    assert [s.value for s in families["baton_lost"].samples] == [3, 3]
    assert merged(tmp_path, now=lambda: time.time() + 60) == b""
    assert merged(tmp_path / "nothing") == b""


def test_recent_quantiles_are_close_and_the_past_is_forgotten() -> None:
    rng = np.random.default_rng(0)
    seconds = rng.lognormal(-5, 1, 5000)
    recent = Recent(seconds=10)
    for i, value in enumerate(seconds):
        recent.observe(100 + i / 1000, value)
    counts = recent.counts(105)
    for q in (0.5, 0.99):
        found = quantile(counts, q)
        assert found is not None
        assert abs(found / np.quantile(seconds, q) - 1) < 0.08
    recent.error(106)
    recent.deadline_missed(106)
    assert recent.failures(106) == (1, 1)
    assert recent.counts(200).sum() == 0
    assert recent.failures(200) == (0, 0)
    recent.begin(300, "version 1")
    recent.observe(300, 0.01)
    recent.degraded(300)
    recent.begin(301.5, "version 1")
    assert (recent.totals(302).requests, recent.totals(302).degraded, recent.totals(302).seconds) == (1, 1, 2.0)
    recent.begin(303, "version 2")
    assert (recent.totals(307).requests, recent.totals(307).degraded, recent.totals(307).seconds) == (0, 0, 4.0)
    assert recent.totals(400).seconds == 10
    assert quantile(recent.counts(200), 0.5) is None
    assert len(counts) == len(EDGES) + 1


def test_a_status_file_is_json_that_other_processes_can_rely_on(installation: Installation) -> None:
    with running(installation.config) as lane:
        told = json.loads(dumps(lane.lane.status()))
    assert set(told) == {
        "process", "pid", "time_ms", "port", "state", "endpoints", "direct", "killed", "blind", "state_away", "counters", "engine", "embedding", "faults", "loading", "models", "remotes", "writer", "shadow", "labels",
    }  # fmt: skip
    assert set(told["endpoints"]["ranker"]["stable"]) == {
        "bundle", "version", "wanted", "state", "reason", "requests", "rows", "errors", "deadline_misses", "recent",
    }  # fmt: skip


def test_series_of_old_versions_make_room(tmp_path: Path) -> None:
    telemetry = Telemetry("lane-0")
    for version in range(50):
        telemetry.answered("ranker", "candidate", str(version), 0.01, 10, {"embed": 0.001})
        telemetry.shadowed("ranker", "stable", str(version), 0.01)
    telemetry.write(tmp_path)
    families = {family.name: family for family in text_string_to_metric_families(merged(tmp_path).decode())}
    for name in ("baton_request_seconds", "baton_rows", "baton_stage_seconds", "baton_shadow_seconds"):
        assert {s.labels["version"] for s in families[name].samples} == {"46", "47", "48", "49"}


def test_histograms_tell_waiting_from_work_and_count_by_bucket(tmp_path: Path) -> None:
    telemetry = Telemetry("lane-0")
    for milliseconds in (0.4, 0.5, 4, 400, 90_000):
        telemetry.answered("ranker", "stable", "1", milliseconds / 1000, 1, {"queue": 0.02, "infer": 0.001})
    telemetry.write(tmp_path)
    families = {family.name: family for family in text_string_to_metric_families(merged(tmp_path).decode())}
    samples = families["baton_request_seconds"].samples
    buckets = {s.labels["le"]: s.value for s in samples if s.name.endswith("_bucket")}
    assert (buckets["0.0005"], buckets["0.003"], buckets["0.005"], buckets["5.0"], buckets["+Inf"]) == (2, 2, 3, 4, 5)
    assert next(s.value for s in samples if s.name.endswith("_sum")) == pytest.approx(90.4049)
    assert {s.labels["stage"] for s in families["baton_stage_seconds"].samples} == {"infer"}
    assert [s.value for s in families["baton_queue_seconds"].samples if s.name.endswith("_count")] == [5]


def test_a_lane_listens_only_once_it_has_what_other_lanes_answer_with(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_module, "FIRST_LOAD_S", 0.3)
    table = installation.repository.path("teacher", "1") / "tables" / "item.safetensors"
    table.write_bytes(table.read_bytes()[:-8])
    arms = {arm: {"bundle": bundle, "version": "1", "wanted": "1", "state": "READY"} for arm, bundle in ARMS.items()}

    def other(state: str) -> None:
        arms["stable"]["state"] = state
        now_ms = time.time_ns() // 1_000_000
        write_status(
            installation.config.status,
            "lane-7",
            time_ms=now_ms,
            pid=1,
            port=5,
            state="ready",
            endpoints={"ranker": arms},
        )

    other("READY")
    lane = Lane(installation.config, 0)
    starting = threading.Thread(target=lambda: asyncio.run(started(lane)), daemon=True)
    starting.start()
    eventually(lambda: "teacher/1" in status(installation, "lane-0").get("faults", {}), "it knows that it cannot", 30)
    time.sleep(1.0)  # three times as long as it would wait for itself alone
    assert lane.port == 0
    other("LOADING")  # nobody answers with it now
    eventually(lambda: lane.port != 0, "it listens", 30)
    starting.join(30)
    assert not starting.is_alive()


ARMS = {"stable": "teacher", "candidate": "student"}


async def started(lane: Lane) -> None:
    await lane.start()
    await lane.stop(1)

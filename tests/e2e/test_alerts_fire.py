"""Every alert is made to fire by its real cause on a running installation that Prometheus scrapes, with the rules at sixty times
their speed (`hurried`): faults are made from outside, by signals, locks, a full Redis, wrong callers and operators' verbs."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from handmade import SCHEMA, random_rows, random_tables, write_bundle
from hurried import hurried
from machine import Served, free_ports, until
from prometheus import Prometheus
from redis_process import RedisProcess

from pipeline.bundle.bundle import Calibration
from pipeline.bundle.versions import Repository
from pipeline.errors import BatonError
from pipeline.features import Features
from pipeline.traffic.log import FeedbackEntry, Outcome
from serving.client import RankingClient

RULES = Path(__file__).parents[2] / "deploy" / "prometheus" / "alerts.yml"
ELSEWHERE = {"BatonVersionStale", "BatonGateRefusing", "BatonWorkerDown", "BatonBreakerOpen", "BatonRemoteAway"}
"""Their causes need a worker, a Redis of embeddings or another model server, which this installation has not."""
WINDOW_S = 4.0
TILT = 1.0
"""Between the logits of the two bundles: the student expects more clicks than there are wherever the teacher is right."""

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif("DRILL" not in os.environ, reason="it takes five minutes: `make drill`"),
]


def rollout(endpoint: str, candidate: str, **more: object) -> str:
    return yaml.safe_dump(
        {
            "endpoint": endpoint,
            "candidate": {"bundle": candidate},
            "steps": [{"shadow": True, "min_positives": 50}, {"weight": 50, "bias_below": 0.1}, {"weight": 100, "bias_below": 0.1}],
            "guards": {"score_ratio": [0.05, 20.0], "shadow_coverage_min": 0.9},
            "analysis": {
                "attribution_window": f"{WINDOW_S:g}s", "block": "100ms", "interval": "500ms", "min_step_time": "8s",
                "breach_window": "20s", "evidence_span": "0s",
            },
            "holdout": 0,
            **more,
        },
        sort_keys=False,
    )  # fmt: skip


class Shop:
    """Requests of one endpoint and their labels, which are as the teacher expects, in a thread, until it is closed."""

    def __init__(self, served: Served, endpoint: str, rate: float = 15.0) -> None:
        self._served, self._endpoint, self._rate = served, endpoint, rate
        self.labels, self.delay_s = True, 0.3
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"shop-{endpoint}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._end.set()
        self._thread.join(30)

    def _run(self) -> None:
        rng, tables = np.random.default_rng(len(self._endpoint)), random_tables(1)
        waiting: deque[tuple[float, FeedbackEntry]] = deque()
        asked = [Features.from_context(SCHEMA, random_rows(rng, 10, tables)) for _ in range(50)]
        number = 0
        with RankingClient(self._served.target) as client:
            while not self._end.wait(1 / self._rate):
                number += 1
                with contextlib.suppress(BatonError):
                    answer = client.rank(
                        self._endpoint, SCHEMA, asked[number % 50], routing_key=f"u{rng.integers(500)}", timeout=2.0
                    )
                    scores = np.asarray(answer.scores, np.float64)
                    tilt = TILT if answer.bundle == "student" else 0.0
                    truth = 1 / (1 + np.exp(-(np.log(scores / (1 - scores)) - tilt)))
                    clicks = [Outcome(int(row), 1.0) for row in np.flatnonzero(rng.random(len(truth)) < truth)]
                    if self.labels:
                        entry = FeedbackEntry(answer.prediction_id, (), clicks, exposed_all=True)
                        waiting.append((time.monotonic() + self.delay_s, entry))
                while waiting and waiting[0][0] <= time.monotonic():
                    with contextlib.suppress(BatonError):
                        client.feedback([waiting.popleft()[1]], timeout=2.0)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    options = ("--appendonly", "yes", "--maxmemory-policy", "noeviction")
    with RedisProcess(tmp_path_factory.mktemp("redis") / "state", *options) as running:
        yield running


@pytest.fixture(scope="module")
def served(redis: RedisProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("alerts") / "home"
    tables, repository = random_tables(1), Repository(home / "bundles")
    for name, beta in (("teacher", -0.5), ("student", -0.5 + TILT)):
        write_bundle(repository, tables, name=name, calibration=Calibration(alpha=0.5, beta=beta))
    grpc_port, http_port, admin_port = free_ports(3)
    path = home / "baton.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "home": ".",
                "listen": {"grpc_port": grpc_port, "http_port": http_port, "admin_port": admin_port},
                "engine": {"lanes": 2, "shadow_queue": 8, "max_queue_size": 4},
                "hang_limit": "18s",
                "endpoints": {
                    "ranker": {"stable": {"bundle": "teacher"}, "candidate": {"bundle": "student"}},
                    "other": {"stable": {"bundle": "student"}, "candidate": {"bundle": "teacher"}},
                    "third": {"stable": {"bundle": "teacher"}},
                },
                "traffic": {"attribution_window": f"{WINDOW_S:g}s", "buffer": 20, "retention_bytes": 100_000},
                "state": {"url": f"{redis.address.url}?db=0"},
            }
        )
    )
    made = Served(path)
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def rules() -> tuple[str, set[str]]:
    return hurried(RULES)


@pytest.fixture(scope="module")
def prometheus(
    served: Served, rules: tuple[str, set[str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "alerts.yml").write_text(rules[0])
    with Prometheus(folder / "home", served.url, folder / "alerts.yml") as running:
        yield running


class Watch:
    """Waits for alerts."""

    def __init__(self, prometheus: Prometheus, served: Served) -> None:
        self._prometheus, self._served = prometheus, served

    def fired(self) -> set[str]:
        """Alerts that have fired so far."""
        return {one["metric"]["alertname"] for one in self._prometheus.series('ALERTS{alertstate="firing"}')}

    def fires(self, *alerts: str, limit: float = 60.0) -> None:
        """Wait until each of them has fired."""
        try:
            until(lambda: set(alerts) <= self.fired(), f"{' and '.join(alerts)} fire", limit)
        except AssertionError as error:
            said = {name: self._served.admin.get(f"/rollouts/{name}")["waiting"] for name in ("ranker", "other")}
            raise AssertionError(f"{error}; lacking {set(alerts) - self.fired()}; rollouts: {said}") from None


@contextlib.contextmanager
def stopped(served: Served, name: str) -> Iterator[None]:
    """A process that hangs."""
    served.kill(name, signal.SIGSTOP)
    try:
        yield
    finally:
        served.kill(name, signal.SIGCONT)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """A database that another program holds."""
    held = sqlite3.connect(path, timeout=20, isolation_level=None)
    try:
        held.execute("BEGIN IMMEDIATE")
        yield
        held.execute("ROLLBACK")
    finally:
        held.close()


def cli(served: Served, *words: object) -> None:
    command = [sys.executable, "-m", "serving.cli.main", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run(command, check=True, capture_output=True, timeout=60, env=environment)


def test_every_alert_fires_by_its_cause(
    served: Served, redis: RedisProcess, prometheus: Prometheus, rules: tuple[str, set[str]]
) -> None:
    watch = Watch(prometheus, served)
    shops = {name: Shop(served, name) for name in ("ranker", "other", "third")}
    shops["third"].labels = False
    try:
        _play(served, redis, watch, shops)
    finally:
        for shop in shops.values():
            shop.close()
    left = rules[1] - ELSEWHERE - watch.fired()
    assert not left, f"these have not fired: {sorted(left)}"


def _play(served: Served, redis: RedisProcess, watch: Watch, shops: dict[str, Shop]) -> None:
    post, home = served.admin.post, served.home
    post("/rollouts", {"file": rollout("ranker", "student"), "reason": "biased candidate"})
    post("/rollouts", {"file": rollout("other", "teacher", progress_deadline="5s"), "reason": "biased stable"})
    watch.fires("BatonBiasOutOfBound", "BatonStableBiased", "BatonRolloutOverdue", "BatonRolloutNotMoving")
    post("/rollouts/ranker/promote", {"reason": "in spite of its bias", "force": True})
    watch.fires("BatonRolloutDegraded")
    watch.fires("BatonLabelsMissing")  # nobody sends labels of the third
    _refusals(served, watch)
    post("/rollouts/ranker/pause", {"reason": "until somebody looks"})
    watch.fires("BatonRolloutPaused")
    shops["third"].labels, shops["third"].delay_s = True, WINDOW_S + 2
    with locked(home / "traffic" / "labels.db"):
        watch.fires("BatonJoinStuck", "BatonLabelsLate", limit=120)
    with stopped(served, "shadow"):
        watch.fires("BatonShadowDropping", "BatonShadowDown", "BatonShadowCoverageLow")
    served.kill("lane-1", signal.SIGSTOP)  # the watchdog ends it
    watch.fires("BatonLaneDown", "BatonRolloutAlarm", "BatonProcessHung", limit=90)
    with locked(home / "traffic" / "lanes" / "0" / "index.db"), locked(home / "traffic" / "lanes" / "1" / "index.db"):
        watch.fires("BatonLogUnwritable", "BatonPredictionsNotLogged")
    post("/endpoints/other/kill", {"reason": "complaints"})
    watch.fires("BatonEndpointKilled")
    _versions(served, watch)
    cli(served, "backup", home.parent / "backup", "--config", served.path)
    at = time.time() - 3 * 86_400
    os.utime(home / "last_backup", (at, at))
    watch.fires("BatonBackupOld", "BatonLogHeldBack", limit=90)
    _restarts(served, watch)
    _state(redis, watch)
    os.rename(home / "kill", home / "kill.away")
    (home / "kill").write_text("no folder")
    watch.fires("BatonBlind")
    (home / "kill").unlink()
    os.rename(home / "kill.away", home / "kill")
    with stopped(served, "control"):
        watch.fires("BatonControlDown")
    assert served.server is not None
    os.kill(served.server.pid, signal.SIGSTOP)
    try:
        watch.fires("BatonSupervisorHung")
    finally:
        os.kill(served.server.pid, signal.SIGCONT)


def _refusals(served: Served, watch: Watch) -> None:
    features = Features.from_context(SCHEMA, random_rows(np.random.default_rng(3), 10, random_tables(1)))
    with RankingClient(served.target) as client:
        for number in range(150):
            client.feedback([FeedbackEntry(f"{number:032d}", (), [Outcome(0, 1.0)])])
        watch.fires("BatonCallerRefused")

        def flood(timeout: float, rows: int) -> Callable[[], None]:
            many = Features.from_context(SCHEMA, random_rows(np.random.default_rng(3), rows, random_tables(1)))

            def run() -> None:
                end = time.monotonic() + 8
                while time.monotonic() < end:
                    with contextlib.suppress(BatonError):
                        client.rank("third", SCHEMA, many, routing_key="u", timeout=timeout)

            return run

        for alert, timeout, rows, threads in (("BatonFailing", 0.004, 1000, 4), ("BatonRefusing", 2.0, 2000, 30)):
            running = [threading.Thread(target=flood(timeout, rows)) for _ in range(threads)]
            for thread in running:
                thread.start()
            watch.fires(alert)
            for thread in running:
                thread.join()
        end = time.monotonic() + 30
        while "BatonSlow" not in watch.fired() and time.monotonic() < end:
            for name in ("lane-0", "lane-1"):
                with stopped(served, name):
                    time.sleep(0.2)
        client.rank("third", SCHEMA, features, routing_key="u")
    watch.fires("BatonSlow")


def _versions(served: Served, watch: Watch) -> None:
    """A version whose files are damaged: the newest whole one answers in its place."""
    old = served.home / "bundles" / "teacher" / "1"
    new = served.home / "bundles" / "teacher" / "2.new"
    shutil.copytree(old, new)
    manifest = new / "manifest.json"
    manifest.write_text(
        manifest.read_text().replace('"version":"1"', '"version":"2"').replace('"version": "1"', '"version": "2"')
    )
    network = new / "dense.onnx"
    network.write_bytes(network.read_bytes()[:-50] + b"\0" * 50)
    os.rename(new, new.with_name("2"))
    torn = served.home / "bundles" / "student" / "9"
    torn.mkdir()
    (torn / "manifest.json").write_text("{")
    watch.fires("BatonVersionSetAside", "BatonLanesBehind", "BatonVersionDamaged", limit=150)
    shutil.rmtree(torn)
    shutil.rmtree(new.with_name("2"))


def _restarts(served: Served, watch: Watch) -> None:
    killed: set[int] = set()
    end = time.monotonic() + 60
    while "BatonRestarting" not in watch.fired() and time.monotonic() < end:
        pid = served.child("lane-0")["pid"]
        if pid is not None and pid not in killed:
            served.kill("lane-0")
            killed.add(pid)
        time.sleep(0.05)
    watch.fires("BatonRestarting")


def _state(redis: RedisProcess, watch: Watch) -> None:
    with redis.address.client(5.0) as admin:
        used = int(admin.info("memory")["used_memory"])
        admin.config_set("maxmemory", int(1.1 * used))
        watch.fires("BatonStoreFilling")
        admin.config_set("maxmemory", int(1.02 * used))
        watch.fires("BatonStoreFull")
        admin.config_set("maxmemory", 0)
    redis.signal(signal.SIGSTOP)
    watch.fires("BatonStateAway")
    redis.signal(signal.SIGCONT)
    with redis.address.client(5.0) as admin:
        kept = {key: admin.dump(key) for key in admin.scan_iter()}
        admin.flushall()
        watch.fires("BatonStateLost")
        for key, value in kept.items():
            admin.restore(key, 0, value, replace=True)

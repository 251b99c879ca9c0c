"""`baton demo`: a whole hand-over on one machine, with real processes.

    train a teacher (first 40 % of the rows) -> transfer a student (next 40 %) -> serve both, student in shadow
    -> replay the rest as gRPC requests with late labels -> worker co-distils and publishes -> the rollout moves the traffic

Only the clients are simulated: every figure of the report comes from requests through gRPC and labels through Feedback.
"""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from pipeline.bundle.bundle import Calibration
from pipeline.bundle.versions import Repository
from pipeline.children import python
from pipeline.clock import SystemClock
from pipeline.errors import Conflict, NotReady
from serving.cli.api import AdminClient
from serving.cli.click_log import click_log
from serving.cli.demo_view import DemoView
from serving.cli.figures import figures_of
from serving.cli.output import say, working
from serving.cli.progress import rows_progress
from serving.cli.replay import Replay, ReplayReport
from serving.config import Config
from serving.runtime.claims import supervisors
from serving.state.directory import target_of
from serving.wiring.bundles import open_repository
from serving.wiring.state import open_directory
from serving.wiring.traffic import open_traffic_log
from transfer.bundles.publish import save
from transfer.click_model.model import ClickModel
from transfer.data import open_log
from transfer.data.log import Log
from transfer.offline.distill import transfer_offline
from transfer.offline.train import train
from transfer.offline.window import Window
from transfer.online.replay_store import keep_sample

__all__ = ["Demo"]

ENDPOINT = "ranker"
TEACHER, STUDENT = "dnn", "dcnv2"
TEACHER_WIDTH, STUDENT_WIDTH = 8, 16
HISTORY_FRACTION, RETAINED_FRACTION = 0.4, 0.8
GENERATED_ROWS = 6_000_000
GENERATED_ROWS_PER_S = 5_000
LONGEST_STREAM_S = 240.0
SHORTEST_STREAM_S = 90.0
BAD_STREAM_S = 75.0
MAX_REQUESTS_PER_S = 400.0
LABEL_DELAY_S = 2.0
SETTLE_S = 20.0
START_TIMEOUT_S = 120.0
MARK = ".baton-demo"
REPLICAS = 2
"""Replicas on a Ray cluster, each of one lane."""


@dataclass
class Demo:
    """One run of the demo.

    Args:
        home: folder, emptied first; must be absent, empty or of an earlier demo.
        data: descriptor of a log, or None for the generator.
        rows: of the generated log.
        bad: plant a student that must not be promoted.
        ray: address of a Ray cluster to serve on, whose nodes see this file system; empty: serve here.
    """

    home: Path
    data: Path | None = None
    rows: int | None = None
    bad: bool = False
    seed: int = 0
    ray: str = ""
    _began: float = field(default_factory=time.monotonic)

    def run(self) -> dict[str, Any]:
        """Run all of it; the report."""
        self._clear()
        cache = self.home.parent / "cache"
        if self.data is None:
            rows = self.rows or GENERATED_ROWS
            say(f"no --data: a generated log of {rows:,} rows, drifting, seed {self.seed}")
            log = open_log(None, cache, rows=rows, seed=self.seed)
        else:
            with working(f"preparing {self.data}"):
                log = click_log(self.data, cache)
        self._models(log)
        config_path, rate, duration = self._configure(log)
        config = Config.load(config_path)
        with self._served(config_path, config) as admin:
            text = (self.home / "rollout.yaml").read_text()
            admin.post("/rollouts", {"file": text, "name": "rollout.yaml", "reason": "demo"})
            report, final = self._replay(log, config, admin, rate, duration)
        return self._report(log, config, report, final)

    # --- models --------------------------------------------------------------------------------------------------------

    def _models(self, log: Log) -> None:
        repository = Repository(self.home / "bundles")
        # A second thread makes networks of this size slower.
        torch.set_num_threads(1)
        with rows_progress(
            f"training the teacher ({TEACHER}-{TEACHER_WIDTH})", log.rows_between(0, HISTORY_FRACTION)
        ) as bar:
            teacher = train(log, TEACHER, width=TEACHER_WIDTH, stop=HISTORY_FRACTION, seed=self.seed, progress=bar)
        save(teacher, repository, f"{ENDPOINT}-{TEACHER}")
        retained = log.rows_between(HISTORY_FRACTION, RETAINED_FRACTION)
        with rows_progress(f"transferring to the student ({STUDENT}-{STUDENT_WIDTH})", retained) as bar:
            student, _ = transfer_offline(
                Window(teacher, log, HISTORY_FRACTION, RETAINED_FRACTION),
                STUDENT,
                width=STUDENT_WIDTH,
                seed=self.seed,
                progress=bar,
            )
        if self.bad:
            _spoil(student, self.seed)
        else:
            keep_sample(
                log, HISTORY_FRACTION, RETAINED_FRACTION, self.home / "retained.safetensors", teacher.calibrated_logits,
                capacity=100_000, seed=self.seed,
            )  # fmt: skip
        # A spoilt student is written without training state, so that nothing can heal it.
        save(student, repository, f"{ENDPOINT}-{STUDENT}", training=not self.bad)

    # --- serving -------------------------------------------------------------------------------------------------------

    def _configure(self, log: Log) -> tuple[Path, float, float]:
        """Write baton.yaml and rollout.yaml; their path, and requests per second and seconds of the stream."""
        first = next(log.chunks(RETAINED_FRACTION, 1.0, 1))
        rows = log.rows_between(RETAINED_FRACTION, 1.0)
        requests = log.request_count - int(first.request[0])
        wanted = max(rows / GENERATED_ROWS_PER_S, requests / MAX_REQUESTS_PER_S)
        duration = min(max(wanted, SHORTEST_STREAM_S), LONGEST_STREAM_S)
        rate = min(requests / duration, MAX_REQUESTS_PER_S)
        grpc_port, http_port, admin_port = _free_ports(3)
        config: dict[str, Any] = {
            "home": ".",
            "listen": {"grpc_port": grpc_port, "http_port": http_port, "admin_port": admin_port},
            "endpoints": {
                ENDPOINT: {
                    "stable": {"bundle": f"{ENDPOINT}-{TEACHER}"},
                    "candidate": {"bundle": f"{ENDPOINT}-{STUDENT}"},
                }
            },
            "traffic": {"attribution_window": "10s"},
        }
        if self.ray:
            config |= {"engine": {"lanes": 1}, "ray": {"min_replicas": REPLICAS, "max_replicas": REPLICAS}}
        if not self.bad:
            config["worker"] = {
                "endpoint": ENDPOINT,
                "retained": "retained.safetensors",
                "batch_rows": int(min(4096, max(256, rows / duration))),
                "publish_interval": "12s",
                "publish_batches": 8,
                "teacher_publish_interval": "60s",
                "seed": self.seed,
            }
        path = self.home / "baton.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        rollout = {
            "endpoint": ENDPOINT,
            "candidate": {"bundle": f"{ENDPOINT}-{STUDENT}"},
            "steps": [
                {"shadow": True, "min_positives": 1000},
                {"weight": 1, "bias_below": 0.10},
                {"weight": 5, "bias_below": 0.05},
                {"weight": 25, "bias_below": 0.03},
                {"weight": 50, "bias_below": 0.02},
                {"weight": 100, "bias_below": 0.02},
            ],
            "guards": {"p99_ms_max": 500},
            "analysis": {
                "attribution_window": "10s",
                "block": "400ms",
                "interval": "2s",
                "min_step_time": "20s",
                "breach_window": "30s",
                "evidence_span": "0s",  # the demo's traffic has no day and no night
            },
            "holdout": 0,
            "after_full": {"watch": "1h"},
        }
        (self.home / "rollout.yaml").write_text(yaml.safe_dump(rollout, sort_keys=False))
        return path, rate, BAD_STREAM_S if self.bad else duration

    @contextmanager
    def _served(self, config_path: Path, config: Config) -> Iterator[AdminClient]:
        admin = AdminClient(f"http://127.0.0.1:{config.listen.http_port}", actor="demo")
        if self.ray:
            with self._on_ray(config, admin):
                yield admin
            return
        log_path = self.home / "serve.log"
        with open(log_path, "wb") as log_file:
            server = subprocess.Popen(
                python("-m", "serving.cli.main", "serve", "--config", str(config_path)),
                stdout=log_file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
            try:
                with working("starting lanes, shadow lane, control and worker"):
                    deadline = time.monotonic() + START_TIMEOUT_S
                    while not admin.ready():
                        if server.poll() is not None or time.monotonic() > deadline:
                            raise NotReady(f"the server did not become ready; its log is {log_path}")
                        time.sleep(0.2)
                yield admin
            finally:
                server.terminate()
                try:
                    server.wait(60)
                except subprocess.TimeoutExpired:
                    server.kill()
                    server.wait()

    @contextmanager
    def _on_ray(self, config: Config, admin: AdminClient) -> Iterator[None]:
        from serving.ray_app import remove, serve_on

        try:
            with working(f"placing replicas, control and worker on the Ray cluster at {self.ray}"):
                serve_on(self.ray, config)
                deadline = time.monotonic() + START_TIMEOUT_S
                while not admin.ready():
                    if time.monotonic() > deadline:
                        raise NotReady(f"the installation on Ray did not become ready; its home is {config.home}")
                    time.sleep(0.2)
            yield
        finally:
            remove()

    def _target(self, config: Config) -> str:
        if not self.ray:
            return f"127.0.0.1:{config.listen.grpc_port}"
        return target_of(open_directory(config, SystemClock()).replicas())

    # --- traffic -------------------------------------------------------------------------------------------------------

    def _replay(
        self, log: Log, config: Config, admin: AdminClient, rate: float, duration: float
    ) -> tuple[ReplayReport, dict[str, Any]]:
        sender = Replay(self._target(config), ENDPOINT, log.schema, rate=rate, label_delay=LABEL_DELAY_S)
        say(
            f"replaying {rate:,.0f} requests/s for up to {duration:,.0f} s; labels come {LABEL_DELAY_S:g} s late; "
            f"console at http://127.0.0.1:{config.listen.http_port}/"
        )
        say(
            "the rollout file says evidence_span: 0s, since this traffic has no day and night; without it evidence spans 24 h"
        )
        view = DemoView(admin, ENDPOINT, duration, sender.report)
        began = time.monotonic()

        def over() -> bool:
            return view.finished or time.monotonic() - began > duration

        with view:
            report = asyncio.run(sender.run(log.requests(RETAINED_FRACTION, 1.0), over))
            view.settle(SETTLE_S)
        return report, view.final()

    # --- report --------------------------------------------------------------------------------------------------------

    def _report(self, log: Log, config: Config, report: ReplayReport, final: dict[str, Any]) -> dict[str, Any]:
        traffic = open_traffic_log(config)
        try:
            figures = figures_of(traffic, ENDPOINT)
        finally:
            traffic.close()
        rollout, status = final["rollout"], final["status"]
        shadow = status["shadow"]
        worker = status.get("worker") or {}
        weight = final["endpoint"]["weight"]
        weighted = list(range(1, len(rollout["steps"])))
        passed_all = weight == 100 and set(weighted) <= set(rollout["steps_on_evidence"])
        if self.bad:
            ok = weight == 0
            verdict = "kept out" if ok else "PROMOTED A BAD STUDENT"
        else:
            ok = passed_all if self.data is None else not report.errors
            verdict = "promoted" if passed_all else "held"
        names = {"teacher": ("stable", TEACHER, TEACHER_WIDTH), "student": ("candidate", STUDENT, STUDENT_WIDTH)}
        arms = {
            name: {
                "arch": f"{arch}-{width}",
                "auc": figures[arm].auc,
                "logloss": figures[arm].logloss,
                "bias": figures[arm].bias,
                "rows": figures[arm].rows,
            }
            for name, (arm, arch, width) in names.items()
        }
        student_bundle = f"{ENDPOINT}-{STUDENT}"
        repository = open_repository(config)
        versions = repository.versions(student_bundle)
        refused = [v for v in versions if not repository.open(student_bundle, v).manifest.servable]
        return {
            "dataset": log.name,
            **arms,
            "phases": rollout["phases"],
            "versions_published": len(versions) - 1 - len(refused),
            "versions_refused": len(refused),
            "latency_ms": report.latency_ms(),
            # From the log, since the process's own count starts again at a restart.
            "shadow": {"scored": figures["candidate"].predictions, "dropped": shadow["dropped"]},
            "requests": report.requests,
            "errors": sum(report.errors.values()),
            "final_weight": weight,
            "verdict": verdict,
            "seconds": time.monotonic() - self._began,
            "ok": ok,
            "evidence": _last_word(final),
            "missing_clicks": rollout["missing_clicks"],
            "steps_on_evidence": rollout["steps_on_evidence"],
            "error_messages": dict(report.errors),
            "labels": dict(report.labels),
            "worker": {k: worker.get(k) for k in ("position", "batches", "trained_rows", "held_rows")},
        }

    def _clear(self) -> None:
        if self.home.exists() and any(self.home.iterdir()):
            if not (self.home / MARK).exists():
                raise Conflict(
                    f"{self.home} is not empty and not a demo's; choose another --home or remove it yourself"
                )
            if supervisors(self.home):
                raise Conflict(f"a demo still runs in {self.home}; end it first, or choose another --home")
            shutil.rmtree(self.home)
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / MARK).touch()


def _last_word(final: dict[str, Any]) -> str:
    """The last change that the rollout made and why, and what it waits for now."""
    moves = [entry for entry in final["audit"] if entry["verb"] in ("advance", "step_back", "abort", "complete")]
    now = f"now: {final['rollout']['waiting']}"
    return f"{moves[-1]['verb']}: {moves[-1]['reason']}; {now}" if moves else now


def _spoil(student: ClickModel, seed: int) -> None:
    """Spoil a student: shuffle the vectors of half of its ids and raise its odds by half. It still loads and answers."""
    random = np.random.default_rng(seed)
    for name in student.tables.names:
        table = student.tables.export(name, None)
        order = np.arange(len(table.ids))
        chosen = random.permutation(order)[: len(order) // 2]
        order[chosen] = random.permutation(chosen)
        student.tables.load_rows(name, dataclasses.replace(table, rows=table.rows[order]))
    beta = student.calibration.beta + float(np.log(1.5))
    student.calibration = Calibration(alpha=student.calibration.alpha, beta=beta)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()

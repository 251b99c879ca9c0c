"""A small installation with the real processes: models trained in seconds, `baton serve` in a process group of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml

from pipeline.bundle.versions import Repository
from pipeline.errors import BatonError
from serving.cli.api import AdminClient
from serving.config import Config
from transfer.bundles.publish import load, save
from transfer.click_model.model import ClickModel
from transfer.data import open_log
from transfer.data.log import Log
from transfer.offline.distill import transfer_offline
from transfer.offline.train import train
from transfer.offline.window import Window

ENDPOINT, TEACHER, STUDENT = "ranker", "ranker-dnn", "ranker-dcnv2"
ROWS = 100_000
LEARNED = 0.5
"""Fraction of the log that the models were made from; the rest is replayed."""
START_LIMIT = 90.0

T = TypeVar("T")


def until(look: Callable[[], T], what: str, limit: float = 60.0) -> T:
    """What `look` returns once that is truthy; fails when it does not become so."""
    end = time.monotonic() + limit
    while not (found := look()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {limit:g} s: {what}")
        time.sleep(0.02)
    return found


@dataclass(frozen=True)
class Models:
    """Bundles of a teacher and a student, and the log that both learned from."""

    folder: Path
    log: Log


def make_models(folder: Path) -> Models:
    torch.set_num_threads(1)
    log = open_log(None, folder / "cache", rows=ROWS, seed=0)
    repository = Repository(folder / "bundles")
    teacher = train(log, "dnn", width=8, stop=LEARNED, seed=0)
    save(teacher, repository, TEACHER)
    student, _ = transfer_offline(Window(teacher, log, 0.2, LEARNED), "dcnv2", width=8, seed=0)
    save(student, repository, STUDENT)
    return Models(folder / "bundles", log)


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


class Served:
    """One `baton serve` of a configuration file. `start`, then `stop`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = Config.load(path)
        self.home = self.config.home
        self.repository = Repository(self.config.repository)
        self.target = f"127.0.0.1:{self.config.listen.grpc_port}"
        self.url = f"http://127.0.0.1:{self.config.listen.http_port}"
        self.admin = AdminClient(self.url, actor="test")
        self.server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with open(self.home / "serve.log", "ab") as log:
            self.server = subprocess.Popen(
                [sys.executable, "-m", "serving.cli.main", "serve", "--config", str(self.path)],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            )
        try:
            until(self.ready, "the server is ready", START_LIMIT)
        except AssertionError as error:
            self.stop()  # nobody else will
            raise AssertionError(f"{error}; its log:\n{self.tail()}") from None

    def stop(self) -> int:
        """End it as Ctrl-C does; the exit code. Whatever is left of its group is killed."""
        assert self.server is not None
        self.server.terminate()
        try:
            return self.server.wait(60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.server.pid, signal.SIGKILL)
            self.server.wait()

    def ready(self) -> bool:
        assert self.server is not None
        if self.server.poll() is not None:
            raise AssertionError(f"baton serve ended with {self.server.returncode}:\n{self.tail()}")
        return self.admin.ready()

    def tail(self) -> str:
        """The end of the server's own log."""
        return (self.home / "serve.log").read_text(errors="replace")[-3000:]

    def status(self, process: str) -> dict[str, Any]:
        """A process's status file, as of now; empty while there is none."""
        try:
            found: dict[str, Any] = json.loads((self.config.status / f"{process}.json").read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return found

    def child(self, name: str) -> dict[str, Any]:
        """Supervisor's status of a process: pid, restarts, last_exit."""
        children: dict[str, dict[str, Any]] = self.status("supervisor").get("children", {})
        return children.get(name, {"pid": None, "restarts": 0})

    def kill(self, name: str, sign: signal.Signals = signal.SIGKILL) -> int | None:
        """Send a signal to a child of the server; its pid, None while it is not running."""
        pid: int | None = self.child(name)["pid"]
        if pid is not None:
            try:
                os.kill(pid, sign)
            except ProcessLookupError:
                return None
        return pid

    def model(self, bundle: str, version: str = "") -> ClickModel:
        """A version as the trainer sees it."""
        return load(self.repository.chain(self.repository.open(bundle, version)))

    def rollout(self) -> dict[str, Any]:
        """The endpoint's newest rollout; empty before there is one."""
        try:
            found: dict[str, Any] = self.admin.get(f"/rollouts/{ENDPOINT}")
        except BatonError:
            return {}
        return found


class Machine(Served):
    """One `baton serve` on a home of its own. `start`, then `stop`. `sections` replace those of its baton.yaml."""

    def __init__(self, home: Path, models: Models, **sections: Any) -> None:
        self.log = models.log
        home.mkdir(parents=True)
        shutil.copytree(models.folder, home / "bundles")
        grpc_port, http_port, admin_port = free_ports(3)
        path = home / "baton.yaml"
        path.write_text(
            yaml.safe_dump(
                {
                    "home": ".",
                    "listen": {
                        "grpc_port": grpc_port,
                        "http_port": http_port,
                        "admin_port": admin_port,
                        "max_message_bytes": 1 << 20,
                    },
                    "engine": {"lanes": 1},
                    "endpoints": {
                        ENDPOINT: {
                            "stable": {"bundle": TEACHER},
                            "candidate": {"bundle": STUDENT},
                            "overrides": True,
                        }
                    },
                    "traffic": {"attribution_window": "4s"},
                    "worker": {
                        "endpoint": ENDPOINT,
                        "batch_rows": 1000,
                        "holdout": 0.2,
                        "publish_interval": "1s",
                        "publish_batches": 3,
                        "teacher_publish_interval": "1h",
                    },
                    **sections,
                }
            )
        )
        super().__init__(path)


def rollout_file(**changes: Any) -> str:
    """A rollout that moves on little evidence, so that a test can see all of it."""
    return yaml.safe_dump(
        {
            "endpoint": ENDPOINT,
            "candidate": {"bundle": STUDENT},
            "steps": [
                {"shadow": True, "min_positives": 100},
                {"weight": 30, "bias_below": 0.6},
                {"weight": 100, "bias_below": 0.5},
            ],
            "guards": {
                "auc_delta_min": -0.3,
                "logloss_delta_max": 0.5,
                "score_ratio": [0.2, 5.0],
                "p99_ms_max": 20000,
                "deadline_miss_max": 0.9,
                "error_rate_max": 0.9,
                "shadow_coverage_min": 0.3,
            },
            "analysis": {
                "attribution_window": "4s",
                "block": "50ms",
                "interval": "200ms",
                "min_step_time": "500ms",
                "breach_window": "20s",
                "evidence_span": "0s",
            },
            "holdout": 0,
            "after_full": {"watch": "1h"},
            **changes,
        },
        sort_keys=False,
    )

"""A whole installation in a temporary home: hand-made bundles, an endpoint, lanes on free ports."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import uvloop
from handmade import random_tables, write_bundle

from pipeline.bundle.bundle import Bundle, Calibration
from pipeline.bundle.versions import Repository
from pipeline.model.probe import PROBED, ProbeLimits, Verdict, note
from serving.config import Config
from serving.processes.lane import Lane
from serving.rollout.routing import ArmSpec, Endpoint
from serving.rollout.store import Who
from serving.runtime.status import Statuses, parse
from serving.wiring.state import installation_secret, open_control_store

WHO = Who("test", "a test", 1)
STUDENT = ArmSpec(bundle="student")


SLOW_LOAD_S = 60.0
"""Longest wait for models; what can never be loaded is not being loaded."""


def eventually(condition: Callable[[], bool], what: str, limit: float = 20.0) -> None:
    """Wait for a condition; fail when it does not come true."""
    until = time.monotonic() + limit
    while not condition():
        if time.monotonic() > until:
            raise AssertionError(f"not within {limit} s: {what}")
        time.sleep(0.01)


class Installation:
    """A home with bundles `teacher` (stable) and `student` (candidate) and the endpoint `ranker`."""

    def __init__(self, home: Path, **settings: object) -> None:
        self.home = home
        self.config = Config.model_validate(
            {
                "home": home,
                "listen": {"grpc_port": 0, "max_message_bytes": 1 << 20, "max_candidates": 1000},
                "endpoints": {
                    "ranker": {"stable": {"bundle": "teacher"}, "candidate": {"bundle": "student"}, "overrides": True}
                },
                **settings,
            }
        )
        self.repository = Repository(self.config.repository)
        self.tables = random_tables(1)
        self.publish("teacher", 1)
        self.publish("student", 2)
        installation_secret(self.config)
        self.store = open_control_store(self.config)
        self.set(weight=0)

    def publish(self, name: str, seed: int) -> Bundle:
        """A version that has passed its probe: that of handmade networks is tested once, not at each start of a lane."""
        bundle = write_bundle(
            self.repository, self.tables, name=name, calibration=Calibration(alpha=0.5 + 0.1 * seed, beta=-0.3)
        )
        engine = self.config.engine
        limits = ProbeLimits(engine.load_timeout, engine.load_memory_bytes)
        note(self.config.segments / name / PROBED, bundle, limits, Verdict())
        return bundle

    def set(self, *, candidate: ArmSpec | None = STUDENT, weight: float, name: str = "ranker") -> None:
        """Set the endpoint as the control process would."""
        self.store.put_endpoint(
            Endpoint(name=name, stable=ArmSpec(bundle="teacher"), candidate=candidate, weight=weight, salt=name), WHO
        )


class RunningLane:
    """A lane in a thread with its own loop, so that synchronous clients can call it."""

    def __init__(self, config: Config, index: int = 0) -> None:
        self.lane = Lane(config, index)
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="test-lane", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.lane.start(), self._loop).result(60)
        self.target = f"127.0.0.1:{self.lane.port}"
        # It listens after 20 s whatever has been loaded, and a busy machine takes longer.
        until = time.monotonic() + SLOW_LOAD_S
        while self.lane.registry.loading() and time.monotonic() < until:
            time.sleep(0.01)

    def stop(self) -> None:
        """Drain and end; a second time it does nothing."""
        if not self._thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(self.lane.stop(5), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@contextlib.contextmanager
def running(config: Config, index: int = 0) -> Iterator[RunningLane]:
    lane = RunningLane(config, index)
    try:
        yield lane
    finally:
        lane.stop()


class Process:
    """A lane or the shadow lane as a process of its own; it ends with the test."""

    def __init__(self, made: Installation, call: str) -> None:
        settings = made.home / "settings.json"
        settings.write_text(made.config.model_dump_json())
        code = (
            "import logging; from pathlib import Path; from serving.config import Config;"
            "logging.basicConfig(level='INFO');"
            f"config = Config.model_validate_json(Path({str(settings)!r}).read_text()); {call}"
        )
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        self.errors = made.home / f"{time.monotonic_ns()}.log"
        with self.errors.open("wb") as log:
            self.process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=log)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(20)

    def end(self, sign: signal.Signals, limit: float = 30) -> int:
        """Send a signal and wait; the exit code."""
        self.process.send_signal(sign)
        return self.process.wait(limit)


def shadow_process(made: Installation) -> Process:
    return Process(made, "from serving.processes.shadow import run_shadow; run_shadow(config)")


def lane_process(made: Installation, index: int = 0) -> Process:
    return Process(made, f"from serving.processes.lane import run_lane; run_lane(config, {index})")


def status(made: Installation, process: str) -> dict[str, Any]:
    """A process's status file; empty while there is none."""
    try:
        found: dict[str, Any] = json.loads((made.config.status / f"{process}.json").read_text())
    except FileNotFoundError:
        return {}
    return found


def write_status(folder: Path, process: str, /, **fields: object) -> None:
    """Write a status file as a process does."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{process}.json").write_text(json.dumps(fields))


def statuses(processes: Mapping[str, Mapping[str, Any]], now_ms: int = 0) -> Statuses:
    """Statuses by process, at Unix time 0 where they have no time."""
    return parse({name: json.dumps({"time_ms": 0, **fields}) for name, fields in processes.items()}, now_ms)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

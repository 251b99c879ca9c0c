"""`baton serve` in its own home for a bench: real processes, called through their ports only."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil
import yaml

from pipeline.bundle.versions import Repository
from pipeline.clock import SystemClock
from pipeline.errors import BatonError
from serving.cli.api import AdminClient
from serving.runtime import status
from serving.runtime.status import ChildStatus, LaneArm, LaneStatus, ShadowStatus, Statuses

__all__ = ["Arms", "BatonServer", "cpu_seconds", "free_port"]

Arms = str | tuple[str, str]
"""Bundle of an endpoint's stable arm, or of both its arms."""
SERVE = (
    "from serving.runtime.process import die_with_parent; die_with_parent(); from serving.cli.main import app; app()"
)
"""`baton` as it is, but that it ends with a bench that is killed."""
START_LIMIT_S = 120.0
STOP_LIMIT_S = 40.0


class BatonServer:
    """Processes of an installation; a context manager.

    Args:
        home: made where it is missing; bundles lie in `home/bundles`.
        endpoints: by name.
        settings: sections of baton.yaml over the defaults, for example `{"engine": {"lanes": 2}}`.
    """

    def __init__(
        self,
        home: Path,
        endpoints: Mapping[str, Arms],
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.home = home
        self.repository = Repository(home / "bundles")
        self.port, self.http_port, admin_port = free_port(), free_port(), free_port()
        arms = {}
        for name, bundles in endpoints.items():
            stable, candidate = (bundles, None) if isinstance(bundles, str) else bundles
            arms[name] = {"stable": {"bundle": stable}} | ({"candidate": {"bundle": candidate}} if candidate else {})
        config = {
            "home": str(home),
            "listen": {"grpc_port": self.port, "http_port": self.http_port, "admin_port": admin_port},
            "endpoints": arms,
            "log_level": "warning",
            **(settings or {}),
        }
        home.mkdir(parents=True, exist_ok=True)
        self._config = home / "baton.yaml"
        self._config.write_text(yaml.safe_dump(config))
        self.endpoints = dict(endpoints)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> BatonServer:
        argv = [sys.executable, "-c", SERVE, "serve", "--config", str(self._config)]
        with (self.home / "serve.log").open("wb") as log:
            self._process = subprocess.Popen(argv, stderr=log, stdout=log)
        try:
            admin = AdminClient(f"http://127.0.0.1:{self.http_port}")
            self.wait(lambda: admin.ready() and self._all_ready(), "it does not get ready", START_LIMIT_S)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End all processes in order."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def wait(self, condition: Callable[[], bool], what: str, limit: float) -> None:
        """Wait for a condition.

        Raises:
            BatonError: it does not come true within `limit` seconds, or the server has ended.
        """
        until = time.monotonic() + limit
        while not condition():
            if self._process is None or self._process.poll() is not None or time.monotonic() > until:
                tail = (self.home / "serve.log").read_text(errors="replace").strip().splitlines()[-3:]
                raise BatonError(f"baton serve: {what}; it said: {' | '.join(tail) or 'nothing'}")
            time.sleep(0.05)

    # --- what it is doing --------------------------------------------------------------------------------------------

    def statuses(self) -> Statuses:
        """Status of every process."""
        return status.read(self.home / "run" / "status", SystemClock().wall_ms())

    def lanes(self) -> list[LaneStatus]:
        """Status of each primary lane."""
        return [lane.status for lane in self.statuses().lanes.values()]

    def shadow(self) -> ShadowStatus:
        """Status of the shadow lane. Raises: BatonError: it has written none."""
        shadow = self.statuses().shadow
        if shadow is None:
            raise BatonError("the shadow lane does not report")
        return shadow.status

    def children(self) -> Mapping[str, ChildStatus]:
        """Processes by name."""
        supervisor = self.statuses().supervisor
        return {} if supervisor is None else supervisor.status.children

    def serves(self, endpoint: str, version: str) -> bool:
        """Whether every lane answers with this version of the endpoint's stable arm."""
        lanes = self.lanes()
        return bool(lanes) and all(
            lane.endpoints.get(endpoint, {}).get("stable", LaneArm()).version == version for lane in lanes
        )

    @property
    def pids(self) -> dict[str, int]:
        """Ids of the running processes, by name."""
        return {name: child.pid for name, child in self.children().items() if child.pid}

    def rss(self) -> dict[str, int]:
        """Resident bytes by process."""
        return {name: int(psutil.Process(pid).memory_info().rss) for name, pid in self.pids.items()}

    def _all_ready(self) -> bool:
        lanes = self.lanes()
        count = sum(name.startswith("lane-") for name in self.children())
        return len(lanes) == count > 0 and all(
            lane.state == "ready"
            and all(
                arm.state == "READY"
                for name in self.endpoints
                for arm in lane.endpoints.get(name, {"stable": LaneArm()}).values()
            )
            for lane in lanes
        )


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time that these processes have used so far."""
    return sum(times.user + times.system for times in (psutil.Process(pid).cpu_times() for pid in pids))


def free_port() -> int:
    """Free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

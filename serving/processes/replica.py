"""Replica: lanes that a cluster manager starts, checks and drains as one unit.

Several may run on one machine and in one `home`: each claims a number there, which determines its port, the numbers of its
lanes and the names of their files. One of them also runs the machine's shadow lane. It knows no Ray. Next:
`serving.supervisor.supervisor` for the processes, `serving.ray_app` for the caller.
"""

from __future__ import annotations

import fcntl
import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import yaml

from pipeline.children import python
from pipeline.clock import Clock, SystemClock
from pipeline.errors import Conflict, NotReady
from pipeline.traffic.clock import LogClock
from pipeline.traffic.log import TrafficLog
from serving.config import Config
from serving.processes.scaling import Load, LoadMeter
from serving.runtime import status
from serving.runtime.status import FRESH_S, LaneStatus
from serving.state.directory import ServiceRecord
from serving.supervisor.child import Child
from serving.supervisor.supervisor import Supervisor
from serving.wiring.home import check_home
from serving.wiring.state import open_directory
from serving.wiring.traffic import open_traffic_log

__all__ = ["ControlReplica", "LaneReplica", "write_config"]

ANNOUNCE_EVERY_S = 2.0
STALLED_S = 30.0
"""Seconds of work on one request after which a lane counts as unhealthy."""
POLL_S = 0.1
END_TIMEOUT_S = 60.0
MAX_REPLICAS = 100

log = logging.getLogger(__name__)


def write_config(config: Config, path: Path) -> Path:
    """Write a configuration as a file that `Config.load` reads as the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", by_alias=True)))
    return path


def _command(path: Path, *words: str) -> tuple[str, ...]:
    return python("-m", "serving.cli.main", *words, "--config", str(path))


class _Processes:
    """Supervisor in a thread of its own, since children end with the thread that started them."""

    def __init__(self, config: Config, name: str, children: Sequence[Child]) -> None:
        self._supervisor = Supervisor(config.home, list(children), name, alone=False, hang_limit_s=config.hang_limit)
        self._failure = ""
        self._thread = threading.Thread(target=self._run, name=f"{name}-processes", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._supervisor.run()
        except Exception as error:
            self._failure = str(error)
            log.exception("the supervisor of %s ended", self._supervisor.name)

    @property
    def failure(self) -> str:
        """Why the supervisor has ended; "" while it runs."""
        return "" if self._thread.is_alive() else self._failure or "it was stopped"

    def stop(self) -> None:
        """End all children in order; a second call does nothing."""
        self._supervisor.stop()
        self._thread.join(END_TIMEOUT_S)


class LaneReplica:
    """Lanes of one replica. Call `start`, then `check` and `load` any number of times, then `drain`.

    Args:
        config: of the installation.
        name: of the replica, unique in the installation.
        host: address of this machine, for clients.
        node: of the machine, for people.
    """

    def __init__(self, config: Config, name: str, host: str, node: str = "", clock: Clock | None = None) -> None:
        check_home(config)
        self._clock = clock or SystemClock()
        self._directory = open_directory(config, self._clock)
        self.number, self.port, self._claim = _claim(config)
        listen = config.listen.model_copy(update={"grpc_port": self.port})
        self._config = config.model_copy(update={"listen": listen})
        lanes = config.engine.lanes
        self._lanes = [f"lane-{self.number * lanes + index}" for index in range(lanes)]
        self.record = ServiceRecord(
            name, _join(config.ray.advertise_host or _reachable(listen.host, host), self.port), node
        )
        self._meter = LoadMeter(lanes * config.engine.workers)
        self._stop = threading.Event()
        self._log: TrafficLog | None = None
        self._log_clock: LogClock | None = None
        self._processes: _Processes | None = None
        self._shadow: _Processes | None = None
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the lanes and wait until all can answer.

        Raises:
            NotReady: they could not within `ray.start_limit`, and everything was stopped again; or the traffic log is away.
        """
        self._log = open_traffic_log(self._config)
        self._log_clock = LogClock(self._log, self._clock).start()  # lanes date their reports by it
        run = self._config.home / "run"
        path = write_config(self._config, run / f"replica-{self.number}.yaml")
        children = [
            Child(name, _command(path, "process", "lane", "--index", name.removeprefix("lane-")), 0)
            for name in self._lanes
        ]
        self._processes = processes = _Processes(self._config, f"replica-{self.number}", children)
        self._begin("shadow-keeper", lambda: self._keep_shadow(path))
        until = time.monotonic() + self._config.ray.start_limit
        while waiting := self._waiting():
            if processes.failure or time.monotonic() > until:
                why = processes.failure or "; ".join(waiting.values())
                self.drain()
                raise NotReady(f"{', '.join(waiting)} cannot answer: {why or 'they do not report'}")
            time.sleep(POLL_S)
        self._begin("announce", self._announce)
        log.info("replica %s answers at %s", self.record.replica, self.record.address)

    def check(self) -> None:
        """Check that every lane runs, reports, is not stuck and accepts connections. A missing model is no failure of
        the replica: another process would not have it either.

        Raises:
            NotReady: naming what is wrong.
        """
        if self._processes is None or self._processes.failure:
            raise NotReady(f"no supervisor runs: {self._processes.failure if self._processes else 'not started'}")
        lanes = self._reports()
        for name in self._lanes:
            if name not in lanes:
                raise NotReady(f"{name} has not reported for {FRESH_S:g} s")
            if (stalled_s := lanes[name].engine.stalled_seconds) > STALLED_S:
                raise NotReady(f"{name} has worked on one request for {stalled_s:.0f} s")
        host = self._config.listen.host
        with socket.create_connection((_reachable(host, "localhost"), self.port), 3.0):
            pass

    def load(self) -> Load:
        """Load of the lanes since the last call."""
        return self._meter.read(self._reports())

    def drain(self) -> None:
        """Withdraw the record, drain the lanes and end them."""
        self._stop.set()
        for thread in self._threads:
            thread.join(END_TIMEOUT_S)
        try:
            self._directory.withdraw(self.record.replica)
        except NotReady as error:
            log.warning("%s; it expires by itself", error)
        for processes in (self._processes, self._shadow):
            if processes is not None:
                processes.stop()
        if self._log_clock is not None:
            self._log_clock.close()
        if self._log is not None:
            self._log.close()
        self._claim.close()

    def _begin(self, name: str, body: Callable[[], None]) -> None:
        thread = threading.Thread(target=body, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _announce(self) -> None:
        while not self._stop.is_set():
            try:
                self._directory.announce(self.record)
            except NotReady as error:
                log.warning("%s", error)
            self._stop.wait(ANNOUNCE_EVERY_S)

    def _keep_shadow(self, path: Path) -> None:
        """Run the machine's shadow lane while no other replica of the machine does."""
        with open(self._config.home / "run" / "shadow.lock", "wb") as lock:
            while not _locked(lock):
                if self._stop.wait(1.0):
                    return
            child = Child("shadow", _command(path, "process", "shadow"), 0)
            self._shadow = _Processes(self._config, "shadow-supervisor", [child])
            self._stop.wait()
            self._shadow.stop()

    def _reports(self) -> dict[str, LaneStatus]:
        """Status of each lane of this replica that reports."""
        clock = self._log_clock or self._clock
        lanes = status.read(self._config.status, clock.wall_ms()).fresh().lanes
        return {name: lanes[name].status for name in self._lanes if name in lanes}

    def _waiting(self) -> dict[str, str]:
        """Lanes that are not ready, with the faults of their models."""
        lanes = self._reports()
        faults = {name: lane.faults.items() for name, lane in lanes.items()}
        return {
            name: "; ".join(f"{version}: {fault}" for version, fault in faults.get(name, ()))
            for name in self._lanes
            if name not in lanes or lanes[name].state != "ready"
        }


class ControlReplica:
    """Control process, with the worker where one is configured; one of an installation.

    Raises:
        Conflict: another runs on the same home. InvalidInput: the home is half there.
    """

    def __init__(self, config: Config) -> None:
        path = write_config(config, config.home / "run" / "control.yaml")
        children = [Child("control", _command(path, "process", "control"), 1)]
        if config.worker is not None:
            children.append(Child("worker", _command(path, "worker"), 0))
        check_home(config)
        self._config = config
        self._processes = _Processes(config, "supervisor", children)

    def check(self) -> None:
        """Check that the supervisor runs. Processes that die are started again here, without moving the replica.

        Raises:
            NotReady: it has ended.
        """
        if self._processes.failure:
            raise NotReady(f"no supervisor runs: {self._processes.failure}")

    def drain(self) -> None:
        """End worker and control."""
        self._processes.stop()


def _claim(config: Config) -> tuple[int, int, BinaryIO]:
    """First number of this home that no replica holds and whose port is free; the port, and the lock of the claim.

    Raises:
        Conflict: there is none.
    """
    folder = config.home / "run" / "claims"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1 if config.ray.fixed_port else MAX_REPLICAS):
        lock = open(folder / str(number), "wb")  # noqa: SIM115 - held until the replica ends
        port = config.listen.grpc_port + number
        if _locked(lock) and _free(config.listen.host, port):
            return number, port, lock
        lock.close()
    first = config.listen.grpc_port
    raise Conflict(
        f"no port from {first} on is free for a replica in {config.home}: end what listens there, or set another "
        "listen.grpc_port"
    )


def _locked(lock: BinaryIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _free(host: str, port: int) -> bool:
    """Whether no process listens on the port; a lane that still drains counts."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def _reachable(listen_host: str, otherwise: str) -> str:
    try:
        anywhere = ipaddress.ip_address(listen_host).is_unspecified
    except ValueError:
        anywhere = False
    return otherwise if anywhere else listen_host


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

"""`python -m benchmarks.silent_connections`: connections that say nothing, to each port in turn and to all at once.

An installation runs under a low limit of descriptors, once without and once with TLS. Against each port stand connections of
strangers that only connect, begin a handshake, finish it and fall silent, send HTTP/2's first bytes, one byte of HTTP, or one
byte of a second request. Meanwhile `/healthz` is asked, the candidate is killed over REST and by `baton endpoint kill` on the
machine, and descriptors of all processes are counted. Ends with 1 if anything takes longer than two seconds or a process
reaches its limit.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import trustme
import yaml
from typer.testing import CliRunner

from benchmarks.server import SERVE, free_port
from pipeline.bundle.versions import Repository
from pipeline.clock import SystemClock
from pipeline.schema import FieldSpec, Schema
from serving.cli.main import app
from serving.config.principal import Role
from serving.security.tokens import TokenStore
from transfer.bundles.publish import save
from transfer.click_model.model import ClickModel

__all__ = ["Row", "measure"]

PORTS = ("grpc_port", "http_port", "admin_port")
WITHIN_S = 2.0
START_LIMIT_S = 120.0
SETTLE_S = 1.0
KILL = ("endpoint", "kill", "ranker", "--reason", "bench", "--home")
HELLO = bytes.fromhex("1603010200010001fc0303")
"""Begin of a TLS ClientHello."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(4) + b"\x04" + bytes(4)
"""First bytes of HTTP/2: the preface and an empty SETTINGS frame, whose length is of three bytes."""
REQUEST = b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"


@dataclass(frozen=True)
class Row:
    """Figures of one stand.

    Args:
        held: connections that are still open at its end.
        descriptors: most of one process, and the limit.
        healthz_s, rest_s: seconds; infinite: not answered.
        machine_s: seconds of `baton endpoint kill --home` once its modules are imported.
        command_s: seconds of the whole command, most of which a busy machine takes to start any.
    """

    tls: bool
    ports: tuple[str, ...]
    held: int
    descriptors: int
    limit: int
    healthz_s: float
    rest_s: float
    machine_s: float
    command_s: float

    @property
    def good(self) -> bool:
        """Whether all was in time and below the limit."""
        return max(self.healthz_s, self.rest_s, self.machine_s) <= WITHIN_S and self.descriptors < self.limit


def measure(connections: int, limit: int, *, tls: bool, stands: Sequence[tuple[str, ...]] = ()) -> Iterator[Row]:
    """Rows of every stand, each as soon as it is over: each port, then all at once.

    Args:
        connections: to each port.
        limit: descriptors of a process.
    """
    _raise_own(len(PORTS) * connections + 500)
    with tempfile.TemporaryDirectory() as folder, _serving(Path(folder), limit, tls=tls) as place:
        for ports in stands or [*((name,) for name in PORTS), PORTS]:
            yield place.stand(ports, connections)


class _Place:
    """A running installation."""

    def __init__(self, folder: Path, limit: int, *, tls: bool) -> None:
        self.home, self.limit, self.tls = folder / "home", limit, tls
        self.ports = {name: free_port() for name in PORTS}
        schema = Schema(fields=(FieldSpec(name="user", role="context"), FieldSpec(name="item", role="candidate")))
        for name, architecture in (("teacher", "fm"), ("student", "dnn")):
            save(ClickModel.create(schema, architecture, 4, seed=0), Repository(self.home / "bundles"), name)
        listen: dict[str, Any] = dict(self.ports)
        self._context: ssl.SSLContext | None = None
        self._ca = folder / "ca.pem"
        if tls:
            authority = trustme.CA()
            authority.cert_pem.write_to_path(self._ca)
            made = authority.issue_cert("127.0.0.1", "localhost")
            made.private_key_pem.write_to_path(folder / "key.pem")
            (folder / "cert.pem").write_bytes(b"".join(part.bytes() for part in made.cert_chain_pems))
            listen["tls"] = {"cert": str(folder / "cert.pem"), "key": str(folder / "key.pem")}
            self._context = ssl.create_default_context(cafile=self._ca)
        arms = {"stable": {"bundle": "teacher"}, "candidate": {"bundle": "student"}}
        self.config = folder / "baton.yaml"
        self.config.write_text(
            yaml.safe_dump(
                {"home": str(self.home), "listen": listen, "engine": {"lanes": 1}, "endpoints": {"ranker": arms}}
            )
        )
        now_ms = SystemClock().wall_ms()
        self._token = TokenStore(self.home / "tokens.json").create("ann", Role.OPERATOR, now_ms)[1]

    def call(self, method: str, path: str, body: dict[str, str] | None = None) -> float:
        """Seconds that a request over a new connection takes; infinite if it is not answered."""
        scheme = "https" if self.tls else "http"
        began = time.monotonic()
        try:
            answer = httpx.request(
                method,
                f"{scheme}://127.0.0.1:{self.ports['http_port']}{path}",
                json=body,
                headers={"authorization": f"Bearer {self._token}"},
                verify=self._context if self._context is not None else False,
                timeout=30,
                trust_env=False,
            )
        except httpx.TransportError:
            return float("inf")
        return time.monotonic() - began if answer.status_code == 200 else float("inf")

    def stand(self, ports: tuple[str, ...], connections: int) -> Row:
        """Figures while strangers hold connections to these ports."""
        most = [0]
        ended = threading.Event()

        def count() -> None:
            while not ended.wait(0.05):
                most[0] = max([most[0], *self.descriptors()])

        watching = threading.Thread(target=count, name="descriptors", daemon=True)
        watching.start()
        with contextlib.ExitStack() as held:
            silent = [made for name in ports for made in self._silent(self.ports[name], name, connections)]
            for one in silent:
                held.callback(one.close)
            time.sleep(SETTLE_S)
            healthz_s = max(self.call("GET", "/healthz") for _ in range(5))
            rest_s = self.call("POST", "/api/v1/endpoints/ranker/kill", {"reason": "bench"})
            machine_s, command_s = self._kill_here(), self._run_kill()
            still = sum(_open(one) for one in silent)
        ended.set()
        watching.join()
        self.call("POST", "/api/v1/endpoints/ranker/release", {"reason": "bench"})
        return Row(self.tls, ports, still, most[0], self.limit, healthz_s, rest_s, machine_s, command_s)

    def descriptors(self) -> list[int]:
        """Open descriptors of every process that serves."""
        found = []
        for process in psutil.Process(self.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error, OSError):
                found.append(process.num_fds())
        return found

    pid = 0

    def _silent(self, port: int, name: str, connections: int) -> Iterator[socket.socket]:
        web = name == "http_port"
        kinds = ["tcp", "hello" if self.tls else "byte", "byte", "again" if web else "preface", "tls"]
        for number in range(connections):
            kind = kinds[number % len(kinds)]
            made = socket.socket()
            made.settimeout(5)
            with contextlib.suppress(OSError):
                made.connect(("127.0.0.1", port))
                if kind == "hello":
                    made.sendall(HELLO)
                elif kind != "tcp":
                    if self._context is not None:
                        context = ssl.create_default_context(cafile=self._ca)
                        context.set_alpn_protocols(["http/1.1" if web else "h2"])
                        made = context.wrap_socket(made, server_hostname="127.0.0.1")
                    if kind == "byte":
                        made.sendall(b"G")
                    elif kind == "preface":
                        made.sendall(PREFACE)
                    elif kind == "again":
                        made.sendall(REQUEST)
                        made.recv(4096)
                        made.sendall(b"G")
            yield made

    def _kill_here(self) -> float:
        began = time.monotonic()
        done = CliRunner().invoke(app, [*KILL, str(self.home)])
        return time.monotonic() - began if done.exit_code == 0 else float("inf")

    def _run_kill(self) -> float:
        began = time.monotonic()
        argv = [sys.executable, "-c", "from serving.cli.main import app; app()", *KILL, str(self.home)]
        done = subprocess.run(argv, capture_output=True, timeout=60, check=False)
        return time.monotonic() - began if done.returncode == 0 else float("inf")


@contextlib.contextmanager
def _serving(folder: Path, limit: int, *, tls: bool) -> Iterator[_Place]:
    place = _Place(folder, limit, tls=tls)
    with (folder / "serve.log").open("wb") as log:
        serving = subprocess.Popen(
            [sys.executable, "-c", SERVE, "serve", "--config", str(place.config)],
            stdout=log,
            stderr=log,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),
        )
    place.pid = serving.pid
    try:
        until = time.monotonic() + START_LIMIT_S
        while place.call("GET", "/readyz") > START_LIMIT_S:
            if serving.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"baton serve does not get ready:\n{(folder / 'serve.log').read_text()[-2000:]}")
            time.sleep(0.2)
        place._kill_here()  # imports what it needs
        place.call("POST", "/api/v1/endpoints/ranker/release", {"reason": "bench"})
        yield place
    finally:
        if serving.poll() is None:
            os.kill(serving.pid, signal.SIGTERM)
        serving.wait(60)


def _raise_own(files: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(files, hard), hard))


def _open(one: socket.socket) -> bool:
    """Whether the other side has not closed a connection."""
    try:
        one.settimeout(0)
        return one.recv(1 << 16) != b""
    except (BlockingIOError, ssl.SSLWantReadError):
        return True
    except OSError:
        return False


def _main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--connections", type=int, default=1500, help="to each port")
    words.add_argument("--limit", type=int, default=1024, help="descriptors of a process")
    given = words.parse_args()
    print(
        f"{'TLS':4} {'port':34} {'held':>6} {'files':>6} {'limit':>6} {'healthz':>8} {'REST':>8} {'machine':>8} {'command':>8}"
    )
    good = True
    for tls in (False, True):
        for row in measure(given.connections, given.limit, tls=tls):
            times = " ".join(
                f"{seconds:7.2f}s" for seconds in (row.healthz_s, row.rest_s, row.machine_s, row.command_s)
            )
            print(
                f"{'yes' if row.tls else 'no':4} {' '.join(row.ports):34} {row.held:6} {row.descriptors:6} {row.limit:6} "
                f"{times}{'' if row.good else '  MISS'}",
                flush=True,
            )
            good &= row.good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(_main())

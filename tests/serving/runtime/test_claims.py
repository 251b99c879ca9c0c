"""Claims of homes, roles and ports: one holder, which the refusal names, and nothing that is left over counts."""

from __future__ import annotations

import doctest
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from pipeline.errors import Conflict, InvalidInput
from serving.runtime import claims
from serving.runtime.claims import alone_in, holder_of, holders, role_lock, role_on, using
from serving.runtime.ports import claimed_ports, port_holders

ROOT = Path(__file__).parents[3]


@contextmanager
def elsewhere(code: str) -> Iterator[subprocess.Popen[str]]:
    """A process that claims something by `code` and then waits."""
    imports = (
        "import time\nfrom pathlib import Path\n"
        "from serving.runtime.claims import role_on\nfrom serving.runtime.ports import claimed_ports\n"
    )
    wait = "\n    print('held', flush=True)\n    time.sleep(600)"
    process = subprocess.Popen(
        [sys.executable, "-c", imports + code + wait],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait(20)


@pytest.fixture
def port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_role_has_one_holder_and_a_killed_one_leaves_nothing(tmp_path: Path) -> None:
    with elsewhere(f"with role_on(Path({str(tmp_path)!r}), 'worker'):") as first:
        with (
            pytest.raises(Conflict, match=rf"worker of home .*pid {first.pid}, since 20") as refused,
            role_on(tmp_path, "worker"),
        ):
            pass
        assert str(tmp_path) in str(refused.value)
        with role_on(tmp_path, "lane-0"):
            assert [holder.role for holder in holders(tmp_path)] == ["lane-0", "worker"]
        with pytest.raises(Conflict, match=f"pid {first.pid}"), alone_in(tmp_path, "restore"):
            pass
        first.send_signal(signal.SIGKILL)
        first.wait(20)
    assert role_lock(tmp_path, "worker").read_text()  # the name is still there, and does not count
    assert holder_of(role_lock(tmp_path, "worker")) is None
    with role_on(tmp_path, "worker"):
        pass


def test_a_successor_waits_for_one_that_is_ending(tmp_path: Path) -> None:
    with elsewhere(f"with role_on(Path({str(tmp_path)!r}), 'lane-0'):") as first:
        first.kill()  # it may hold on for a moment
        with role_on(tmp_path, "lane-0", patience_s=20):
            pass


def test_a_home_that_is_replaced_lets_nobody_in(tmp_path: Path) -> None:
    with alone_in(tmp_path, "restore"):
        with pytest.raises(Conflict, match=r"in use by `.*home"), using(tmp_path):
            pass
        with pytest.raises(Conflict), role_on(tmp_path, "lane-0"):
            pass
    with using(tmp_path), using(tmp_path):
        pass


def test_two_homes_never_share_a_port_and_lanes_of_one_do(tmp_path: Path, port: int) -> None:
    first, second, folder = tmp_path / "first", tmp_path / "second", tmp_path / "claims"
    folder.mkdir()
    code = f"with claimed_ports('127.0.0.1', {{'grpc_port': {port}}}, Path({str(first)!r}), 'serve', folder=Path({str(folder)!r})):"
    with elsewhere(code) as holder:
        for host in ("127.0.0.1", "0.0.0.0", "::", "localhost"):
            claim = claimed_ports(host, {"grpc_port": port}, second, "serve", folder=folder)
            with pytest.raises(Conflict, match=rf"listen.grpc_port {port} .*pid {holder.pid}.*{first}"), claim:
                pass
        # Neither another address nor a port that the kernel chooses is in the way, and lanes of the home share theirs.
        for host, mine in (("127.0.0.2", port), ("127.0.0.1", 0)):
            with claimed_ports(host, {"grpc_port": mine}, second, "serve", folder=folder):
                pass
        with ExitStack() as stack:
            for index in range(2):
                stack.enter_context(
                    claimed_ports("127.0.0.1", {"grpc_port": port}, first, f"lane-{index}", folder=folder)
                )
            assert {h.role for h in port_holders("0.0.0.0", port, folder)} == {"serve", "lane-0", "lane-1"}
        holder.kill()
        holder.wait(20)
    with claimed_ports("127.0.0.1", {"grpc_port": port}, second, "serve", folder=folder):
        assert [h.home for h in port_holders("127.0.0.1", port, folder)] == [str(second)]
    assert len(list(folder.glob(f"*-{port}-*.lock"))) == 1  # of the last one; the dead ones' are gone


@pytest.mark.parametrize("listens", ["127.0.0.1", "0.0.0.0", "::"])
def test_a_stranger_that_shares_its_port_is_found(tmp_path: Path, port: int, listens: str) -> None:
    family = socket.AF_INET6 if ":" in listens else socket.AF_INET
    with closing(socket.socket(family)) as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            stranger.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        stranger.bind((listens, port))
        stranger.listen()
        claim = claimed_ports("127.0.0.1", {"http_port": port}, tmp_path, "control", folder=tmp_path)
        with pytest.raises(Conflict, match=rf"listen.http_port {port} .*pid {os.getpid()}"), claim:
            pass
    with claimed_ports("127.0.0.1", {"http_port": port}, tmp_path, "control", folder=tmp_path):
        pass


def test_ended_connections_are_no_listener_and_a_foreign_address_is_named(tmp_path: Path, port: int) -> None:
    server = socket.create_server(("127.0.0.1", port))
    client = socket.create_connection(("127.0.0.1", port))
    accepted, _ = server.accept()
    for ended in (server, accepted, client):  # the server's end waits for late packets
        ended.close()
    with claimed_ports("127.0.0.1", {"grpc_port": port}, tmp_path, "serve", folder=tmp_path):
        pass
    claim = claimed_ports("192.0.2.1", {"grpc_port": port}, tmp_path, "serve", folder=tmp_path)
    with pytest.raises(InvalidInput, match=r"192\.0\.2\.1 is not an address of this machine"), claim:
        pass


def test_examples_are_right() -> None:
    assert doctest.testmod(claims).failed == 0

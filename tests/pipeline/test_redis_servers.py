"""Servers behind the address of a Redis: a fail-over is followed, and one of the wrong kind is named."""

from __future__ import annotations

import contextlib
import http.server
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis_process import RedisProcess

from pipeline.errors import InvalidInput, NotReady
from pipeline.redis.address import RedisAddress, Unusable
from pipeline.redis.durable import require_commands, require_durable, server_of
from serving.rollout.routing import ArmSpec, Endpoint
from serving.state.redis.control_store import RedisControlStore

LIMIT = 10.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def until(what: object, limit: float = LIMIT) -> None:
    assert callable(what)
    end = time.monotonic() + limit
    while not what():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.01)


def plain(server: RedisProcess) -> redis.Redis:
    """A client that talks to a replica, too."""
    return redis.Redis(unix_socket_path=str(server.socket))


class Pair:
    """A primary, its replica, and an address of which new connections go to whichever is the primary."""

    def __init__(self, folder: Path, old: RedisProcess, new: RedisProcess, ports: tuple[int, int]) -> None:
        self.old, self.new, self._ports = old, new, ports
        self._link = folder / "link.sock"
        self._link.symlink_to(old.socket)
        self.address = RedisAddress(f"unix://{self._link}")

    def fail_over(self, follows: bool = True) -> None:
        """The replica becomes the primary; the old one stays, as a replica of it or of nobody who answers."""
        with plain(self.new) as new, plain(self.old) as old:
            new.replicaof("NO", "ONE")
            temporary = self._link.with_name("next")
            temporary.symlink_to(self.new.socket)
            os.replace(temporary, self._link)
            old.replicaof("127.0.0.1", self._ports[1] if follows else free_port())


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    ports = free_port(), free_port()
    durable = ("--appendonly", "yes")
    with (
        RedisProcess(tmp_path / "old", *durable, "--repl-diskless-sync-delay", "0", port=ports[0]) as old,
        RedisProcess(tmp_path / "new", *durable, port=ports[1]) as new,
        plain(new) as replica,
    ):
        replica.replicaof("127.0.0.1", ports[0])
        until(lambda: replica.info("replication")["master_link_status"] == "up")
        yield Pair(tmp_path, old, new, ports)


def test_a_client_follows_the_fail_over_at_its_first_write(pair: Pair) -> None:
    with pair.address.client(1.0) as client, pair.new.address.client(1.0) as new:
        add = client.register_script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
        with client.pipeline() as other:  # a second connection
            other.watch("n")
            client.set("n", 1)
        assert add(keys=["n"], args=[1]) == 2
        assert client.wait(1, 5000) == 1
        pair.fail_over()
        assert add(keys=["n"], args=[1]) == 3  # the script is not known there yet
        pipe = client.pipeline()
        assert pipe.incr("n").incr("n").execute() == [4, 5]
        assert new.get("n") == b"5"


def test_a_client_that_only_reads_follows_the_fail_over(pair: Pair) -> None:
    with pair.address.client(1.0) as client, pair.old.client() as old:
        client.set("n", 1)
        assert client.wait(1, 5000) == 1
        assert old.ping()
        pair.fail_over(follows=False)
        with pair.new.client() as new:
            new.set("n", 2)
        until(lambda: client.get("n") == b"2")


def test_a_change_of_the_control_store_is_made_at_the_new_primary(pair: Pair) -> None:
    store = RedisControlStore(pair.address)
    with contextlib.closing(store):
        made = Endpoint(name="ranker", stable=ArmSpec(bundle="teacher"))
        store.transact(lambda tx: tx.put_endpoint(made))
        with pair.old.client() as old:
            assert old.wait(1, 5000) == 1
        pair.fail_over()
        store.transact(lambda tx: tx.put_endpoint(made.model_copy(update={"name": "other"})))
        assert set(store.endpoints()) == {"ranker", "other"}


def test_a_server_that_loads_its_data_is_asked_again(tmp_path: Path) -> None:
    with RedisProcess(tmp_path / "r") as server, server.client() as client:
        client.set("n", 1)
        server.kill()
        with pytest.raises(redis.ConnectionError):
            client.get("n")
        server.start()
        client.set("n", 2)
        assert client.get("n") == b"2"


@pytest.fixture
def web() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever, name="web", daemon=True)
    thread.start()
    yield f"redis://127.0.0.1:{server.server_port}/0"
    server.shutdown()
    server.server_close()


def refusals(address: RedisAddress) -> tuple[str, str]:
    """What a client and the connection of a lookup say of a server."""
    with contextlib.closing(address.client(2.0)) as client, pytest.raises((InvalidInput, NotReady)) as said:
        server_of(client, "it")
    with pytest.raises(Unusable) as refused:
        address.connect(2.0)
    return str(said.value), str(refused.value)


def test_a_web_server_is_no_redis(web: str) -> None:
    for said in refusals(RedisAddress(web)):
        assert "is no Redis" in said


@pytest.mark.parametrize(
    ("info", "words"),
    [
        (b"redis_version:7.0.1\r\nredis_mode:cluster\r\nrole:master\r\n", "Redis Cluster, which is not supported"),
        (b"redis_version:7.0.1\r\nredis_mode:sentinel\r\n", "is a Redis Sentinel"),
        (b"redis_version:5.0.14\r\nredis_mode:standalone\r\nrole:master\r\n", "is Redis 5.0; 6.0 is needed"),
        (b"role:slave\r\nmaster_host:10.0.0.1\r\nmaster_port:6379\r\n", "read-only replica of 10.0.0.1:6379"),
    ],
)
def test_a_server_of_the_wrong_kind_is_named(info: bytes, words: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = server.accept()
                    with client:
                        while asked := client.recv(4096):
                            reply = {b"INFO": b"$%d\r\n%s\r\n" % (len(info), info), b"PING": b"+PONG\r\n"}
                            for part in asked.split(b"*")[1:]:
                                client.sendall(next((r for name, r in reply.items() if name in part), b"+OK\r\n"))

        threading.Thread(target=serve, name="server", daemon=True).start()
        for said in refusals(RedisAddress(f"redis://127.0.0.1:{server.getsockname()[1]}/0")):
            assert words in said


def test_a_real_sentinel_is_named(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "sentinel.conf").write_text("")
    argv = ["redis-server", str(tmp_path / "sentinel.conf"), "--sentinel", "--port", str(port), "--dir", str(tmp_path)]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    try:

        def up() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
                return True
            return False

        until(up)
        for said in refusals(RedisAddress(f"redis://127.0.0.1:{port}")):
            assert "Sentinel" in said
    finally:
        process.kill()
        process.wait(LIMIT)


def test_a_server_without_the_commands_is_named(tmp_path: Path) -> None:
    with RedisProcess(tmp_path / "r", "--appendonly", "yes", "--rename-command", "EVALSHA", "") as server:
        with server.client() as client, pytest.raises(InvalidInput, match="lacks the commands EVALSHA"):
            require_durable(client, "state", "rollouts")
        with server.client() as client:
            require_commands(client, "cache", ["MGET"])


def test_a_user_who_may_not_ask_is_served(tmp_path: Path) -> None:
    with RedisProcess(tmp_path / "r") as server, server.client() as client:
        client.execute_command("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@read", "+@write", "+ping")
        with RedisAddress(server.address.url, "app", "secret").client(2.0) as limited:
            limited.set("n", 1)
            assert limited.get("n") == b"1"
        RedisAddress(server.address.url, "app", "secret").connect(2.0).close()

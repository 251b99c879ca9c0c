"""A server that answers anything at all in place of a Redis: every reader has an error that it expects, in bounded time."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import redis
from clocks import MillisecondClock
from traffic_samples import IDS, WINDOW_MS

from pipeline.bundle.versions import Repository
from pipeline.embedding.redis.updates import RedisUpdater
from pipeline.errors import BatonError, InvalidInput
from pipeline.redis.address import RedisAddress
from pipeline.traffic.redis.log import RedisTrafficLog
from serving.rollout.store import Who
from serving.security.session import SessionRow
from serving.state.directory import ServiceRecord
from serving.state.redis.control_store import RedisControlStore
from serving.state.redis.directory import RedisDirectory
from serving.state.redis.idempotency import RedisKeys
from serving.state.redis.kill import RedisKillFlags
from serving.state.redis.leader import RedisLead
from serving.state.redis.relay import Relay
from serving.state.redis.secret import agree_on_secret
from serving.state.redis.sessions import RedisSessions
from serving.state.redis.tenure import RedisTenure

_TEXT = (
    b"redis_version:7.2.0\r\nredis_mode:standalone\r\nrole:master\r\nmaxmemory_policy:noeviction\r\naof_enabled:1\r\n"
)
INFO = b"$%d\r\n%s\r\n" % (len(_TEXT), _TEXT)
_LONG = b"redis_version:7.2\r\nused_memory:%s\r\n" % (b"9" * 5000)
REPLIES = [
    b"*1\r\n" * 100_000 + b":1\r\n", b"*1\r\n*1\r\n*1\r\n+x\r\n", b":abc\r\n", b":" + b"9" * 5000 + b"\r\n", b"$abc\r\n", b"*abc\r\n",
    b"*-5\r\n", b"+OK\r\n", b"$-1\r\n", b"*-1\r\n", b"*0\r\n", b":1\r\n", b":-1\r\n", b"%1\r\n+a\r\n:1\r\n", b"~1\r\n:1\r\n", b",nan\r\n", b"#t\r\n",
    b"\0\xff\r\n", b"-MOVED x\r\n", b"-MOVED a b:c:d\r\n", b"-ASK abc def\r\n", b"-\xff\r\n", b"*3\r\n-ERR x\r\n-MOVED q\r\n:1\r\n",
    b"*2\r\n:1\r\n*1\r\n:2\r\n", b"*3\r\n:1\r\n:2\r\n:3\r\n", b"*2\r\n$-1\r\n*-1\r\n", b"*2\r\n$1\r\na\r\n$1\r\nb\r\n", b"*2\r\n$1\r\n0\r\n*1\r\n:1\r\n",
    b"*1\r\n*2\r\n$3\r\nabc\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n", b"*1\r\n*2\r\n$3\r\n1-1\r\n*-1\r\n", b"+OK\r\n+OK\r\n",
]  # fmt: skip
INFOS = [
    b":1\r\n",
    b"$-1\r\n",
    b"*2\r\n:1\r\n:1\r\n",
    b"*1\r\n" * 100_000 + b":1\r\n",
    b"$%d\r\n%s\r\n" % (len(_LONG), _LONG),
]


@contextmanager
def server(reply: bytes, info: bytes = INFO, pause_s: float = 0.0) -> Iterator[RedisAddress]:
    """A server that sends `reply` to all but greetings, a byte every `pause_s`."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        greetings = {b"INFO": info, b"CLIENT": b"+OK\r\n", b"PING": b"+PONG\r\n", b"WATCH": b"+OK\r\n"}
        with suppress(OSError), connection:
            while text := connection.recv(1 << 16):
                for command in text.split(b"\n*"):
                    words = command.split(b"\r\n")
                    answer = greetings.get(words[2] if len(words) > 2 else b"", reply)
                    slow = answer is reply and pause_s
                    for part in (answer[i : i + 1] for i in range(len(answer))) if slow else [answer]:
                        connection.sendall(part)
                        time.sleep(pause_s if slow else 0)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with listening:
        yield RedisAddress(f"redis://127.0.0.1:{listening.getsockname()[1]}")
        listening.shutdown(socket.SHUT_RDWR)


def readers(address: RedisAddress, folder: Path) -> list[Callable[[], object]]:
    clock, seconds = MillisecondClock(), 0.5
    (folder / "control.json").write_text("{}")
    store = RedisControlStore.__new__(RedisControlStore)  # its constructor reads too
    super(RedisControlStore, store).__init__()
    store.url, store._client, store._skipped = address.url, address.client(seconds), set()
    kill, directory, lead = (
        RedisKillFlags(address, seconds),
        RedisDirectory(address),
        RedisLead(address, "x", clock, 1.0),
    )
    keys, sessions, tenure = (
        RedisKeys(address, kept_ms=1),
        RedisSessions(address, seconds),
        RedisTenure(lead, "r", "here"),
    )
    relay = Relay(address, folder, "here", clock, name="control", receive=True)
    rows = RedisUpdater(address, Repository(folder), format="float32", token="t")
    for client in (directory._client, keys._client, relay._client, rows._redis):
        client.connection_pool.connection_kwargs["socket_timeout"] = seconds
    return [
        lambda: RedisTrafficLog(address, IDS, WINDOW_MS, timeout=seconds), lambda: RedisControlStore(address, seconds),
        store.data_version, store.endpoints, lambda: store.find_endpoint("r"), store.rollouts, lambda: store.find_rollout("r"),
        store.audit, lambda: store.audit("r"), store.latest_audit, lambda: store.note("x", Who("a", "b", 1), {}),
        lambda: kill.engage("r", "x", "y"), kill.engaged, lambda: kill.why("r"), lambda: kill.prepare(["r"]), lambda: kill.release("r"),
        directory.replicas, lambda: directory.announce(ServiceRecord("r", "10.0.0.1:1")), lambda: keys.take("a", "k", "d", 1),
        lambda: sessions.get(["0" * 64]), lambda: sessions.put(SessionRow("1" * 64, "t", 10**13, "0" * 64), 1),
        lambda: sessions.remove("0" * 64), lead.hold, lead.holder, tenure.take, tenure.holds, tenure.last, lambda: tenure.published(1),
        lambda: agree_on_secret(address, folder / "secret.key"), rows.report, lambda: rows.sweep([], 1e9), relay.step,
        lambda: address.connect(seconds).close(),
    ]  # fmt: skip


CASES = [*((reply, INFO) for reply in REPLIES), *((b"+OK\r\n", info) for info in INFOS)]


@pytest.mark.parametrize(("reply", "info"), CASES, ids=range(len(CASES)))
def test_no_reply_is_another_error(reply: bytes, info: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    with server(reply, info) as address:
        for reader in readers(address, tmp_path):
            with suppress(BatonError, redis.RedisError, OSError):  # what threads and commands expect
                reader()


def test_a_reply_has_an_end() -> None:
    begun = time.monotonic()
    slow = b"$1000\r\n" + b"x" * 1000
    with server(slow, pause_s=0.05) as address, pytest.raises(redis.TimeoutError, match="not whole"):
        address.client(0.2).get("x")
    with server(b"", info=b"$100000\r\n") as address, pytest.raises((OSError, BatonError)):
        address.connect(0.2)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    "option",
    ["path=/tmp/x", "host=far", "ssl_cert_reqs=none", "ssl_check_hostname=false", "ssl_ca_certs=x", "protocol=3", "socket_timeout=", "x"],
)  # fmt: skip
def test_an_address_has_no_options_that_take_checks_away(option: str) -> None:
    for url in (f"rediss://far:1/0?{option}", f"redis://127.0.0.1?db=1&{option}"):
        with pytest.raises(InvalidInput, match="only `db` is one"):
            RedisAddress(url)
    assert RedisAddress("unix:///x?db=2").host == ""

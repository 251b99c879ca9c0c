"""Odd content in every key that Baton reads: each reader raises a BatonError or passes it over, and no file is made from it.

The keys are filled as Baton fills them; then each is replaced by every kind of odd value, one after another, and all readers
read.
"""

from __future__ import annotations

import json
import logging
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from clocks import MillisecondClock
from redis_process import RedisProcess
from traffic_samples import IDS, WINDOW_MS, sample

from pipeline.bundle.versions import Repository
from pipeline.embedding.redis.completeness import Counted
from pipeline.embedding.redis.marks import GENERATIONS, Mark, Progress
from pipeline.embedding.redis.updates import RedisUpdater
from pipeline.errors import BatonError, NotReady
from pipeline.redis import connections
from pipeline.traffic.log import FeedbackEntry, Outcome, Scores
from pipeline.traffic.record import unpack
from pipeline.traffic.redis.log import RedisTrafficLog
from serving.rollout.routing import ArmSpec, Endpoint
from serving.rollout.spec import Rollout
from serving.rollout.state import begin
from serving.rollout.store import Who
from serving.runtime import status
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
from serving.state.redis.tenure import RedisTenure, lead_of

WHO = Who("ada", "test", 1)
DURABLE = ("--appendonly", "yes", "--appendfsync", "no", "--maxmemory-policy", "noeviction")
SPEC = Rollout.parse(
    "{endpoint: ranker, candidate: {bundle: new}, guards: {}, "
    "steps: [{shadow: true}, {weight: 10, bias_below: 0.1}, {weight: 100, bias_below: 0.02}]}"
)
DEEP = b'{"a":' * 100_000
ODD = [
    b"", b"\0", b"\xff\xfe\x00\x01", b"abc", b"null", b"[]", b"{}", b"[[[]]]", b'"text"', b"-1", b"9" * 19, b"9" * 30, b"9" * 5000,
    b"1e999", b"NaN", b"-Infinity", DEEP, b"[" * 100_000, b'{"time_ms":1e999}', b'{"time_ms":' + b"9" * 400 + b"}",
    b'{"time_ms":NaN}', b'{"reason":{},"actor":[]}', b'{"reason":"\\ud800","actor":"\\udfff"}', b'{"node":5,"position":"x"}',
    b'{"node":"n","position":-5}', b'{"applied":"x","loading":3,"table":-1,"row":' + b"9" * 300 + b"}",
    b'{"replica":"r","address":"evil,10.0.0.1:1","node":""}', b'{"name":"../../x","stable":{"bundle":"../../etc"}}',
    b"{}\n{}", b"x" * 100_000,
]  # fmt: skip
NAMES = [
    b"", b"..", b"../x", b"../../tokens", b"/etc/x", b"a\0b", b"\xff@n", b"control@", b"@n", b"control@a/b", b"control@../..",
    b"lane-0@" + b"x" * 5000, b"control@x@here", b"lane-0\n@n", b"LANE@n", b"0" * 16, b"abcdef0123456789", b"x\x1b[2J",
]  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    with RedisProcess(tmp_path_factory.mktemp("redis"), *DURABLE) as started:
        yield started


class Readers:
    """All that reads a shared Redis, with a home beside it."""

    def __init__(self, server: RedisProcess, folder: Path) -> None:
        self.address, self.client, self.clock = server.address, server.client(), MillisecondClock()
        self.home = folder / "home"
        self.status = self.home / "run" / "status"
        self.status.mkdir(parents=True)
        self.client.flushdb()
        self.log = RedisTrafficLog(self.address, IDS, WINDOW_MS)
        self.relay = Relay(self.address, self.status, "here", self.clock, name="control", receive=True)
        self.store = RedisControlStore(self.address)
        self.kill, self.directory = RedisKillFlags(self.address), RedisDirectory(self.address)
        self.keys, self.sessions = RedisKeys(self.address, kept_ms=60_000), RedisSessions(self.address)
        self.lead = RedisLead(self.address, "here pid 1", self.clock)
        worker = RedisLead(self.address, "here pid 1", self.clock, what=lead_of("ranker"))
        self.tenure = RedisTenure(worker, "ranker", "here")
        self.rows = RedisUpdater(self.address, Repository(self.home / "bundles"), format="float32", token="t")
        self.ids = [IDS.new(1000 + i) for i in range(3)]
        self.predictions = [sample(name, 1000 + i) for i, name in enumerate(self.ids)]

    def fill(self) -> None:
        """Everything as Baton writes it."""
        self.client.flushdb()
        self.log = RedisTrafficLog(self.address, IDS, WINDOW_MS)
        agree_on_secret(self.address, self.home / "secret.key")
        self.store = RedisControlStore(self.address)
        (self.status / "control.json").write_text(status.dumps(status.ControlStatus(time_ms=self.clock.wall_ms())))
        endpoint = self.store.put_endpoint(Endpoint(name="ranker", stable=ArmSpec(bundle="old")), WHO)
        self.store.start_rollout(SPEC, begin(SPEC, 1, 1, 0), endpoint, WHO)
        self.kill.engage("ranker", "why", "ada")
        self.directory.announce(ServiceRecord("r0", "10.0.0.1:8001", "n"))
        self.keys.take("ada", "k", "digest", 1)
        self.sessions.put(SessionRow("0" * 64, "t0", 10**13, "0" * 64), 1)
        self.lead.hold()
        self.tenure.take()
        self.tenure.published(5)
        self.client.hset("control:status-of-processes", "control@there", (self.status / "control.json").read_bytes())
        self.log.append_predictions(self.predictions)
        first = self.ids[0]
        self.log.append_scores([(first, Scores("candidate", "b", 1, np.ones(4, np.float32)))])
        self.log.append_feedback([FeedbackEntry(first, [], [Outcome(0, 1.0)], 1500)], 2000)
        self.log.append_feedback([FeedbackEntry(IDS.new(1800), [], [Outcome(0, 1.0)], None)], 2000)
        self.log.join(10**9)
        self.log.commit_position("worker", 1)
        name = "0123456789abcdef"
        about = {"bundle": "b", "base": "1", "format": "float32", "used_ms": 1}
        self.client.hset(GENERATIONS, name, json.dumps(about))
        self.client.set(f"baton:embedding:{name}:mark", Mark(1, 1).pack())
        self.client.set(f"baton:embedding:{name}:progress", Progress(["1"]).pack())
        self.client.set(f"baton:embedding:{name}:counted", Counted("r", 0, 1, 0).pack())

    def readers(self) -> list[Callable[[], Any]]:
        store, log = self.store, self.log
        first = self.ids[0]
        return [
            self.relay.step, lambda: status.read(self.status, 1), store.data_version, store.endpoints,
            lambda: store.find_endpoint("ranker"), store.rollouts, lambda: store.find_rollout("ranker"), store.audit,
            store.latest_audit, lambda: store.audit("ranker"), lambda: store.note("x", WHO, {}),
            lambda: RedisControlStore(self.address).close(), self.kill.engaged, lambda: self.kill.why("ranker"),
            self.directory.replicas, lambda: self.keys.take("ada", "k", "digest", 1), lambda: self.sessions.get(["0" * 64]),
            lambda: self.sessions.put(SessionRow("1" * 64, "t0", 10**13, "0" * 64), 1), lambda: self.sessions.remove("0" * 64),
            self.lead.hold, self.lead.holder, self.tenure.take, self.tenure.holder, self.tenure.last,
            lambda: self.tenure.published(6), lambda: agree_on_secret(self.address, self.home / "secret.key"),
            lambda: agree_on_secret(self.address, self.home / "other.key"),
            lambda: [unpack(entry.record) for entry in log.labelled(0)], lambda: [unpack(b) for _, b in log.predictions("")],
            lambda: [unpack(b) for _, b in log.unscored("", 10**12).found], lambda: [unpack(b) for b in log.latest("ranker", 5)],
            lambda: log.join(10**9), lambda: log.stats(10**9), lambda: log.position("worker"),
            lambda: log.append_feedback([FeedbackEntry(first, [], [Outcome(1, 1.0)], None)], 2000),
            lambda: log.append_predictions([self.predictions[1]]), lambda: log.forget(1, 1), lambda: log.retain(1),
            lambda: RedisTrafficLog(self.address, IDS, WINDOW_MS).close(), self.rows.report, lambda: self.rows.sweep([], 10**9),
        ]  # fmt: skip

    def check(self, what: str) -> None:
        """All read; none with another error than a BatonError (or one of Redis, where a reader is documented to)."""
        before = self.files()
        for reader in self.readers():
            try:
                reader()
            except BatonError:
                pass
            except redis.RedisError:
                pass
            except Exception as error:
                raise AssertionError(f"{what}: {reader} raised {type(error).__name__}: {error}") from error
        made = {path for path in self.files() - before if path.parent != self.status and path.name != "other.key"}
        assert not made, what
        (self.home / "other.key").unlink(missing_ok=True)

    def files(self) -> set[Path]:
        return {path for path in self.home.parent.rglob("*") if path.is_file()}


@pytest.fixture
def readers(server: RedisProcess, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Readers:
    caplog.set_level(logging.CRITICAL)
    made = Readers(server, tmp_path)
    made.fill()
    return made


def _dumped(client: Any) -> dict[bytes, bytes]:
    return {key: client.dump(key) for key in client.scan_iter(count=1000)}


def _restore(client: Any, whole: dict[bytes, bytes]) -> None:
    client.flushdb()
    with client.pipeline() as pipe:
        for name, dump in whole.items():
            pipe.restore(name, 0, dump)
        pipe.execute()


def _spoil(readers: Readers, seed: int, values_of_key: int) -> None:
    """Replace the content of every key by odd values, and every key by one of another type."""
    client, rng = readers.client, random.Random(seed)
    readers.check("nothing odd")
    readers.fill()
    whole = _dumped(client)
    assert len(whole) > 25
    odd = [*ODD, *(rng.randbytes(rng.randrange(1, 300)) for _ in range(4))]
    for key in sorted(whole):
        kind = client.type(key)
        for value in rng.sample(odd, min(values_of_key, len(odd))):
            _restore(client, whole)
            if kind == b"hash":
                for field in client.hkeys(key):
                    client.hset(key, field, value)
                client.hset(key, rng.choice(NAMES), value)
            elif kind == b"stream":
                client.xadd(key, {rng.choice((b"i", b"entry", b"e", b"r", b"m")): value})
            elif kind == b"zset":
                client.zadd(key, {value: rng.choice((-1e300, 0.0, 1e18, float("inf")))})
            elif kind == b"set":
                client.sadd(key, value)
            elif kind == b"list":
                client.rpush(key, value)
            else:
                client.set(key, value)
            readers.check(f"{key!r} with {value[:40]!r}")
        makers = [("SET", "1"), ("HSET", "a", "b"), ("RPUSH", "a"), ("SADD", "a"), ("ZADD", "1", "a"), ("XADD", "*", "a", "b")]  # fmt: skip
        for command, *words in rng.sample(makers, min(values_of_key, len(makers))):
            _restore(client, whole)
            client.delete(key)
            client.execute_command(command, key, *words)
            readers.check(f"{key!r} made by {command}")


def test_readers_stand_some_odd_values_in_every_key(readers: Readers) -> None:
    _spoil(readers, 7, 1)


@pytest.mark.long
def test_every_reader_stands_every_odd_value(readers: Readers) -> None:
    _spoil(readers, 11, 100)


def test_odd_entries_of_the_relay_become_no_files_and_do_not_take_the_others(readers: Readers) -> None:
    client, good = readers.client, (readers.status / "control.json").read_bytes()
    before = readers.files()
    for name in NAMES:
        client.hset("control:status-of-processes", name, good)
    for number, value in enumerate(ODD):
        client.hset("control:status-of-processes", f"lane-{number}@there", value)
    client.hset("control:status-of-processes", "lane-99@there", b" " * (2 << 20))
    readers.relay.step()
    assert {path.name for path in readers.files() - before} == {"control@there.json"}
    left = client.hkeys("control:status-of-processes")
    assert sorted(left) == [b"control@here", b"control@there"]  # the others were removed


def test_relayed_statuses_have_a_size_in_all(readers: Readers, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    good = (readers.status / "control.json").read_text()
    for number in range(24):
        readers.client.hset("control:status-of-processes", f"control@n{number}", good + " " * (400 << 10))
    readers.relay.step()
    assert 15 < len(list(readers.status.glob("*@n*.json"))) < 22
    assert any("more than 8 MiB" in record.message for record in caplog.records)
    assert readers.client.hlen("control:status-of-processes") >= 24


def test_the_thread_of_the_relay_outlives_what_it_reads(readers: Readers, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    client, relay = readers.client, Relay(readers.address, readers.status, "here", readers.clock, receive=True)
    client.delete("control:status-of-processes")
    client.set("control:status-of-processes", "a string")
    for _ in range(3):
        with pytest.raises(Exception, match="WRONGTYPE"):
            relay.step()
    relay._stop.wait = lambda _=None: False if (steps := steps_left.pop()) else not steps  # type: ignore[method-assign]
    steps_left = [0, 1, 1]
    relay._run()
    assert sum("status is not relayed" in record.message for record in caplog.records) == 1


def test_a_reply_is_bounded(readers: Readers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MOST_REPLY_BYTES", 1 << 20)
    readers.client.hset("control:endpoints", "ranker", b"x" * (2 << 20))
    with pytest.raises(NotReady, match="more than 1 MiB"):
        readers.store.endpoints()
    readers.client.hdel("control:endpoints", "ranker")
    assert readers.store.endpoints() == {}


@pytest.mark.parametrize(
    ("name", "bundle"), [("../x", "b"), ("a\0b", "b"), ("ranker", "../../x"), ("ranker", "/etc"), ("x" * 300, "b")]
)
def test_an_endpoint_is_a_plain_name_with_bundles_of_plain_names(readers: Readers, name: str, bundle: str) -> None:
    body = json.dumps({"name": name, "stable": {"bundle": bundle}})
    readers.client.hset("control:endpoints", name, body)
    with pytest.raises(NotReady, match="what Baton did not write"):
        readers.store.endpoints()


def test_an_odd_audit_entry_is_shown_in_its_place(readers: Readers) -> None:
    good = len(readers.store.audit())
    readers.client.xadd("control:audit", {"entry": b"\xff"}, id=f"{good + 1}-0")
    readers.store.note("x", WHO, {})
    assert [entry.verb for entry in readers.store.audit()][good:] == ["unreadable", "x"]


def test_a_change_that_cannot_be_audited_is_not_made(readers: Readers) -> None:
    readers.client.xadd("control:audit", {"entry": b"{}"}, id=f"{(1 << 64) - 1}-0")
    with pytest.raises(NotReady, match="an entry 18446744073709551615"):
        readers.store.put_endpoint(Endpoint(name="other", stable=ArmSpec(bundle="old")), WHO)
    assert readers.store.find_endpoint("other") is None


def test_a_tenure_whose_thread_fails_is_over(readers: Readers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    assert readers.tenure.take()
    with readers.tenure.kept(threading.Event()) as over:
        monkeypatch.setattr(readers.tenure, "holds", lambda: 1 // 0)
        assert over.wait(5)


def test_an_odd_prediction_is_named(readers: Readers) -> None:
    key = f"traffic:p:{readers.ids[1]}"
    readers.client.hset(key, "n", "999999999999")
    with pytest.raises(NotReady, match=f"{key} holds what Baton did not write"):
        readers.log.append_feedback([FeedbackEntry(readers.ids[1], [], [Outcome(0, 1.0)], None)], 2000)


def test_a_sweep_removes_no_rows_under_a_made_up_name(readers: Readers) -> None:
    """A short name would be the beginning of the keys of all rows."""
    client = readers.client
    client.set(b"rXXXXXrow", "a row")
    for name in (b"", b"00", b"zz", b"\xff" * 16):
        client.hset(GENERATIONS, name, json.dumps({"bundle": "b", "base": "1", "format": "float32", "used_ms": 1}))
    readers.rows.sweep([], 1.0)
    assert client.get(b"rXXXXXrow") == b"a row"


def test_an_entry_of_the_log_that_does_not_fit_is_passed_over(readers: Readers) -> None:
    with closing(RedisTrafficLog(readers.address, IDS, WINDOW_MS)) as log:
        good = log.labelled(0)
        assert good
        odd = np.array([10**6], np.int32).tobytes() + np.zeros(3, np.float32).tobytes()
        readers.client.xadd("traffic:labelled", {"i": good[0].prediction_id, "r": "0", "m": odd}, id="900000-0")
        readers.client.xadd("traffic:labelled", {"i": good[0].prediction_id, "r": "0", "m": b""}, id="900001-0")
        assert [entry.seq for entry in log.labelled(0)] == [*(entry.seq for entry in good), 900001]

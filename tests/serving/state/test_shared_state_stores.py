"""What machines agree on through one Redis: the store, the lead with its fencing, kill switches, status, the secret."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from clocks import MillisecondClock
from installation import free_port, write_status
from redis_process import RedisProcess
from traffic_samples import IDS, WINDOW_MS, sample

from pipeline.clock import SystemClock
from pipeline.errors import Conflict, InvalidInput, LogFull, NotFound, NotReady, StaleVersion
from pipeline.redis.address import RedisAddress
from pipeline.traffic.log import ACCEPTED, FeedbackEntry, Outcome
from pipeline.traffic.redis.log import RedisTrafficLog
from serving.config.principal import Role
from serving.lane.kill_watch import KillWatch
from serving.rollout.routing import ArmSpec, Endpoint
from serving.rollout.spec import Rollout
from serving.rollout.sqlite_store import SqliteControlStore
from serving.rollout.state import Advance, apply, begin
from serving.rollout.store import ControlStore, LeadLost, StoredRollout, Who
from serving.runtime.status import read
from serving.security.tokens import TokenStore
from serving.state.kill import KillSwitch
from serving.state.leader import FileLead
from serving.state.redis.control_store import RedisControlStore
from serving.state.redis.idempotency import RedisKeys
from serving.state.redis.kill import RedisKillFlags
from serving.state.redis.leader import RedisLead
from serving.state.redis.relay import Relay
from serving.state.redis.secret import agree_on_secret

WHO = Who("ada", "test", 1)
NEW = ArmSpec(bundle="new", version=1)
SPEC = Rollout.parse(
    "{endpoint: ranker, candidate: {bundle: new}, guards: {}, "
    "steps: [{shadow: true}, {weight: 10, bias_below: 0.1}, {weight: 100, bias_below: 0.02}]}"
)
DURABLE = ("--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisProcess]:
    with RedisProcess(tmp_path / "redis", *DURABLE) as started:
        yield started


@pytest.fixture
def store(server: RedisProcess) -> Iterator[RedisControlStore]:
    opened = RedisControlStore(server.address)
    yield opened
    opened.close()


def started(store: ControlStore) -> StoredRollout:
    endpoint = store.put_endpoint(Endpoint(name="ranker", stable=ArmSpec(bundle="old", version=1)), WHO)
    return store.start_rollout(SPEC, begin(SPEC, 1, 1, 0), endpoint, WHO)


def advance(store: ControlStore, stored: StoredRollout) -> StoredRollout:
    state = apply(SPEC, stored.state, Advance(), 2, 0)
    endpoint = store.endpoint("ranker").model_copy(update={"weight": state.weight, "candidate": NEW})
    return store.save_rollout(stored, state, endpoint, Who("controller", "bias", 2), "advance")


def until(condition: Callable[[], bool], limit: float = 120.0) -> None:
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--maxmemory-policy", "allkeys-lru"), "evicts keys.*rollouts and their audit.*noeviction"),
        (("--appendonly", "no"), "keeps no append-only file.*appendonly yes"),
    ],
)
def test_a_redis_that_may_forget_is_refused(tmp_path: Path, options: tuple[str, ...], why: str) -> None:
    with (
        RedisProcess(tmp_path / "redis", *DURABLE, *options) as server,
        pytest.raises(InvalidInput, match=f"(?s)state .*{why}"),
    ):
        RedisControlStore(server.address)


def test_writers_with_an_old_version_are_told_so(store: RedisControlStore) -> None:
    stored = started(store)
    advance(store, stored)
    with pytest.raises(StaleVersion, match="rollout"):
        advance(store, stored)
    endpoint = store.endpoint("ranker")
    with pytest.raises(StaleVersion, match="endpoint"):
        store.put_endpoint(endpoint, WHO, expected=endpoint.resource_version - 1)
    with pytest.raises(Conflict, match="a rollout owns"):
        store.put_endpoint(endpoint.model_copy(update={"weight": 90.0}), WHO)
    with pytest.raises(Conflict, match="active rollout"):
        store.start_rollout(SPEC, begin(SPEC, 1, 1, 0), endpoint, WHO)
    for absent in (lambda: store.endpoint("absent"), lambda: store.rollout("absent")):
        with pytest.raises(NotFound):
            absent()
    assert [entry.verb for entry in store.audit()] == ["set_endpoint", "start", "advance"]


def test_audit_in_pages_both_ways_and_by_endpoint(store: RedisControlStore) -> None:
    for name in ("ranker", "shop", "ranker", "ranker"):
        store.put_endpoint(Endpoint(name=name, stable=ArmSpec(bundle="old", version=1)), WHO)
    store.note("token", WHO, {"id": "t1"})
    assert [entry.seq for entry in store.audit()] == [1, 2, 3, 4, 5]
    assert [entry.seq for entry in store.audit("ranker", after=1, limit=1)] == [3]
    assert [entry.seq for entry in store.latest_audit(before=5, limit=2)] == [4, 3]
    assert [entry.seq for entry in store.latest_audit("ranker")] == [4, 3, 1]
    assert store.audit_entry(5).after == {"id": "t1"}
    for before, after in itertools.pairwise(store.audit("ranker")):
        assert after.before["endpoint"] == before.after["endpoint"]


def test_sums_are_stored_with_a_change_and_by_themselves(store: RedisControlStore, tmp_path: Path) -> None:
    local = SqliteControlStore(tmp_path / "control.db")
    for each in (store, local):
        stored = started(each)
        assert each.sums(stored.id) is None
        each.put_sums(stored.id, b"\0first")
        state = apply(SPEC, stored.state, Advance(), 2, 0)
        endpoint = each.endpoint("ranker")
        who = Who("controller", "bias", 2)
        saved = each.save_rollout(stored, state, endpoint, who, "advance", {}, b"\0later", b"\0basis")
        last = each.audit()[-1].seq
        assert (each.sums(stored.id), each.audit_basis(last), each.audit_basis(last - 1)) == (
            b"\0later",
            b"\0basis",
            None,
        )
        with pytest.raises(StaleVersion):
            each.save_rollout(stored, state, endpoint, who, "advance", {}, b"\0never", b"\0never")
        assert each.sums(stored.id) == b"\0later", "all or nothing"
        assert each.rollouts(active=True) == [saved]
    local.close()


def test_settings_are_stored_with_their_entry_and_without(store: RedisControlStore) -> None:
    assert store.setting("freeze") == {}
    store.put_setting("freeze", {"until_ms": 5}, WHO, "freeze")
    store.keep_setting("note", {"seq": 1})
    store.note("held_long", WHO, {"code": "frozen"}, "ranker", "ranker-1", setting=("note", {"seq": 2}))
    assert (store.setting("freeze"), store.setting("note")) == ({"until_ms": 5}, {"seq": 2})
    assert [(e.verb, e.endpoint, e.rollout) for e in store.audit()] == [
        ("freeze", "", ""),
        ("held_long", "ranker", "ranker-1"),
    ]
    store.put_setting("freeze", {}, WHO, "lift_freeze")
    assert store.setting("freeze") == {}


def test_of_two_writers_at_once_both_succeed_or_are_told(server: RedisProcess) -> None:
    script = """
import sys
from pathlib import Path
from pipeline.redis.address import RedisAddress
from serving.state.redis.control_store import RedisControlStore
from serving.rollout.store import Who
from serving.lane.kill_watch import KillWatch
from serving.rollout.routing import ArmSpec, Endpoint
store = RedisControlStore(RedisAddress(sys.argv[1]))
for at in range(100):
    store.put_endpoint(Endpoint(name=sys.argv[2], stable=ArmSpec(bundle="old", version=at + 1)), Who(sys.argv[2], "", at))
"""
    names = ("a", "b", "c")
    children = [subprocess.Popen([sys.executable, "-c", script, server.address.url, name]) for name in names]
    assert [child.wait(60) for child in children] == [0, 0, 0]
    store = RedisControlStore(server.address)
    assert {name: endpoint.resource_version for name, endpoint in store.endpoints().items()} == dict.fromkeys(
        names, 100
    )
    assert [entry.seq for entry in store.audit(limit=1000)] == list(range(1, 301)), "every change has its entry"
    store.close()


WRITER = """
import sys
from dataclasses import replace
from pipeline.redis.address import RedisAddress
from serving.state.redis.control_store import RedisControlStore
from serving.rollout.state import Advance, StepBack, apply
from serving.rollout.store import Who
from serving.rollout.routing import ArmSpec
store = RedisControlStore(RedisAddress(sys.argv[1]))
now = 10
while True:
    stored = store.rollout("ranker")
    now += 1
    state = replace(stored.state, weight=float(now % 50), entered_ms=now)
    endpoint = store.endpoint("ranker").model_copy(update={"weight": state.weight, "candidate": ArmSpec(bundle="new")})
    store.save_rollout(stored, state, endpoint, Who("child", "loop", now), "set_weight")
    print(now, flush=True)
"""


def test_kill_9_leaves_rollout_endpoint_and_audit_together(server: RedisProcess, store: RedisControlStore) -> None:
    started(store)
    for lines in (1, 7, 23):
        child = subprocess.Popen([sys.executable, "-c", WRITER, server.address.url], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        for _ in range(lines):
            assert child.stdout.readline()
        os.kill(child.pid, signal.SIGKILL)  # somewhere within a write; every place must do
        child.wait()
        child.stdout.close()
        stored, endpoint, audit = store.rollout("ranker"), store.endpoint("ranker"), store.audit("ranker")
        assert endpoint.weight == stored.state.weight == audit[-1].after["state"]["weight"]
        assert stored.resource_version == len(audit) - 1


def test_who_lost_the_lead_writes_nothing(server: RedisProcess, store: RedisControlStore) -> None:
    clock = SystemClock()
    first, second = (RedisLead(server.address, name, clock, lease=1.0) for name in ("first", "second"))
    stored = started(store)
    assert first.hold()
    assert first.hold()
    assert not second.hold()
    assert second.holder() == "first"
    with store.fenced(first.token):
        stored = advance(store, stored)
    until(second.hold)  # the first said nothing for its lease: a process that was stopped
    assert second.token is not None
    assert first.token is not None
    assert second.token > first.token
    with store.fenced(first.token), pytest.raises(LeadLost):
        advance(store, stored)
    with store.fenced(first.token), pytest.raises(LeadLost):
        store.put_status(stored.id, {"reason": "of yesterday"})
    assert store.rollout("ranker") == stored
    with store.fenced(second.token):
        stored = advance(store, stored)
    assert not first.hold()
    with store.fenced(first.token), pytest.raises(LeadLost):  # also of a thread that has not heard of it yet
        store.put_status(stored.id, {"reason": "of yesterday"})
    second.release()
    assert first.hold(), "who lets go makes room at once"
    first.release()


def test_a_leader_without_redis_stops_before_its_lease_lapses(tmp_path: Path) -> None:
    clock = MillisecondClock()
    with RedisProcess(tmp_path / "redis", *DURABLE) as server:
        lead = RedisLead(server.address, "only", clock, lease=10.0)
        assert lead.hold()
        server.kill()
        assert lead.hold(), "nobody else can have it yet"
        clock.now += 7000
        assert not lead.hold()
        server.start()
        assert lead.hold()
        lead.release()


def test_one_machine_needs_no_redis_to_have_one_leader(tmp_path: Path) -> None:
    first, second = FileLead(tmp_path / "run" / "lead", "first"), FileLead(tmp_path / "run" / "lead", "second")
    assert first.hold()
    assert first.hold()
    assert not second.hold()
    assert second.holder() == "first"
    first.release()
    assert second.hold()
    second.release()


def test_a_kill_reaches_every_machine_and_stays_while_redis_is_away(tmp_path: Path, server: RedisProcess) -> None:
    names = ["ranker", "shop"]
    here, there = (KillSwitch(tmp_path / name, RedisKillFlags(server.address)) for name in ("here", "there"))
    seen: list[frozenset[str]] = []
    watch = KillWatch(there, lambda: names, lambda killed, blind: seen.append(killed))
    here.engage("ranker", "complaints", "ada")
    watch.look()
    assert seen == [{"ranker"}]
    assert there.why("ranker") == ("complaints", "ada")
    server.kill()
    with pytest.raises(NotReady, match="on this machine alone"):
        there.engage("shop", "no", "bob")
    watch.look()
    assert seen[1:] == [{"ranker", "shop"}]
    assert there.why("ranker") == ("complaints", "ada")  # as it was seen last
    with pytest.raises(NotReady, match="stays killed"):
        here.release("ranker")
    server.start()
    assert here.release("ranker")
    watch.look()
    assert seen[2:] == [{"shop"}]


def test_a_kill_needs_no_memory_of_a_full_redis(tmp_path: Path, server: RedisProcess) -> None:
    here, there = (KillSwitch(tmp_path / name, RedisKillFlags(server.address)) for name in ("here", "there"))
    here.prepare(["ranker", "shop"])
    with server.address.client(5.0) as client:
        client.config_set("maxmemory", 1)
    here.engage("ranker", "complaints", "ada")
    assert there.shared is not None
    assert there.shared.engaged() == {"ranker"}
    assert there.why("ranker") == ("the shared state had no memory left for the reason", "unknown")
    with pytest.raises(NotReady, match=r"on this machine alone.*maxmemory"):
        here.engage("new", "never prepared", "ada")
    with pytest.raises(NotReady, match="stays killed"):  # a release has to be noted: else it would look like a loss
        here.release("ranker")
    assert there.shared.engaged() == {"ranker"}
    with server.address.client(5.0) as client:
        client.config_set("maxmemory", 0)
    assert here.release("ranker")
    assert not there.shared.engaged()
    here.engage("ranker", "once more", "ada")
    assert there.shared.engaged() == {"ranker"}


def test_a_log_at_its_reserve_leaves_the_state_room(tmp_path: Path, server: RedisProcess) -> None:
    now, stopped, clock = 1_000_000, "stops at a reserve of 16 MiB.*weights and kills", MillisecondClock(0)
    log = RedisTrafficLog(RedisAddress(f"{server.address.url}?db=1"), IDS, WINDOW_MS, clock=clock)
    store, kill = RedisControlStore(server.address), KillSwitch(tmp_path, RedisKillFlags(server.address))
    lead = RedisLead(server.address, "a", clock, 60.0)
    endpoint = store.put_endpoint(Endpoint(name="ranker", stable=NEW, candidate=NEW), WHO)
    kept: list[str] = []
    with server.client() as client:
        client.config_set("maxmemory", 34 << 20)

        def fill(predictions: int) -> None:
            for _ in range(predictions):
                prediction_id = IDS.new(now)
                log.append_predictions([sample(prediction_id, now, 20_000)])
                kept.append(prediction_id)

        old = IDS.new(1)
        log.append_predictions([sample(old, 1)])
        log.append_feedback([FeedbackEntry(old, (), [Outcome(0, 1.0, final=True)], exposed_all=True)], 2)
        assert log.join(2 * WINDOW_MS)
        with pytest.raises(LogFull, match=stopped):
            fill(1000)
        clicks = [FeedbackEntry(i, (), [Outcome(0, 1.0, final=True)], exposed_all=True) for i in kept[:2]]
        assert log.append_feedback(clicks[:1], now)[0].outcomes == (ACCEPTED,)
        for number in range(9):  # others write, too
            client.set(f"other-{number}", bytes(1 << 20))
        clock.now += 1000
        with pytest.raises(LogFull, match="stops at a reserve of 8 MiB"):
            log.append_feedback(clicks, now)
        with pytest.raises(LogFull):
            log.join(now + WINDOW_MS)
        assert log.retain(now).predictions == 1

        store.put_endpoint(endpoint.model_copy(update={"weight": 25}), WHO)
        assert store.endpoint("ranker").weight == 25
        kill.engage("ranker", "complaints", "ada")
        assert kill.why("ranker") == ("complaints", "ada")
        assert lead.hold()
        assert lead.hold()

        client.config_set("maxmemory", 100 << 20)
        clock.now += 1000
        fill(3)
        assert log.append_feedback(clicks, now)[1].outcomes == (ACCEPTED,)
    assert set(log.records(kept)) == set(kept)
    log.close()


def test_status_of_other_machines_lies_beside_ones_own(tmp_path: Path, server: RedisProcess) -> None:
    clock = MillisecondClock()
    folders = {node: tmp_path / node for node in ("a", "b")}
    for node, folder in folders.items():
        write_status(folder, "lane-0", process=f"lane of {node}", time_ms=clock.now)
    relays = {
        node: Relay(server.address, folder, node, clock, name="lane-0", receive=True)
        for node, folder in folders.items()
    }
    for _ in range(2):
        for relay in relays.values():
            relay.step()
    seen = read(folders["a"], clock.now).lanes
    assert {n: lane.status.process for n, lane in seen.items()} == {"lane-0": "lane of a", "lane-0@b": "lane of b"}
    assert seen["lane-0@b"].fresh
    clock.now += 120_000
    write_status(folders["a"], "lane-0", process="lane of a", time_ms=clock.now)
    relays["a"].step()
    assert set(read(folders["a"], clock.now).all()) == {"lane-0"}, "a machine that is gone is forgotten"


def test_a_key_used_at_one_control_process_is_known_at_another(server: RedisProcess) -> None:
    first, second = (RedisKeys(server.address, kept_ms=60_000) for _ in range(2))
    assert first.take("ada", "k", "promote", 1) is None
    assert second.take("ada", "k", "promote", 2) == ("promote", None)
    first.answer("ada", "k", '{"weight": 5}')
    assert second.take("ada", "k", "abort", 3) == ("promote", '{"weight": 5}')
    assert second.take("bob", "k", "abort", 3) is None
    second.free("bob", "k")
    assert first.take("bob", "k", "pause", 4) is None
    server.kill()
    with pytest.raises(NotReady):
        first.take("ada", "k2", "promote", 5)


def test_machines_share_one_secret(tmp_path: Path, server: RedisProcess) -> None:
    first = agree_on_secret(server.address, tmp_path / "a.key")
    assert agree_on_secret(server.address, tmp_path / "b.key") == first == (tmp_path / "b.key").read_bytes()
    (tmp_path / "c.key").write_bytes(b"x" * 32)
    with pytest.raises(InvalidInput, match="start with a new home"):
        agree_on_secret(server.address, tmp_path / "c.key")
    server.kill()
    assert agree_on_secret(server.address, tmp_path / "a.key") == first
    with pytest.raises(NotReady):
        agree_on_secret(server.address, tmp_path / "d.key")


def test_another_control_process_takes_over_and_a_sign_out_counts_at_both(tmp_path: Path, server: RedisProcess) -> None:
    children, ports = {}, {name: free_port() for name in ("a", "b")}
    _, token = TokenStore(tmp_path / "tokens.json").create("ann", Role.OPERATOR, 1)
    for name in ("a", "b"):
        home = tmp_path / name
        home.mkdir(mode=0o700)
        shutil.copy(tmp_path / "tokens.json", home)  # of the installation, as its operator hands it out
        config = {
            "home": str(home),
            "listen": {"grpc_port": 0, "http_port": ports[name], "admin_port": 0},
            "state": {"url": server.address.url, "node": name, "lease": "1s"},
            "traffic": {"url": server.address.url + "?db=1"},
        }
        (home / "baton.yaml").write_text(yaml.safe_dump(config))
        children[name] = subprocess.Popen(
            [sys.executable, "-m", "serving.cli.main", "process", "control", "--config", str(home / "baton.yaml")]
        )

    def leaders() -> list[str]:
        return [
            name
            for name in children
            if (control := read(tmp_path / name / "run" / "status", SystemClock().wall_ms()).control)
            and control.status.leads
        ]

    def other(name: str) -> Path:
        return tmp_path / ("b" if name == "a" else "a") / "run" / "status"

    try:
        until(lambda: len(leaders()) == 1 and f"control@{leaders()[0]}" in read(other(leaders()[0]), 0).controls)
        first = leaders()[0]
        with httpx.Client(trust_env=False) as http:

            def who(name: str, cookie: str) -> int:
                http.cookies.clear()
                return http.get(
                    f"http://127.0.0.1:{ports[name]}/api/v1/endpoints", headers={"cookie": cookie}
                ).status_code

            def signed_in(name: str, cookie: str = "") -> str:
                http.cookies.clear()
                sent = {"cookie": cookie} if cookie else {}
                answer = http.post(f"http://127.0.0.1:{ports[name]}/login", data={"token": token}, headers=sent)
                return answer.headers["set-cookie"].partition(";")[0]

            def answers(name: str) -> bool:
                with contextlib.suppress(httpx.TransportError):
                    return http.get(f"http://127.0.0.1:{ports[name]}/healthz").status_code == 200
                return False

            until(lambda: all(map(answers, ports)))
            cookie = signed_in("a")
            assert [who(name, cookie) for name in ports] == [200, 200]
            assert cookie.partition("=")[2].encode() not in b"".join(map(server.client().dump, server.client().keys()))
            another = signed_in("a", cookie)  # which ends the one before
            assert who("a", cookie) == 401
            until(lambda: who("b", cookie) == 401, 2.0)
            assert [who(name, another) for name in ports] == [200, 200]
        os.kill(children[first].pid, signal.SIGSTOP)  # it does not know what it misses
        second = "b" if first == "a" else "a"
        until(lambda: second in leaders())
        os.kill(children[first].pid, signal.SIGCONT)
        until(lambda: leaders() == [second])
        os.kill(children[second].pid, signal.SIGKILL)
        children.pop(second).wait()
        until(lambda: leaders() == [first])
    finally:
        for child in children.values():
            child.terminate()
        codes = [child.wait(60) for child in children.values()]
    assert codes == [0]

"""A state that was emptied, replaced or removed is no order: nothing is read from it or written to it until it is back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from clocks import MillisecondClock
from installation import WHO
from redis_process import RedisProcess
from traffic_samples import IDS, WINDOW_MS, sample

from pipeline.clock import SystemClock
from pipeline.errors import Conflict, InvalidInput, NotReady
from pipeline.redis.address import RedisAddress
from pipeline.traffic.log import ACCEPTED, FeedbackEntry, Outcome
from pipeline.traffic.redis.log import RedisTrafficLog
from serving.admin.answers import CacheWarming
from serving.admin.idempotency import IdempotencyCache
from serving.admin.requests import EndpointName
from serving.config import Config
from serving.rollout.identity import StateLost
from serving.rollout.routing import ArmSpec, Endpoint
from serving.rollout.spec import Rollout
from serving.rollout.state import Phase, begin
from serving.rollout.store import ControlStore
from serving.wiring.backup import back_up
from serving.wiring.registry import open_registry
from serving.wiring.state import (
    installation_secret,
    open_control_store,
    open_keys,
    open_kill_switch,
    open_lead,
    open_snapshot,
)
from serving.wiring.state_restore import adopt_state, restore_state, state_condition

DURABLE = ("--appendonly", "yes", "--maxmemory-policy", "noeviction")
NEW = ArmSpec(bundle="new", version=1)
WARMED = CacheWarming(name="x", running=False, total=1, written=1, seconds=0.5, error="", loaded=[{"rows": 1}])
SPEC = Rollout.parse(
    "{endpoint: ranker, candidate: {bundle: new}, guards: {}, "
    "steps: [{shadow: true}, {weight: 10, bias_below: 0.1}, {weight: 100, bias_below: 0.02}]}"
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisProcess]:
    with RedisProcess(tmp_path / "redis", *DURABLE) as started:
        yield started


@pytest.fixture(params=["redis", "file"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Config:
    url = request.getfixturevalue("server").address.url if request.param == "redis" else ""
    return config_of(tmp_path / "home", url)


def config_of(home: Path, url: str) -> Config:
    endpoints = {"ranker": {"stable": {"bundle": "old"}, "candidate": {"bundle": "new"}}}
    return Config.model_validate({"home": home, "state": {"url": url}, "endpoints": endpoints})


def lived(config: Config, killed: str = "") -> ControlStore:
    """A store with an endpoint at weight 25 and a rollout, which this home remembers."""
    installation_secret(config)
    store = open_control_store(config)
    endpoint = Endpoint(name="ranker", stable=ArmSpec(bundle="old"), candidate=NEW, weight=25.0)
    stored = store.start_rollout(SPEC, begin(SPEC, 1, 1, 0), store.put_endpoint(endpoint, WHO), WHO)
    store.put_sums(stored.id, b"sums")
    store.keep_setting("retired", {"new/7": "ada: it burns"})
    switch = open_kill_switch(config)
    if killed:
        switch.engage(killed, "complaints", "ada")
    if switch.shared is not None:
        switch.shared.engaged()
    open_snapshot(config).keep(store.document(), {} if switch.shared is None else switch.shared.known)
    return store


def empty(config: Config) -> None:
    if config.state.url:
        with RedisAddress(config.state.url).client(5.0) as client:
            client.flushall()
    else:
        for path in config.home.glob("control.db*"):
            path.unlink()


def restore(config: Config, **how: object) -> list[tuple[str, str, str]]:
    return restore_state(config, SystemClock(), "ada", "a test", **how).back  # type: ignore[arg-type]


def test_what_was_emptied_is_lost_for_who_has_it_open_and_for_who_opens_it_and_comes_back(config: Config) -> None:
    store = lived(config)
    before = store.document()
    empty(config)
    for each in (store, open_control_store(config)):
        for use in (each.data_version, each.endpoints, each.document, lambda each=each: each.note("x", WHO, {})):
            with pytest.raises(StateLost, match="baton state restore"):
                use()
    assert state_condition(config).condition == ("empty" if config.state.url else "gone")
    back = restore(config)
    assert ("endpoint", "ranker", "stable old:newest, candidate new:1 at weight 25") in back
    after = store.document()  # the process that had it open goes on by itself
    assert (after.identity, after.endpoints, after.settings) == (before.identity, before.endpoints, before.settings)
    assert after.version > before.version
    (rollout,) = after.rollouts
    assert rollout.state.phase == Phase.PAUSED
    assert rollout.state.step == before.rollouts[0].state.step
    (entry,) = store.audit()
    assert (entry.verb, entry.actor, entry.seq) == ("restore_state", "ada", before.audit_seq + 1)
    with pytest.raises(Conflict, match="nothing to restore"):
        restore(config)
    assert state_condition(config).condition == "here"


def test_a_state_from_a_backup_has_its_audit_and_its_sums(config: Config, tmp_path: Path) -> None:
    store = lived(config)
    back_up(config, tmp_path / "none.yaml", tmp_path / "backup", SystemClock())
    verbs = [entry.verb for entry in store.audit()]
    (rollout,) = store.rollouts()
    empty(config)
    restore(config, backup=tmp_path / "backup")
    assert [entry.verb for entry in store.audit()] == [*verbs, "restore_state"]
    assert store.sums(rollout.id) == b"sums"


def test_a_state_from_the_configuration_has_its_endpoints_at_weight_zero(config: Config) -> None:
    store = lived(config)
    empty(config)
    restore(config, configuration=True)
    endpoint = store.endpoint("ranker")
    assert (endpoint.weight, endpoint.stable.bundle) == (0.0, "old")
    assert not store.rollouts()


def test_a_state_of_another_installation_is_left_alone_until_somebody_chooses(tmp_path: Path, config: Config) -> None:
    store = lived(config)
    mine = store.document().identity
    if config.state.url:
        with RedisAddress(config.state.url).client(5.0) as client:
            client.flushall()
        other = lived(config_of(tmp_path / "other", config.state.url))
    else:
        other = lived(config_of(tmp_path / "other", ""))
        empty(config)
        other.close()
        (tmp_path / "other" / "control.db").rename(config.control_db)
    with pytest.raises(StateLost, match="another installation's"):
        store.endpoints()
    with pytest.raises(StateLost, match="another installation's"):
        store.put_endpoint(Endpoint(name="ranker", stable=NEW), WHO)
    assert installation_secret(config) == config.secret.read_bytes()  # whatever that one holds
    with pytest.raises(Conflict, match="--replace"):
        restore(config)
    _, theirs = adopt_state(config, SystemClock(), "ada", "it is the right one")
    assert theirs != mine
    assert store.endpoint("ranker").weight == 25  # the process that had it open follows
    assert store.audit()[-1].verb == "adopt_state"


def test_the_lead_of_an_emptied_redis_is_none_and_tokens_never_come_twice(tmp_path: Path, server: RedisProcess) -> None:
    config = config_of(tmp_path / "home", server.address.url)
    store, lead = lived(config), open_lead(config, MillisecondClock(0))
    assert lead.hold()
    token = lead.token
    assert token is not None
    open_snapshot(config).keep(store.document(), {})
    empty(config)
    assert not lead.hold()
    with store.fenced(token), pytest.raises(StateLost):
        store.note("x", WHO, {})
    restore(config)
    with store.fenced(token), pytest.raises(NotReady, match="another control process has the lead"):
        store.note("x", WHO, {})  # what an old leader still writes is refused, as before
    assert lead.hold()
    assert lead.token is not None
    assert lead.token > token


def test_a_killed_endpoint_stays_killed_through_every_loss_until_it_is_released(
    tmp_path: Path, server: RedisProcess
) -> None:
    config = config_of(tmp_path / "home", server.address.url)
    lived(config, killed="ranker")
    here, there = open_kill_switch(config), open_kill_switch(config_of(tmp_path / "second", server.address.url))
    assert here.shared is not None
    assert there.shared is not None
    assert here.shared.engaged() == there.shared.engaged() == {"ranker"}
    for lose in (lambda c: c.delete("control:killed"), lambda c: c.flushall()):
        with server.client() as client:
            lose(client)
        again = open_kill_switch(config)  # a process that starts now knows it from the home
        for switch in (here, there, again):
            assert switch.shared is not None
            assert switch.shared.engaged() == {"ranker"}
            assert switch.why("ranker") == ("complaints", "ada")
    here.engage("shop", "burns too", "ada")  # an emptied Redis carries a kill to the others
    assert there.shared.engaged() == {"ranker", "shop"}
    assert ("kill switch", "ranker", "engaged by ada: complaints") in restore(config)
    here.prepare()
    assert here.shared.engaged() == {"ranker", "shop"}
    assert here.release("ranker")
    assert there.shared.engaged() == {"shop"}


def test_an_idempotency_key_is_not_taken_on_a_lost_state(config: Config) -> None:
    lived(config)
    keys = open_keys(config)
    assert keys.take("ann", "k", "d", 0) is None
    empty(config)
    with pytest.raises(NotReady, match=r"not the one that this home knows|is gone"):
        keys.take("ann", "k", "d", 0)
    assert not config.control_db.exists()
    cache = IdempotencyCache(keys, MillisecondClock(0))
    restore(config)
    done: list[int] = []
    for _ in range(2):
        cache.run("ann", "again", "v", EndpointName(name="a"), CacheWarming, lambda: done.append(1) or WARMED)  # type: ignore[func-returns-value]
        empty(config)
        restore(config)
    assert done == [1], "what this process has carried out it knows without its store"


def test_a_registry_starts_from_what_the_home_knows(config: Config) -> None:
    lived(config, killed="ranker")
    empty(config)
    registry = open_registry(config, SystemClock())
    registry._look()  # of the home, before anything is asked
    assert registry.snapshot.endpoints["ranker"].endpoint.weight == 25
    registry._look()
    registry._kill_watch.look()
    away = registry.state_away()
    assert away is not None
    assert away.lost
    assert registry.snapshot.endpoints["ranker"].endpoint.weight == 25
    assert registry.snapshot.endpoints["ranker"].killed
    if config.state.url:
        config = config.model_copy(update={"state": config.state.model_copy(update={"url": "unix:///nowhere.sock"})})
        registry = open_registry(config, SystemClock())  # nor does it need one that answers
        registry._look()
        registry._look()
        assert registry.snapshot.endpoints["ranker"].endpoint.weight == 25


def test_an_endpoint_that_has_vanished_is_served_all_the_same(tmp_path: Path, server: RedisProcess) -> None:
    config = config_of(tmp_path / "home", server.address.url)
    store = lived(config)
    registry = open_registry(config, SystemClock())
    registry._look()
    assert registry.state_away() is None
    with server.client() as client:
        client.delete("control:endpoints")
    store.keep_setting("x", {})  # so that lanes read again
    registry._look()
    away = registry.state_away()
    assert away is not None
    assert "has no endpoint ranker any more" in away.reason
    assert registry.snapshot.endpoints["ranker"].endpoint.weight == 25


def test_an_emptied_traffic_log_is_made_again_and_counts_on(server: RedisProcess) -> None:
    log = RedisTrafficLog(server.address, IDS, WINDOW_MS)
    now = log.now_ms()

    def learn() -> int:
        prediction_id = IDS.new(now)
        log.append_predictions([sample(prediction_id, now)])
        clicks = [FeedbackEntry(prediction_id, (), [Outcome(0, 1.0, final=True)], exposed_all=True)]
        assert log.append_feedback(clicks, now)[0].outcomes == (ACCEPTED,)
        assert log.join(now + 2 * WINDOW_MS)
        return log.stats(now).last_seq

    place = learn()
    log.commit_position("worker", place)
    with server.client() as client:
        for lose in (client.flushall, lambda: client.xgroup_destroy("traffic:predictions", "join")):
            lose()
            assert log.join(now) == 0, "the join goes on"
            assert log.position("worker") in (0, place)
            last = learn()
            assert [entry.seq for entry in log.labelled(place)][-1] == last > place, "no reader waits for ever"
            assert log.stats(now).labelled_entries < 4
    assert RedisTrafficLog(server.address, IDS, WINDOW_MS).join(now) == 0  # it can be opened anew


def test_a_damaged_identity_is_named(tmp_path: Path) -> None:
    config = config_of(tmp_path / "home", "")
    lived(config).close()
    config.state_identity.write_text("")
    with pytest.raises(InvalidInput, match=r"state/identity is damaged.*baton state adopt"):
        open_control_store(config)
    adopt_state(config, SystemClock(), "ada", "mended")
    assert open_control_store(config).endpoint("ranker").weight == 25

"""Idempotency keys, resource versions, and pages of lists."""

from __future__ import annotations

import base64
import json
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clocks import HandClock
from doors import Grpc, Refused, Rest
from fastapi.testclient import TestClient
from operated import ME, Operated, admin_port, http_port, operated, rollout_file

from pipeline.errors import Conflict, InvalidInput
from serving.admin import VERBS
from serving.admin.answers import CacheWarming
from serving.admin.door import request_of
from serving.admin.idempotency import IdempotencyCache
from serving.admin.requests import EndpointName
from serving.state.idempotency import SqliteKeys

DONE = CacheWarming(name="x", running=False, total=1, written=1, seconds=0.5, error="", loaded=[{"rows": 1}])


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Operated]:
    with operated(tmp_path / "home") as made:
        yield made


def keys(folder: Path, kept: int = 1000) -> SqliteKeys:
    return SqliteKeys(folder / "control.db", kept=kept, kept_ms=24 * 3600 * 1000)


def call(world: Operated, verb: str, key: str = "", **fields: Any) -> Any:
    asked = VERBS[verb]
    given = {"reason": "a test", **fields} if asked.mutating else fields
    return world.admin.call(asked, request_of(asked, given), ME, key)


# --- idempotency keys ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("door", ["REST", "gRPC"])
def test_the_same_call_twice_happens_once(world: Operated, door: str) -> None:
    with (http_port if door == "REST" else admin_port)(world) as port:
        way = Rest(port, "ann", key="k-1") if door == "REST" else Grpc(port, "ann", key="k-1")
        first = way.do("rollouts.start", file=rollout_file(), reason="new")
        assert way.do("rollouts.start", file=rollout_file(), reason="new") == first
        with pytest.raises(Refused, match="another request") as other:
            way.do("rollouts.start", file=rollout_file(), reason="another")
        assert (other.value.kind, other.value.field) == ("InvalidInput", "idempotency-key")
        way.close()
    assert len(world.made.store.rollouts()) == 1
    call(world, "endpoints.kill", "k-1", name="ranker")  # of another caller it is another key
    assert world.kill.engaged("ranker")


def test_a_refused_call_leaves_its_key_free(world: Operated) -> None:
    with pytest.raises(Conflict):
        call(world, "endpoints.release", "k", name="ranker")
    call(world, "endpoints.kill", "other", name="ranker")
    assert not call(world, "endpoints.release", "k", name="ranker").killed


@pytest.mark.parametrize("key", ["ä", "a b", "\n", "x" * 201])
def test_keys_are_plain(world: Operated, key: str) -> None:
    with pytest.raises(InvalidInput, match="idempotency-key"):
        call(world, "endpoints.kill", key, name="ranker")
    assert not world.kill.engaged("ranker")


def test_keys_outlive_a_restart_and_what_was_cut_off_is_not_done_again(tmp_path: Path) -> None:
    path, clock, request = tmp_path / "control.db", HandClock(), EndpointName(name="a")
    cache = IdempotencyCache(keys(tmp_path), clock)
    assert cache.run("ann", "k", "v", request, CacheWarming, lambda: DONE) == DONE
    cache.close()
    with sqlite3.connect(path) as database:  # as a crash in the middle leaves it
        database.execute("INSERT INTO answers SELECT caller, 'cut', digest, NULL, time_ms FROM answers")
    database.close()
    again = IdempotencyCache(keys(tmp_path), clock)
    assert again.run("ann", "k", "v", request, CacheWarming, _never) == DONE
    with pytest.raises(Conflict, match="cut off"):
        again.run("ann", "cut", "v", request, CacheWarming, _never)
    again.close()


def test_the_second_of_two_at_once_is_told_to_wait(tmp_path: Path) -> None:
    cache, request = IdempotencyCache(keys(tmp_path), HandClock()), EndpointName(name="a")
    begun, go = threading.Event(), threading.Event()

    def slow() -> CacheWarming:
        begun.set()
        assert go.wait(60)
        return DONE

    first = threading.Thread(target=lambda: cache.run("ann", "k", "v", request, CacheWarming, slow))
    first.start()
    assert begun.wait(60)
    with pytest.raises(Conflict, match="under way"):
        cache.run("ann", "k", "v", request, CacheWarming, _never)
    go.set()
    first.join(60)
    assert cache.run("ann", "k", "v", request, CacheWarming, _never) == DONE
    cache.close()


def test_keys_are_kept_for_a_day_and_in_bounds(tmp_path: Path) -> None:
    clock, request = HandClock(), EndpointName(name="a")
    cache = IdempotencyCache(keys(tmp_path, kept=3), clock)
    for number in range(10):
        clock.now += 1
        cache.run("ann", f"k{number}", "v", request, CacheWarming, lambda: DONE)
    rows = sqlite3.connect(tmp_path / "control.db").execute("SELECT key FROM answers ORDER BY time_ms").fetchall()
    assert rows == [("k7",), ("k8",), ("k9",)]
    clock.now += 24 * 3600 + 1
    done = []
    cache.run("ann", "k9", "v", request, CacheWarming, lambda: done.append(1) or DONE)
    assert done
    cache.close()


def _never() -> CacheWarming:
    raise AssertionError("it was done again")


# --- resource versions -----------------------------------------------------------------------------------------------


def test_an_etag_guards_a_write(world: Operated) -> None:
    http = TestClient(world.app(), base_url="http://127.0.0.1:8000")
    read = http.get("/api/v1/endpoints/ranker")
    tag = read.headers["etag"]
    assert tag == f'"{read.json()["resource_version"]}"'
    arms = {"stable": {"bundle": "teacher"}, "candidate": {"bundle": "student"}, "reason": "a test"}
    written = http.put("/api/v1/endpoints/ranker", json=arms, headers={"if-match": tag})
    assert (written.status_code, written.headers["etag"] != tag) == (200, True)
    late = http.put("/api/v1/endpoints/ranker", json=arms, headers={"if-match": tag})
    assert (late.status_code, late.json()["error"]["kind"]) == (412, "StaleVersion")
    for wrong in ("5", '"five"', "*", 'W/"5"'):
        refused = http.put("/api/v1/endpoints/ranker", json=arms, headers={"if-match": wrong})
        assert (refused.status_code, refused.json()["error"]["field"]) == (400, "if-match")
    differs = http.put("/api/v1/endpoints/ranker", json={**arms, "expected": 99}, headers={"if-match": tag})
    assert differs.json()["error"]["field"] == "expected"


@pytest.mark.parametrize("verb", ["pause", "promote", "set_weight", "abort"])
def test_a_late_operator_changes_nothing(world: Operated, verb: str) -> None:
    begun = call(world, "rollouts.start", file=rollout_file())
    call(world, "rollouts.set_weight", name="ranker", weight=1, expected=begun.resource_version)
    more = {"weight": 9} if verb == "set_weight" else {}
    with admin_port(world) as port:
        way = Grpc(port)
        with pytest.raises(Refused) as late:
            way.do(f"rollouts.{verb}", name="ranker", expected=begun.resource_version, reason="late", **more)
        way.close()
    assert late.value.kind == "StaleVersion"
    assert call(world, "rollouts.get", name="ranker").weight == 1


# --- pages -----------------------------------------------------------------------------------------------------------

LISTS = {"endpoints.list": "endpoints", "models.list": "models", "rollouts.list": "rollouts", "audit.list": "entries"}


@pytest.fixture
def full(world: Operated) -> Operated:
    """At least three of everything."""
    for number in range(3):
        world.clock.now += 1
        call(world, "endpoints.set", name=f"shop{number}", stable={"bundle": "teacher"})
        begun = call(world, "rollouts.start", file=rollout_file())
        call(world, "rollouts.abort", name=begun.id)
        world.made.publish("student", 3 + number)
    return world


@pytest.mark.parametrize("verb", LISTS)
@pytest.mark.parametrize("size", [1, 2, 1000])
def test_pages_make_up_the_list(full: Operated, verb: str, size: int) -> None:
    whole = getattr(call(full, verb, page_size=1000), LISTS[verb])
    found: list[Any] = []
    token = ""
    while True:
        page = call(full, verb, page_size=size, page_token=token)
        entries = getattr(page, LISTS[verb])
        assert 1 <= len(entries) <= size
        found += entries
        token = page.next_page_token
        if not token:
            break
    assert found == whole
    assert len(found) >= 3


def test_the_newest_entries_come_first_where_asked(full: Operated) -> None:
    forth = call(full, "audit.list", page_size=1000).entries
    newest = call(full, "audit.list", page_size=2, newest_first=True)
    more = call(full, "audit.list", page_size=1000, newest_first=True, page_token=newest.next_page_token)
    assert newest.entries + more.entries == forth[::-1]


@pytest.mark.parametrize("verb", LISTS)
def test_tokens_fit_only_the_list_that_gave_them(full: Operated, verb: str) -> None:
    token = call(full, verb, page_size=1).next_page_token
    digest = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))[0]
    forged = [["x"], [digest], [digest, None], [digest, True], [digest, -1], [digest, 2**70], [digest, {}, 1], {}, 7]
    others = [other for other in LISTS if other != verb]
    tokens = [base64.urlsafe_b64encode(json.dumps(f).encode()).decode().rstrip("=") for f in forged]
    tokens += [call(full, others[0], page_size=1).next_page_token, "!", "é", token + "A", token[:-2]]
    for wrong in tokens:
        with pytest.raises(InvalidInput, match="page_token"):
            call(full, verb, page_token=wrong)

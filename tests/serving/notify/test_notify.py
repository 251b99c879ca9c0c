"""Notifications against a receiver that is away, hangs, fails and comes back: each onset once, signed, with the state after it."""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from clocks import MillisecondClock
from pydantic import ValidationError

from pipeline.errors import NotReady
from serving.config import Config
from serving.config.notify import NotifyConfig
from serving.notify.delivery import Undelivered, deliver
from serving.notify.onsets import DOWN_MS, Onsets
from serving.notify.sender import GIVE_UP_MS, LONGEST_PAUSE_MS, Sender
from serving.rollout.routing import ArmSpec, Endpoint
from serving.rollout.spec import Rollout
from serving.rollout.sqlite_store import SqliteControlStore
from serving.rollout.state import Abort, Advance, AskApproval, Event, Pause, Recover, StepBack, apply, begin
from serving.rollout.store import Who
from serving.runtime.roster import ProcessState

SPEC = Rollout.parse(
    "{endpoint: ranker, candidate: {bundle: new}, steps: [{weight: 10, bias_below: 0.1}, "
    "{weight: 100, bias_below: 0.1, approve: true}], guards: {}}"
)
SECRET = {"HOOK_SECRET": "s3cret"}
ALL = ["stepped_back", "waits_for_approval", {"held_longer_than": "2h"}, "completed", "worker_down"]
HOUR_MS = 3_600_000


class Receiver:
    """A server on this machine that hangs, answers with a status, and keeps what it took with 200."""

    def __init__(self, port: int = 0) -> None:
        self.status = 200
        self.hangs = threading.Event()
        self.freed = threading.Event()
        self.tries = 0
        self.taken: list[tuple[dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.tries += 1
                body = self.rfile.read(int(self.headers["content-length"]))
                if receiver.hangs.is_set():
                    receiver.freed.wait(60)
                    return
                if receiver.status == 200:
                    receiver.taken.append(({k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(receiver.status)
                self.send_header("location", "http://127.0.0.1:9/")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook?token=x"
        threading.Thread(target=self.server.serve_forever, name="receiver", daemon=True).start()

    def close(self) -> None:
        self.freed.set()
        self.server.shutdown()
        self.server.server_close()

    def told(self) -> list[tuple[str, int]]:
        """Event and number of each notification taken."""
        return [(body["event"], body["id"]) for body in (json.loads(raw) for _, raw in self.taken)]


class Place:
    """A store with a rollout, and a receiver."""

    def __init__(self, folder: Path, receiver: Receiver) -> None:
        self.store = SqliteControlStore(folder / "control.db")
        self.clock = MillisecondClock()
        self.receiver = receiver
        self.config = NotifyConfig.model_validate(
            {"url": receiver.url, "on": ALL, "secret_env": "HOOK_SECRET", "private": True}
        )
        stable = ArmSpec(bundle="old", version=1)
        endpoint = self.store.put_endpoint(Endpoint(name="ranker", stable=stable), Who("ada", "set", 1))
        chosen = endpoint.model_copy(update={"candidate": ArmSpec(bundle="new", version=1)})
        self.id = self.store.start_rollout(SPEC, begin(SPEC, 1, self.clock.now, 0), chosen, self.who("start")).id

    def who(self, reason: str) -> Who:
        return Who("controller", reason, self.clock.now)

    def sender(self, timeout: float = 0.3) -> Sender:
        return Sender(self.store, self.config, self.clock, SECRET, timeout)

    def change(self, event: Event, reason: str = "a test") -> None:
        stored = self.store.rollout(self.id)
        state = apply(SPEC, stored.state, event, self.clock.now, 0)
        endpoint = self.store.endpoint("ranker").model_copy(update={"weight": state.weight})
        self.store.save_rollout(stored, state, endpoint, self.who(reason), event.verb)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    receiver = Receiver()
    made = Place(tmp_path, receiver)
    yield made
    receiver.close()
    made.store.close()


def test_each_onset_arrives_once_through_whatever_the_receiver_does(place: Place) -> None:
    sender, receiver = place.sender(), place.receiver
    sender.step()  # what was before is not told
    place.change(Advance())
    place.change(AskApproval(), "all its evidence is there")
    receiver.hangs.set()
    sender.step()
    assert (sender.counters["failed"], receiver.told()) == (1, [])
    sender.step()
    assert receiver.tries == 1, "the pause after a failure is kept"
    place.change(StepBack("bias"), "bias +0.3")
    receiver.hangs.clear()
    for status in (500, 302, 404):
        receiver.status = status
        place.clock.now += LONGEST_PAUSE_MS
        sender.step()
    sender = place.sender()  # a restart forgets nothing
    port = receiver.server.server_address[1]
    receiver.close()  # it is gone for a while
    sender.step()
    assert sender.counters["failed"] == 1
    back = place.receiver = Receiver(port)
    try:
        place.clock.now += LONGEST_PAUSE_MS
        sender.step()
        sender.step()
        place.sender().step()  # another restart sends nothing twice
        audit = {entry.verb: entry for entry in place.store.audit("ranker")}
        asked, stepped = audit["ask_approval"], audit["step_back"]
        assert back.told() == [("waits_for_approval", asked.seq), ("stepped_back", stepped.seq)]
        headers, raw = back.taken[1]
        time_s, _, signature = headers["baton-signature"].removeprefix("t=").partition(",v1=")
        wanted = hmac.new(b"s3cret", time_s.encode() + b"." + raw, hashlib.sha256).hexdigest()
        assert (signature, headers["baton-delivery"]) == (wanted, str(stepped.seq))
        said = json.loads(raw)
        assert (said["reason"], said["weight"], said["state"]["phase"]) == ("bias +0.3", 0, "degraded")
        assert said["state"] == stepped.after["state"]
    finally:
        back.close()


def test_what_nobody_asked_for_is_not_told_and_what_is_too_old_is_given_up(place: Place) -> None:
    sender, receiver = place.sender(), place.receiver
    sender.step()
    place.change(Advance())
    place.change(Pause())
    place.change(StepBack("bias"))
    receiver.status = 500
    sender.step()
    place.clock.now += GIVE_UP_MS
    sender.step()
    assert (sender.counters["failed"], sender.counters["given up"]) == (2, 1)
    receiver.status = 200
    place.change(Abort())
    sender.step()
    assert receiver.told() == []


def test_a_state_that_is_away_after_a_delivery_sends_nothing_twice(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender, other = place.sender(), place.sender()
    sender.step()
    place.change(Advance())
    place.change(StepBack("bias"))

    def away(*_: object) -> None:
        raise NotReady("the state is away")

    with monkeypatch.context() as patched:
        patched.setattr(place.store, "keep_setting", away)
        with pytest.raises(NotReady):
            sender.step()
    sender.step()
    other.step()  # of a process that leads from now on
    place.change(Recover())
    place.change(Advance())
    place.change(StepBack("bias"))
    other.step()
    sender.step()  # and the first one again
    assert [event for event, _ in place.receiver.told()] == ["stepped_back"] * 2


def test_without_its_secret_nothing_is_sent(place: Place) -> None:
    sender = Sender(place.store, place.config, place.clock, {}, 0.3)
    sender.step()
    place.change(Advance())
    place.change(StepBack("bias"))
    sender.step()
    assert (place.receiver.tries, sender.counters["failed"]) == (0, 1)


def test_a_long_stay_and_a_dead_worker_are_onsets_of_their_own(place: Place) -> None:
    sender, receiver = place.sender(), place.receiver
    sender.step()

    def pass_(worker: str) -> None:
        Onsets(place.store, [place.config], place.clock)  # nothing is kept in memory but the time of the worker's end
        onsets.step([ProcessState(name="worker", state=worker, why="killed")])  # type: ignore[arg-type]
        sender.step()

    onsets = Onsets(place.store, [place.config], place.clock)
    for worker in ("alive", "gone", "alive", "gone", "gone", "gone"):
        pass_(worker)
        place.clock.now += DOWN_MS - 1
    place.clock.now += 2 * HOUR_MS
    for _ in range(3):
        pass_("gone")
        onsets = Onsets(place.store, [place.config], place.clock)  # a restart
    assert [event for event, _ in receiver.told()] == ["worker_down", "held_longer_than"]
    place.change(Advance())
    place.clock.now += 3 * HOUR_MS
    pass_("alive")
    pass_("alive")
    place.clock.now += DOWN_MS
    pass_("gone")
    place.clock.now += DOWN_MS
    pass_("gone")
    assert [event for event, _ in receiver.told()][2:] == ["held_longer_than", "worker_down"]
    held = json.loads(receiver.taken[2][1])
    assert (held["endpoint"], held["weight"], held["state"]["step"]) == ("ranker", 10, 1)
    assert Recover.verb not in {entry.verb for entry in place.store.audit()}


def test_addresses_of_this_machine_are_refused_unless_allowed(place: Place) -> None:
    for host in ("127.0.0.1", "localhost", "10.0.0.1", "169.254.169.254", "[::1]", "0.0.0.0"):
        with pytest.raises(Undelivered, match="of this machine or of a private network"):
            deliver(f"http://{host}:9/", b"{}", {}, private=False)
    assert place.receiver.tries == 0
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(Undelivered, match="ConnectError"):
            deliver(f"http://127.0.0.1:{taken.getsockname()[1]}/", b"{}", {}, private=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"on": ["exploded"]}, "'exploded' is none of stepped_back"),
        ({"on": ["held_longer_than"]}, "held_longer_than: 2h"),
        ({"on": [{"held_longer_than": "soon"}]}, "'soon' is not a duration"),
        ({"on": []}, "at least 1"),
        ({"url": "ftp://example.com/"}, "must be http:// or https://"),
        ({"url": "https://user:pw@example.com/"}, "must not hold a user or a password"),
        ({"secret_env": "not a name"}, "not the secret itself"),
    ],
)
def test_wrong_receivers_are_refused(changes: dict[str, Any], message: str) -> None:
    good = {"url": "https://example.com/hook", "on": ["completed"], "secret_env": "SECRET"}
    Config.model_validate({"notify": [good]})
    with pytest.raises(ValidationError, match=message):
        Config.model_validate({"notify": [{**good, **changes}]})

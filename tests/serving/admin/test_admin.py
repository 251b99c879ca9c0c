"""Edge cases of admin verbs: kill switch and release, damaged versions, a long audit, foreign files."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from installation import WHO
from operated import ME

from pipeline.clock import SystemClock
from pipeline.errors import Conflict, InvalidInput, NotFound
from pipeline.schema import FieldSpec, Schema
from serving.admin import VERBS, Admin
from serving.admin.door import request_of
from serving.config import ArmConfig, Config, EndpointConfig
from serving.config.principal import Principal, Role
from serving.rollout.controller import RolloutController
from serving.rollout.state import Abort
from serving.rollout.store import Who
from serving.runtime.status import read
from serving.wiring.backends import open_backends
from serving.wiring.observe import Observer
from transfer.bundles.publish import save
from transfer.click_model.model import ClickModel

ROLLOUT = """
endpoint: ranker
candidate: {bundle: student}
steps: [{shadow: true, min_positives: 100}, {weight: 5, bias_below: 0.05}, {weight: 100, bias_below: 0.02}]
guards: {}
"""


class Place:
    """An installation without processes."""

    def __init__(self, home: Path, endpoints: dict[str, EndpointConfig]) -> None:
        self.config = Config(home=home, endpoints=endpoints)
        self.clock = SystemClock()
        self.backends = open_backends(self.config)
        self.store, self.kill = self.backends.store, self.backends.kill
        self.repository, self.log = self.backends.repository, self.backends.traffic
        observer = Observer(self.config.status, self.repository, self.kill, self.clock)
        self.controller = RolloutController(
            self.store, self.log, self.clock, observer, observer.schema, lambda *_: None
        )
        self.admin = Admin(self.config, self.backends, self.controller, self.clock, threading.RLock())

    def call(self, verb: str, **fields: Any) -> Any:
        asked = VERBS[verb]
        given = {"reason": "a test", **fields} if asked.mutating else fields
        return self.admin.call(asked, request_of(asked, given), ME)

    def close(self) -> None:
        self.admin.close()
        self.backends.close()


def pair(candidate: str = "student") -> EndpointConfig:
    return EndpointConfig(stable=ArmConfig(bundle="teacher"), candidate=ArmConfig(bundle=candidate))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    schema = Schema(fields=(FieldSpec(name="user", role="context"), FieldSpec(name="item", role="candidate")))
    made = Place(tmp_path, {"ranker": pair(), "broken": pair("absent")})
    for name, arch in (("teacher", "fm"), ("student", "dnn")):
        save(ClickModel.create(schema, arch, 4, seed=0), made.repository, name)
    made.admin.endpoints.bootstrap()
    yield made
    made.close()


def test_an_endpoint_that_cannot_be_made_does_not_hold_back_the_others(place: Place) -> None:
    assert [e.name for e in place.call("endpoints.list").endpoints] == ["ranker"]
    schema = place.repository.open("student").manifest.model_schema
    save(ClickModel.create(schema, "lr", 4, seed=0), place.repository, "absent")
    place.admin.endpoints.bootstrap()
    assert [e.name for e in place.call("endpoints.list").endpoints] == ["broken", "ranker"]


def test_release_of_what_is_not_killed_moves_no_traffic(place: Place) -> None:
    arms = {"stable": {"bundle": "teacher"}, "candidate": {"bundle": "student"}}
    place.call("endpoints.set", name="ranker", **arms, weight=40, reason="by hand")
    with pytest.raises(Conflict, match="not killed"):
        place.call("endpoints.release", name="ranker", reason="a slip")
    assert place.call("endpoints.get", name="ranker").weight == 40
    place.call("endpoints.kill", name="ranker", reason="trouble")
    assert place.call("endpoints.get", name="ranker").killed_reason == "trouble"
    released = place.call("endpoints.release", name="ranker", reason="over")
    assert (released.weight, released.killed, released.killed_reason) == (0, False, "")
    assert released == place.call("endpoints.get", name="ranker")


def test_no_rollout_begins_on_a_killed_endpoint(place: Place) -> None:
    place.call("endpoints.kill", name="ranker", reason="trouble")
    with pytest.raises(Conflict, match="release it first"):
        place.call("rollouts.start", file=ROLLOUT, reason="try")


@pytest.mark.parametrize("bundle", ["", "../student", "a/b", "."])
def test_a_bundle_name_is_no_path(place: Place, bundle: str) -> None:
    with pytest.raises(InvalidInput, match="not the name of a bundle"):
        place.call("endpoints.set", name="other", stable={"bundle": bundle})


def test_a_damaged_version_is_listed_with_its_fault(place: Place) -> None:
    (place.repository.path("student", "1") / "dense.onnx").unlink()
    found = {m.bundle: m for m in place.call("models.list").models}
    assert found["teacher"].servable
    assert not found["student"].servable
    assert "dense.onnx" in found["student"].fault


def test_a_rollout_begins_with_the_newest_version_that_is_whole(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(place.repository.path("student", "1"), place.repository.path("student", "2"))
    manifest = place.repository.path("student", "2") / "manifest.json"
    whole = manifest.read_text()
    manifest.write_text(whole[:-20])
    started = place.call("rollouts.start", file=ROLLOUT, reason="go")
    assert (started.candidate.bundle, started.candidate.version) == ("student", "1")
    assert "version 2 of bundle student is passed over" in caplog.text
    place.call("rollouts.abort", name=started.id, reason="again")
    manifest.write_text(whole.replace('"version": "1"', '"version": "2"'))
    table = next((manifest.parent / "tables").iterdir())
    content = bytearray(table.read_bytes())
    content[-1] ^= 1
    table.write_bytes(content)
    started = place.call("rollouts.start", file=ROLLOUT, reason="go")
    assert (started.candidate.bundle, started.candidate.version) == ("student", "1")
    assert table.name in caplog.text


def test_a_rollout_begins_with_the_version_that_is_named(place: Place) -> None:
    shutil.copytree(place.repository.path("student", "1"), place.repository.path("student", "2"))
    manifest = place.repository.path("student", "2") / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": "1"', '"version": "2"'))
    started = place.call("rollouts.start", file=ROLLOUT, reason="go", version="1")
    assert (started.candidate.version, started.refused_version) == ("1", "2")
    place.call("rollouts.abort", name=started.id, reason="again")
    assert place.call("rollouts.start", file=ROLLOUT, reason="go").candidate.version == "2"
    with pytest.raises(InvalidInput):
        place.call("rollouts.start", file=ROLLOUT, reason="go", version="newest")


def test_the_version_of_a_step_is_found_in_a_long_audit(place: Place) -> None:
    for _ in range(1100):
        place.store.put_endpoint(place.store.endpoint("ranker"), WHO)
    place.call("rollouts.start", file=ROLLOUT, reason="go")
    assert place.admin.rollouts.step_version("ranker") == "1"
    place.controller.command("ranker", Abort(), "me", "enough")
    assert place.admin.rollouts.step_version("ranker") is None


def test_foreign_status_files_do_not_stop_a_rollout(place: Place) -> None:
    status = place.config.status
    status.mkdir(parents=True)
    (status / "list.json").write_text("[1, 2]")
    (status / "half.json").write_text('{"time_ms": ')
    (status / "lane-7.json").write_text(json.dumps({"time_ms": place.clock.wall_ms()}))
    (status / "words.json").write_text(json.dumps({"time_ms": "now"}))
    statuses = read(status, place.clock.wall_ms())
    assert set(statuses.all()) == {"lane-7"}
    assert [damaged.file for damaged in statuses.damaged] == ["half.json", "list.json", "words.json"]
    place.call("rollouts.start", file=ROLLOUT, reason="go")
    assert len(place.controller.step()) == 1


def test_the_candidate_of_a_rollout_must_exist(place: Place) -> None:
    with pytest.raises(NotFound):
        place.call("rollouts.start", file=ROLLOUT.replace("student", "nobody"), reason="go")


def test_a_viewer_sees_the_names_of_tokens_and_no_ids(place: Place) -> None:
    token = {"id": "1a2b3c4d", "name": "ann", "role": "operator"}
    place.store.note("token-create", Who("root", "", 1), {"tokens": [token]})
    asked = VERBS["audit.list"]
    request = request_of(asked, {"newest_first": True})
    seen = {
        role: place.admin.call(asked, request, Principal("x", role)).entries[0].after
        for role in (Role.VIEWER, Role.OPERATOR)
    }
    assert seen[Role.OPERATOR] == {"tokens": [token]}
    assert seen[Role.VIEWER] == {"tokens": [{"name": "ann", "role": "operator"}]}

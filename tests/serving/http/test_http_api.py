"""The REST admin API over real stores: verbs, refusals, and audit entries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from handmade import SCHEMA, random_tables, write_bundle
from httpx import Response
from installation import Installation, write_status
from operated import Operated, operated, rollout_file
from prometheus_client.parser import text_string_to_metric_families

from pipeline.schema import FieldSpec, Schema
from serving.config import Config
from serving.state.kill import KillSwitch
from serving.telemetry import METRICS_DIR, Telemetry

WHO = {"x-baton-actor": "ann"}


@dataclass
class Api:
    """The application of an installation."""

    world: Operated
    http: TestClient

    @property
    def made(self) -> Installation:
        return self.world.made

    def get(self, path: str, **more: Any) -> Response:
        return self.http.get(path, **more)

    def put(self, path: str, **body: Any) -> Response:
        return self.http.put(f"/api/v1{path}", json={"reason": "a test", **body}, headers=WHO)

    def post(self, path: str, **body: Any) -> Response:
        return self.http.post(f"/api/v1{path}", json={"reason": "a test", **body}, headers=WHO)

    def audit(self) -> list[tuple[str, str, str]]:
        entries = self.get("/api/v1/audit", params={"endpoint": "ranker"}).json()["entries"]
        return [(e["verb"], e["actor"], e["reason"]) for e in entries]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with operated(tmp_path / "home") as world:
        http = TestClient(world.app(), base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
        yield Api(world, http)
        http.close()


def start(api: Api) -> dict[str, Any]:
    answer = api.post("/rollouts", file=rollout_file(), reason="new model")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def refused(answer: Response, code: int, kind: str, message: str, field: str | None = None) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["kind"]) == (code, kind), answer.text
    assert message in error["message"]
    if field is not None:
        assert error["field"] == field


# --- endpoints -------------------------------------------------------------------------------------------------------


def test_endpoints_are_listed_and_read(api: Api) -> None:
    (only,) = api.get("/api/v1/endpoints").json()["endpoints"]
    assert only == api.get("/api/v1/endpoints/ranker").json()
    assert (only["name"], only["stable"]["bundle"], only["candidate"]["bundle"]) == ("ranker", "teacher", "student")
    assert (only["weight"], only["killed"]) == (0, False)
    refused(api.get("/api/v1/endpoints/nobody"), 404, "NotFound", "nobody")


def test_an_endpoint_is_made_and_changed(api: Api) -> None:
    made = api.put("/endpoints/shop", stable={"bundle": "teacher"}, reason="first")
    assert made.json()["resource_version"] == 1
    changed = api.put(
        "/endpoints/shop", stable={"bundle": "teacher", "version": "1"}, candidate={"bundle": "student"}, weight=12.5,
        expected=1, reason="second",
    ).json()  # fmt: skip
    assert (changed["weight"], changed["stable"]["version"], changed["resource_version"]) == (12.5, "1", 2)
    assert api.made.store.endpoint("shop").weight == 12.5
    stale = api.put("/endpoints/shop", stable={"bundle": "teacher"}, expected=1)
    refused(stale, 412, "StaleVersion", "resource version 2")
    entries = api.get("/api/v1/audit", params={"endpoint": "shop"}).json()["entries"]
    assert [(e["actor"], e["reason"]) for e in entries] == [("ann", "first"), ("ann", "second")]
    assert entries[1]["before"]["endpoint"]["weight"] == 0
    assert entries[1]["after"]["endpoint"]["weight"] == 12.5


@pytest.mark.parametrize(
    ("body", "code", "kind", "message", "field"),
    [
        ({}, 400, "InvalidInput", "stable", "body.stable"),
        ({"stable": {"bundle": "teacher"}, "wieght": 5}, 400, "InvalidInput", "wieght", "body.wieght"),
        ({"stable": {"bundle": "teacher"}, "weight": 101}, 400, "InvalidInput", "weight", "body.weight"),
        ({"stable": {"bundle": "teacher"}, "weight": 5}, 400, "InvalidInput", "no candidate", "weight"),
        ({"stable": {"bundle": "teacher", "version": "newest"}}, 400, "InvalidInput", "newest", "stable"),
        ({"stable": {"bundle": ""}}, 400, "InvalidInput", "bundle", "stable"),
        ({"stable": {"bundle": "ghost"}}, 404, "NotFound", "ghost", ""),
        ({"stable": {"bundle": "teacher", "version": "9"}}, 404, "NotFound", "9", ""),
        ({"stable": {"bundle": "teacher"}, "candidate": {"bundle": "ghost"}}, 404, "NotFound", "candidate", ""),
    ],
)
def test_wrong_endpoints_are_refused_by_name(
    api: Api, body: dict[str, Any], code: int, kind: str, message: str, field: str
) -> None:
    refused(api.put("/endpoints/shop", **body), code, kind, message, field)
    assert "shop" not in api.made.store.endpoints()


@pytest.mark.parametrize("name", ["a b", ".hidden", "ä", "-x"])
def test_names_that_the_kill_switch_cannot_take_are_refused(api: Api, name: str) -> None:
    refused(api.put(f"/endpoints/{name}", stable={"bundle": "teacher"}), 400, "InvalidInput", "letters", "name")


def test_endpoints_and_bundles_share_one_namespace(api: Api) -> None:
    refused(api.put("/endpoints/teacher", stable={"bundle": "teacher"}), 400, "InvalidInput", "namespace", "name")


def test_arms_with_other_inputs_are_refused(api: Api) -> None:
    other = Schema(fields=(*SCHEMA.fields[:-1], FieldSpec(name="genres", role="candidate", kind="bag", separator=";")))
    write_bundle(api.made.repository, random_tables(1), name="stranger", schema=other)
    wrong = api.put("/endpoints/shop", stable={"bundle": "teacher"}, candidate={"bundle": "stranger"})
    refused(wrong, 400, "BundleError", "genres", "candidate")
    refused(api.post("/rollouts", file=rollout_file(candidate={"bundle": "stranger"})), 400, "BundleError", "genres")


# --- rollouts --------------------------------------------------------------------------------------------------------


def test_a_rollout_is_started_read_and_steered(api: Api) -> None:
    made = start(api)
    assert (made["phase"], made["step"], made["weight"]) == ("progressing", 0, 0)
    assert made["candidate"] == {"bundle": "student", "version": "1"}
    assert [r["id"] for r in api.get("/api/v1/rollouts").json()["rollouts"]] == [made["id"]]
    assert api.get(f"/api/v1/rollouts/{made['id']}").json()["id"] == api.get("/api/v1/rollouts/ranker").json()["id"]
    assert api.post("/rollouts/ranker/pause", reason="lunch").json()["phase"] == "paused"
    assert api.post("/rollouts/ranker/resume").json()["phase"] == "progressing"
    assert api.post("/rollouts/ranker/set-weight", weight=33, reason="by hand").json()["weight"] == 33
    assert api.get("/api/v1/endpoints/ranker").json()["weight"] == 33
    assert api.post("/rollouts/ranker/promote", full=True, force=True).json()["weight"] == 100
    assert api.post("/rollouts/ranker/undo", reason="back").json()["weight"] == 0
    refused(api.post("/rollouts/ranker/resume"), 409, "Conflict", "resume")
    assert api.audit()[1:] == [
        ("start", "ann", "new model"),
        ("pause", "ann", "lunch"),
        ("resume", "ann", "a test"),
        ("set_weight", "ann", "by hand"),
        ("promote", "ann", "a test"),
        ("undo", "ann", "back"),
    ]


def test_wrong_verbs_are_refused(api: Api) -> None:
    refused(api.post("/rollouts/ranker/pause"), 404, "NotFound", "ranker")
    made = start(api)
    refused(api.post("/rollouts/ranker/explode"), 404, "NotFound", "explode")
    refused(api.post("/rollouts/ranker/abort", reason=" "), 400, "InvalidInput", "must not be empty", "body.reason")
    refused(api.post("/rollouts/ranker/promote"), 409, "Conflict", "not met for weight 10: no mature labelled rows")
    refused(
        api.put("/endpoints/shop", stable={"bundle": "student"}, reason=""),
        400,
        "InvalidInput",
        "reason",
        "body.reason",
    )
    refused(api.post("/rollouts/ranker/set-weight"), 400, "InvalidInput", "weight", "body.weight")
    refused(api.post("/rollouts/ranker/set-weight", weight=-1), 400, "InvalidInput", "weight", "body.weight")
    refused(api.post("/rollouts/ranker/resume"), 409, "Conflict", "resume")
    refused(api.post("/rollouts/ranker/pause", expected=made["resource_version"] + 5), 412, "StaleVersion", "version")
    refused(api.post("/rollouts", file=rollout_file()), 409, "Conflict", "rollout")
    refused(api.put("/endpoints/ranker", stable={"bundle": "student"}), 409, "Conflict", "rollout")
    assert api.post("/rollouts/ranker/abort", reason="enough").json()["phase"] == "aborted"
    refused(api.post("/rollouts/ranker/abort"), 409, "Conflict", "abort")


@pytest.mark.parametrize(
    ("file", "code", "message"),
    [
        ("steps: [", 400, "mine.yaml"),
        (rollout_file(steps=[{"weight": 5}]), 400, "bias_below"),
        (rollout_file(colour="red"), 400, "colour"),
        (rollout_file(endpoint="nobody"), 404, "nobody"),
        (rollout_file(candidate={"bundle": "ghost"}), 404, "ghost"),
        (rollout_file(candidate={"bundle": "teacher"}), 409, "stable"),
    ],
)
def test_wrong_rollout_files_are_refused(api: Api, file: str, code: int, message: str) -> None:
    answer = api.post("/rollouts", file=file, name="mine.yaml")
    assert answer.status_code == code, answer.text
    assert message in answer.json()["error"]["message"]
    assert api.get("/api/v1/rollouts").json()["rollouts"] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"endpoint": "nobody"}, "mine.yaml:3: endpoint: endpoint 'nobody' is not known"),
        ({"candidate": {"bundle": "ghost"}}, "mine.yaml:2: candidate.bundle: "),
        ({"analysis": {"segments": ["colour"]}}, "mine.yaml:2: analysis.segments: 'colour' is no id"),
        (
            {"guards": {"segments": [{"field": "user", "values": [7]}, {"field": "hue", "values": [1]}]}},
            "guards.segments[1].field: 'hue' is no id and no number of the arms' inputs; there are ",
        ),
    ],
)
def test_what_only_the_repository_knows_is_refused_with_its_line(
    api: Api, changes: dict[str, Any], message: str
) -> None:
    answer = api.post("/rollouts", file=rollout_file(**changes), name="mine.yaml")
    assert answer.status_code in (400, 404)
    assert message in answer.json()["error"]["message"]


def test_verdicts_are_explained(api: Api) -> None:
    start(api)
    api.post("/rollouts/ranker/pause", reason="lunch")
    (*_, paused) = api.get("/api/v1/audit", params={"endpoint": "ranker"}).json()["entries"]
    explained = api.get(f"/api/v1/audit/{paused['seq']}/explain").json()
    assert explained["entry"] == paused
    assert (explained["same"], explained["note"]) == (None, "ann decided this; it rests on no figures")
    refused(api.get("/api/v1/audit/999/explain"), 404, "NotFound", "999")


def test_kill_empties_the_candidate_and_aborts_its_rollout(api: Api) -> None:
    start(api)
    api.post("/rollouts/ranker/set-weight", weight=50)
    refused(api.post("/endpoints/nobody/kill"), 404, "NotFound", "nobody")
    refused(api.post("/endpoints/ranker/release"), 409, "Conflict", "not killed")
    killed = api.post("/endpoints/ranker/kill", reason="it burns").json()
    assert killed["killed"]
    assert KillSwitch(api.made.home).why("ranker") == ("it burns", "ann")
    refused(api.post("/endpoints/ranker/release"), 409, "Conflict", "not been aborted yet")
    api.world.controller.step()
    assert api.get("/api/v1/rollouts/ranker").json()["phase"] == "aborted"
    assert "it burns" in api.audit()[-1][2]
    refused(api.post("/rollouts", file=rollout_file()), 409, "Conflict", "killed")
    released = api.post("/endpoints/ranker/release", reason="repaired").json()
    assert (released["killed"], released["weight"]) == (False, 0)
    refused(api.post("/endpoints/ranker/release"), 409, "Conflict", "not killed")
    start(api)


def test_kill_and_release_without_a_rollout_stand_in_the_audit(api: Api) -> None:
    api.made.set(weight=40)
    api.post("/endpoints/ranker/kill", reason="it burns")
    released = api.post("/endpoints/ranker/release", reason="repaired").json()
    assert released["weight"] == 0  # what the switch held back does not come back by itself
    assert api.audit()[-2:] == [("kill", "ann", "it burns"), ("release", "ann", "repaired")]


# --- figures, health, safety -----------------------------------------------------------------------------------------


def test_metrics_of_an_endpoint(api: Api) -> None:
    refused(api.get("/api/v1/metrics/nobody"), 404, "NotFound", "nobody")
    refused(api.get("/api/v1/metrics/ranker"), 404, "NotFound", "ranker")
    start(api)
    assert api.get("/api/v1/metrics/ranker").json()["phases"]


def test_models_say_what_the_gate_said(api: Api) -> None:
    models = {m["bundle"]: m for m in api.get("/api/v1/models").json()["models"]}
    assert set(models) == {"teacher", "student"}
    assert models["teacher"]["servable"]
    assert models["teacher"]["arms"] == []


def test_audit_pages_and_checks_its_arguments(api: Api) -> None:
    for number in range(3):
        api.put("/endpoints/shop", stable={"bundle": "teacher"}, reason=str(number))
    first = api.get("/api/v1/audit", params={"endpoint": "shop", "page_size": 2}).json()
    assert [e["reason"] for e in first["entries"]] == ["0", "1"]
    behind = {"endpoint": "shop", "page_size": 2, "page_token": first["next_page_token"]}
    rest = api.get("/api/v1/audit", params=behind).json()
    assert ([e["reason"] for e in rest["entries"]], rest["next_page_token"]) == (["2"], "")
    newest = api.get("/api/v1/audit", params={"endpoint": "shop", "page_size": 2, "newest_first": True}).json()
    assert [e["reason"] for e in newest["entries"]] == ["2", "1"]
    refused(api.get("/api/v1/audit", params={"page_size": 0}), 400, "InvalidInput", "page_size", "query.page_size")
    refused(api.get("/api/v1/audit", params={"limit": 5}), 400, "InvalidInput", "limit", "query.limit")


def test_ready_when_all_lanes_and_the_shadow_say_so(api: Api) -> None:
    assert api.get("/healthz").json() == {"status": "ok"}
    config: Config = api.made.config
    answer = api.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["missing"] == [*(f"lane-{i}" for i in range(config.engine.lanes)), "shadow"]
    now = api.world.clock.wall_ms()
    for index in range(config.engine.lanes):
        lane = {"time_ms": now, "state": "ready", "endpoints": {}, "shadow": {"dropped": {"full": 2}}}
        write_status(config.status, f"lane-{index}", **lane)
    write_status(config.status, "shadow", time_ms=now, scored=3, caught_up=4, dropped={"store": 1})
    assert api.get("/readyz").status_code == 200
    status = api.get("/api/v1/status").json()
    assert (status["shadow"]["scored"], status["shadow"]["dropped"]) == (7, 1 + 2 * config.engine.lanes)
    assert status["traffic"]["predictions"] == 0
    api.world.clock.now += 60  # and nobody writes any more
    assert api.get("/readyz").status_code == 503


def test_metrics_page_is_prometheus_text(api: Api) -> None:
    telemetry = Telemetry("lane-0")
    telemetry.tally("baton_things", "Things, by kind", "kind", lambda: {"good": 3, "bad": 1})
    telemetry.write(api.made.home / METRICS_DIR)
    families = {f.name: f for f in text_string_to_metric_families(api.get("/metrics").text)}
    assert {s.labels["kind"]: s.value for s in families["baton_things"].samples} == {"good": 3, "bad": 1}


def test_our_fault_is_told_without_its_inside(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(api.world.backends.store, "endpoints", broken)
    answer = api.get("/api/v1/endpoints")
    assert answer.status_code == 500
    assert "request id" in answer.text
    assert "secret" not in answer.text


def test_configured_endpoints_are_made_once(api: Api) -> None:
    api.made.set(weight=30)
    api.world.admin.endpoints.bootstrap()
    assert api.made.store.endpoint("ranker").weight == 30  # what is known already is left as it is

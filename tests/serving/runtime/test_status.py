"""Statuses between processes: what is written is read again, files of other versions are understood, damage is named."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from installation import write_status
from operated import operated
from typer.testing import CliRunner

from serving.cli.main import app
from serving.runtime import status
from serving.runtime.status import FRESH_S, ArmReport, ArmTotals, Damaged, LaneArm, LaneStatus, RecentTotals

LANE = LaneStatus(
    process="lane-0",
    time_ms=5_000,
    state="ready",
    endpoints={"ranker": {"stable": LaneArm.of(ArmReport("b", "2", "3", "READY"), ArmTotals(requests=7))}},
    direct={"b": ArmTotals(recent=RecentTotals(seconds=60.0, counts={3: 4}))},
)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    status.write(tmp_path, "lane-0", LANE)
    found = status.read(tmp_path, 6_000)
    assert found.lanes["lane-0"].status == LANE
    assert (found.lanes["lane-0"].age_s, found.lanes["lane-0"].fresh, found.damaged) == (1.0, True, ())
    assert found.served_versions() == {"b": {"2", "3"}}
    assert status.read(tmp_path, 5_001 + round(1000 * FRESH_S)).fresh().lanes == {}
    assert status.read(tmp_path / "none", 0) == status.Statuses()


def test_keys_that_another_version_lacks_or_adds_do_no_harm(tmp_path: Path) -> None:
    document = {"time_ms": 1, "models": ["b/1"], "tomorrow": {"x": 1}, "engine": {"pending": 3}}
    write_status(tmp_path, "lane-0@b", **document)
    lane = status.read(tmp_path, 1_001).lanes["lane-0@b"]
    assert (lane.status.models, lane.status.engine.pending, lane.status.state) == (["b/1"], 3, "")
    assert lane.to_json() == {**document, "age_s": 1.0, "fresh": True}


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("worker.json", "{\n", "not JSON"),
        ("worker.json", "[" * 100_000, "not JSON"),
        ("shadow.json", "[1, 2]", "not a JSON object"),
        ("lane-9.json", '{"pid": 1}', "time_ms"),
        ("lane-9.json", '{"time_ms": 1, "endpoints": null}', "endpoints"),
        ("lane-9.json", '{"time_ms": 1, "endpoints": {"e": {"stable": {"recent": {"counts": {"a": 1}}}}}}', "counts"),
        ("control.json", '{"time_ms": "now"}', "time_ms"),
        ("words.json", '{"time_ms": 1}', "children"),
    ],
)
def test_a_damaged_file_is_named_and_no_process(tmp_path: Path, file: str, content: str, reason: str) -> None:
    status.write(tmp_path, "lane-0", LANE)
    (tmp_path / file).write_text(content)
    found = status.read(tmp_path, 6_000)
    assert set(found.all()) == {"lane-0"}
    (damaged,) = found.damaged
    assert damaged.file == file
    assert reason in damaged.reason
    assert "\n" not in damaged.reason


def test_bytes_that_are_no_text_and_a_folder_are_damage_too(tmp_path: Path) -> None:
    (tmp_path / "worker.json").write_bytes(b"\xff\xfe")
    (tmp_path / "lane-1.json").mkdir()
    assert status.read(tmp_path, 0).damaged == (
        Damaged("lane-1.json", "Is a directory"), Damaged("worker.json", "not text")
    )  # fmt: skip


def test_the_command_names_damaged_files_and_shows_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with operated(tmp_path / "home") as world:
        get = TestClient(world.app(), base_url="http://127.0.0.1:8000", raise_server_exceptions=False).get
        folder, now = world.made.config.status, world.clock.wall_ms()
        for index in range(world.made.config.engine.lanes):
            write_status(folder, f"lane-{index}", time_ms=now, state="ready")
        write_status(folder, "shadow", time_ms=now, scored=3)
        (folder / "lane-9.json").write_text('{"pid": 1}')
        (folder / "worker.json").write_text("{")
        assert get("/readyz").status_code == 200
        assert get("/metrics").status_code == 200
        assert get("/api/v1/worker").json()["running"] is False
        answer = get("/api/v1/status").json()
        assert [damaged["file"] for damaged in answer["damaged"]] == ["lane-9.json", "worker.json"]
        assert "lane-9" not in answer["lanes"]
        assert answer["worker"] is None
        monkeypatch.setattr("serving.cli.api.AdminClient.check_alive", lambda _: None)
        monkeypatch.setattr("serving.cli.api.AdminClient.get", lambda _, path: get(f"/api/v1{path}").json())
        shown = CliRunner().invoke(app, ["status"])
        assert shown.exit_code == 0, shown.output
        lines = shown.stdout.splitlines()
        assert "lane-9.json is damaged: time_ms: Field required" in lines
        assert sum(line.startswith("worker.json is damaged: not JSON") for line in lines) == 1
        assert sum("lane-0" in line and "alive" in line and "ready" in line for line in lines) == 1
        as_json = json.loads(CliRunner().invoke(app, ["status", "-o", "json"]).stdout)
        assert as_json["processes"]["damaged"] == answer["damaged"]


def test_examples_are_right() -> None:
    assert doctest.testmod(status).failed == 0

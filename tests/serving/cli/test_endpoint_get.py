"""`baton endpoint get` says which arm does not answer with the version that it should, and why."""

from __future__ import annotations

from pathlib import Path

from installation import write_status
from operated import http_port, operated
from typer.testing import CliRunner

from serving.cli.main import app


def test_an_arm_that_lags_is_named_with_the_reason_and_its_lanes(tmp_path: Path) -> None:
    with operated(tmp_path) as world, http_port(world) as port:
        right = {"bundle": "teacher", "version": "1", "wanted": "1", "state": "READY"}
        behind = {"bundle": "student", "version": "1", "wanted": "1", "state": "READY", "reason": "version 2: it hung"}
        loading = {"bundle": "student", "version": "", "wanted": "2", "state": "LOADING"}
        now = world.clock.wall_ms()
        for lane, candidate in (("lane-0", behind), ("lane-1", behind), ("lane-2", loading), ("lane-3", right)):
            arms = {"ranker": {"stable": right, "candidate": candidate}}
            write_status(world.made.config.status, lane, time_ms=now, endpoints=arms)
        write_status(
            world.made.config.status, "lane-4", time_ms=now - 60_000, endpoints={"ranker": {"candidate": loading}}
        )
        done = CliRunner().invoke(app, ["endpoint", "get", "ranker", "--server", f"http://127.0.0.1:{port}"])
    assert done.exit_code == 0, done.output
    assert "candidate: student 1 answers; version 2: it hung (lane-0, lane-1)\n" in done.stdout
    assert "candidate: no version of student answers; 2 is being loaded (lane-2)\n" in done.stdout
    assert "lane-3" not in done.stdout
    assert "lane-4" not in done.stdout

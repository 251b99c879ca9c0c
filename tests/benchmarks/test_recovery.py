"""A short form of `python -m benchmarks.recovery`: a restart of one lane fails no call, a stopped process comes back."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from benchmarks.recovery import installation, measure_hang, measure_restart
from pipeline.errors import NotReady
from serving.cli.api import AdminClient
from serving.supervisor.supervisor import HANDED


@pytest.mark.long
def test_a_restart_fails_no_call_and_a_stopped_process_comes_back(tmp_path: Path) -> None:
    with installation(tmp_path / "home", 1, hang_limit=8) as server:
        config = tmp_path / "home" / "baton.yaml"
        restarted = measure_restart(server, 40)
        assert (restarted.problem, restarted.failed) == ("", {}), restarted
        causes = {name: dict(child.causes) for name, child in server.children().items()}
        assert causes == {name: {"asked": 1} for name in ("control", "shadow", "lane-0")}
        supervisor = server.statuses().supervisor
        assert supervisor is not None
        # It runs its program anew under its old pid, and goes on with the others.
        assert HANDED.encode() in Path(f"/proc/{supervisor.status.pid}/environ").read_bytes()
        admin = AdminClient(f"http://127.0.0.1:{server.http_port}")
        server.wait(lambda: admin.ready(), "control answers again", 60)

        # What ran before goes on where the new lane cannot start, and where a setting needs a full stop.
        good = config.read_text()
        for wrong, reason in (("listen:\n  grpc_port: 1\n", "listen.grpc_port"), ("nonsense: 1\n", "nonsense")):
            before = server.pids
            config.write_text(
                wrong if wrong.startswith("nonsense") else good.replace(f"grpc_port: {server.port}", "grpc_port: 1")
            )
            asked = admin.post("/processes/lane-0/restart", {"reason": "a change"})
            server.wait(lambda a=asked: ended(admin, a["id"]), "the restart ends", 60)  # type: ignore[misc]
            last = admin.get("/processes")["restart"]
            assert (last["state"], reason in last["why"]) == ("failed", True), last
            assert server.pids == before
        config.write_text(good)
        entries = [
            entry for entry in admin.get("/audit", newest_first=True)["entries"] if entry["verb"] == "process-restart"
        ]
        assert [entry["after"]["process"] for entry in entries] == ["lane-0", "lane-0", "all"]

        for name in ("lane-0", "control"):
            row = measure_hang(server, name, 40)
            assert row.process_s, row
            assert server.children()[name].causes["hung"] == 1
        server.wait(lambda: "without a sign of life" in why(admin, "control"), "the reason is told", 60)


def ended(admin: AdminClient, order: str) -> bool:
    last = admin.get("/processes")["restart"]
    return last is not None and last["id"] == order and last["state"] != "running"


def why(admin: AdminClient, name: str) -> str:
    try:
        found = {process["name"]: process["why"] for process in admin.get("/processes")["processes"]}
    except NotReady:
        time.sleep(0.2)
        return ""
    return str(found[name])

"""Processes killed with SIGKILL while traffic runs: clients see nothing, nothing acknowledged is lost, nothing counts twice."""

from __future__ import annotations

import asyncio
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import ENDPOINT, STUDENT, Machine, Models, until
from typer.testing import CliRunner

from pipeline.traffic.log import Labelled
from serving.cli.main import app
from serving.cli.replay import Replay, ReplayReport
from serving.client import RankingClient
from serving.wiring.traffic import open_traffic_log
from transfer.online.checkpoint import Checkpoints
from transfer.online.stream import held_out

pytestmark = pytest.mark.long

RATE = 25.0
HOLDOUT = 0.2


@pytest.fixture
def machine(models: Models, tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path / "home", models)
    made.start()
    yield made
    made.stop()


def replay_while(machine: Machine, harm: threading.Thread) -> ReplayReport:
    """Replay the second half of the log, and go on from its start while `harm` still works."""
    sender = Replay(machine.target, ENDPOINT, machine.log.schema, rate=RATE, label_delay=0.3)

    def requests() -> Iterator[object]:
        while True:
            yield from machine.log.requests(0.5, 1.0)

    harm.start()
    report = asyncio.run(sender.run(requests(), lambda: not harm.is_alive()))  # type: ignore[arg-type]
    harm.join()
    return report


def all_labelled(machine: Machine) -> list[Labelled]:
    traffic = open_traffic_log(machine.config)
    entries: list[Labelled] = []
    try:
        while page := traffic.labelled(entries[-1].seq if entries else 0):
            entries += page
    finally:
        traffic.close()
    return entries


def test_killed_helpers_cost_clients_and_labels_nothing(machine: Machine) -> None:
    dice = random.Random(7)
    victims = ("worker", "shadow", "control")
    killed: Counter[str] = Counter()
    pids: dict[str, set[int]] = {name: set() for name in victims}

    def harm() -> None:
        for _ in range(4):
            for name in dice.sample(victims, len(victims)):
                time.sleep(dice.uniform(0.1, 1.5))
                pid = machine.kill(name)
                if pid is not None and pid not in pids[name]:
                    pids[name].add(pid)
                    killed[name] += 1
                    until(lambda n=name, p=pid: machine.child(n)["pid"] not in (None, p), f"{name} comes back")  # type: ignore[misc]

    report = replay_while(machine, threading.Thread(target=harm, daemon=True))
    assert not report.errors, report.errors
    assert min(killed[name] for name in victims) >= 3
    for name in victims:
        assert machine.child(name)["restarts"] == killed[name]
    until(machine.ready, "all answer again")

    # Every acknowledged label is in the labelled log, once.
    assert dict(report.labels) == {"accepted": report.rows}
    count = 0

    def joined() -> bool:
        nonlocal count
        count = sum(len(entry.indices) for entry in all_labelled(machine) if entry.revision == 0)
        return count >= report.rows

    until(joined, "all labels are joined")
    entries = all_labelled(machine)
    rows = Counter((e.prediction_id, int(i), e.revision) for e in entries for i in e.indices)
    assert count == report.rows == len(rows)
    assert max(rows.values()) == 1
    assert len({e.prediction_id for e in entries}) == report.requests

    # The shadow lane finds what it missed.
    traffic = open_traffic_log(machine.config)
    until(lambda: not traffic.unscored("", 1 << 60).found, "both arms have scored every prediction")
    traffic.close()

    # The worker has learned each row once: what it counts is what lies before its place.
    until(lambda: machine.status("worker").get("position", 0) > 0.9 * entries[-1].seq, "the worker keeps up")
    assert machine.stop() == 0
    (pair,) = (machine.home / "worker").iterdir()
    found = Checkpoints(pair).load()
    assert found is not None
    place, _ = found
    passed = [e for e in entries if e.seq <= place.position]
    kept = sum(len(e.indices) for e in passed if held_out(e.prediction_id, HOLDOUT))
    assert place.held_rows == kept
    assert place.trained_rows + place.held_rows == sum(len(e.indices) for e in passed)
    assert place.trained_rows > 0


def test_the_kill_switch_works_while_the_control_process_stands_still(machine: Machine) -> None:
    arm = {"bundle": "ranker-dnn"}
    machine.admin.put(
        f"/endpoints/{ENDPOINT}", {"stable": arm, "candidate": {"bundle": STUDENT}, "weight": 50, "reason": "a test"}
    )
    request = next(machine.log.requests(0.9, 1.0))
    keys = [f"u{number}" for number in range(40)]
    with RankingClient(machine.target) as client:

        def arms() -> set[str]:
            return {client.rank(ENDPOINT, machine.log.schema, request.features, routing_key=k).arm for k in keys}

        until(lambda: arms() == {"stable", "candidate"}, "both arms answer")
        pid = machine.kill("control", signal.SIGSTOP)
        assert pid is not None
        try:
            done = CliRunner().invoke(
                app, ["endpoint", "kill", ENDPOINT, "--home", str(machine.home), "--reason", "now"]
            )
            assert done.exit_code == 0, done.output
            until(lambda: arms() == {"stable"}, "nothing reaches the candidate", limit=1.0)
        finally:
            machine.kill("control", signal.SIGCONT)
    until(lambda: machine.admin.get(f"/endpoints/{ENDPOINT}")["killed"], "the control process has seen it")


def test_a_killed_lane_comes_back_and_loses_no_acknowledged_label(machine: Machine) -> None:
    def harm() -> None:
        for _ in range(2):
            time.sleep(1.5)
            pid = machine.kill("lane-0")
            until(lambda p=pid: machine.child("lane-0")["pid"] not in (None, p), "the lane comes back")  # type: ignore[misc]
            until(lambda: answers(machine), "the lane answers")
        time.sleep(1.0)

    report = replay_while(machine, threading.Thread(target=harm, daemon=True))
    assert machine.child("lane-0")["restarts"] == 2
    assert all(error.startswith(("NotReady", "DeadlineExceeded")) for error in report.errors), report.errors
    answered = report.requests - sum(report.errors.values())
    assert dict(report.labels) == {"accepted": 100 * answered}
    assert answers(machine)

    # A lane that dies takes predictions with it that were answered a moment ago and not committed yet; their labels stay
    # parked. All others are joined, each row once.
    traffic = open_traffic_log(machine.config)

    def settled() -> Counter[tuple[str, int]] | None:
        stats = traffic.stats(round(time.time() * 1000))
        # While no lane answers, predictions close without the labels that wait outside; those come as revision 1.
        found = Counter((e.prediction_id, int(i)) for e in all_labelled(machine) for i in e.indices)
        joined = sum(found.values()) == 100 * (answered - stats.parked)
        return found if joined and not stats.open_predictions and stats.parked <= answered // 10 else None

    rows = until(settled, "what was committed is joined")
    traffic.close()
    assert rows is not None
    assert max(rows.values()) == 1


def answers(machine: Machine) -> bool:
    request = next(machine.log.requests(0.9, 1.0))
    with RankingClient(machine.target) as client:
        try:
            client.rank(ENDPOINT, machine.log.schema, request.features, timeout=2.0)
        except Exception:
            return False
    return True

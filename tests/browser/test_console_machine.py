"""The console over all processes of a machine, worker included: every page, light and dark, desktop and phone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from desk import Open, act, drawn, fits, phase, settled, shoot
from machine import ENDPOINT, Machine, make_models, rollout_file, until

from serving.cli.replay import Replay
from transfer.data.log import LogRequest

pytestmark = pytest.mark.long

RATE = 40.0


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Lanes, shadow lane, control and worker, with requests and late labels all the while."""
    made = Machine(tmp_path_factory.mktemp("console") / "home", make_models(tmp_path_factory.mktemp("models")))
    made.start()
    sender = Replay(made.target, ENDPOINT, made.log.schema, rate=RATE, label_delay=0.5)
    over = threading.Event()

    def requests() -> Iterator[LogRequest]:
        while not over.is_set():
            yield from made.log.requests(0.5, 0.95)

    def run() -> None:
        asyncio.run(sender.run(requests(), over.is_set))

    sending = threading.Thread(target=run, name="replay", daemon=True)
    sending.start()
    yield made
    over.set()
    sending.join(30)
    made.stop()


def test_every_panel_has_something_to_show(machine: Machine, opened: Open, screenshots: Path) -> None:
    page = opened()
    page.goto(f"{machine.url}/endpoints/{ENDPOINT}")
    settled(page)
    act(page, "Start rollout", "hand over", Rollout_file=rollout_file())
    page.locator(".weight .big", has_text="100 %").wait_for()
    page.locator("dt", has_text="teacher's weight a").wait_for()
    until(lambda: machine.repository.versions("ranker-dcnv2")[1:], "a version was published")
    for heading, least in (
        ("Arms", 2),
        ("Versions", 2),
        ("Embedding tiers", 2),
        ("Latency and errors", 2),
        ("Stays at a step", 2),
    ):
        page.locator(f"section[aria-label='{heading}'] tbody tr").nth(least - 1).wait_for()
    page.locator("section[aria-label='Latency and errors'] td", has_text="ms").first.wait_for()
    for title in ("bias", "AUC", "LogLoss", "Click rate", "p99"):
        drawn(page, title)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("device", "width"), [("desktop", 1280), ("phone", 375)])
def test_every_page_fits(
    machine: Machine, opened: Open, screenshots: Path, scheme: str, device: str, width: int
) -> None:
    page = opened(width=width, scheme=scheme)
    for name, path in (("landing", "/"), ("endpoint", f"/endpoints/{ENDPOINT}")):
        page.goto(machine.url + path)
        settled(page)
        page.locator(f"body.body--{scheme}").wait_for()
        if name == "landing":
            page.locator("section[aria-label='Labels'] tbody tr", has_text=ENDPOINT).wait_for()
        if name == "endpoint":
            drawn(page, "bias")
            page.locator("section[aria-label='Transfer worker'] dd:not(:empty)").first.wait_for()
        assert fits(page)
        shoot(page, screenshots, f"machine-{name}-{device}-{scheme}")


def test_many_tabs_are_all_told(machine: Machine, opened: Open) -> None:
    pages: list[Any] = [opened() for _ in range(6)]
    for page in pages:
        page.goto(f"{machine.url}/endpoints/{ENDPOINT}")
        settled(page)
    machine.admin.post(f"/rollouts/{ENDPOINT}/abort", {"reason": "from elsewhere"})
    for page in pages:
        phase(page, "aborted")
    waits = yaml.safe_load(rollout_file())
    waits["analysis"]["min_step_time"] = "1h"
    machine.admin.post("/rollouts", {"file": yaml.safe_dump(waits), "reason": "from elsewhere"})
    for page in pages:
        phase(page, "progressing")
    machine.admin.post(f"/rollouts/{ENDPOINT}/pause", {"reason": "from elsewhere"})
    for page in pages:
        phase(page, "paused")
    machine.admin.post(f"/rollouts/{ENDPOINT}/resume", {"reason": "from elsewhere"})
    for page in pages:
        phase(page, "progressing")


def test_a_dead_worker_is_told_of(machine: Machine, opened: Open) -> None:
    page = opened()
    page.goto(f"{machine.url}/")
    settled(page)
    machine.kill("worker")
    page.get_by_text("worker was restarted once").wait_for()
    answer = page.context.request.get(f"{machine.url}/endpoints/nobody")
    assert answer.status == 404
    assert "There is no endpoint" in answer.text()
    assert "nobody" in answer.text()

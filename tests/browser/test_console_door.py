"""The scenario that goes through REST, gRPC and the command line, through the console's buttons."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from desk import Open, act, phase, sign_in
from doors import Refused, Rest
from operators_day import ANN, TO_BE_REFUSED, OperatorsDay
from scene import Scene

from pipeline.clock import SystemClock
from serving.config.principal import Role
from serving.http.console.wording import weight
from serving.state.kill import KillSwitch

pytestmark = pytest.mark.long


class Console:
    """Changes are made with the buttons; results are read over REST."""

    BUTTONS: ClassVar = {
        "rollouts.start": "Start rollout",
        "rollouts.pause": "Pause",
        "rollouts.resume": "Resume",
        "rollouts.promote": "Promote one step",
        "rollouts.set_weight": "Set weight",
        "rollouts.undo": "Undo",
        "endpoints.kill": "Kill",
        "endpoints.release": "Release",
    }

    def __init__(self, page: Any, rest: Rest) -> None:
        self._page, self._rest = page, rest

    def do(self, verb: str, **fields: Any) -> dict[str, Any]:
        unforced = verb == "rollouts.promote" and not fields.get("force")  # a button's dialog says what it passes
        if verb not in self.BUTTONS or "reason" not in fields or unforced:
            return self._rest.do(verb, **fields)
        label = "Promote fully" if fields.get("full") else self.BUTTONS[verb]
        button = self._page.get_by_role("button", name=label, exact=True)
        if fields["reason"] == TO_BE_REFUSED:
            button.wait_for(state="hidden")
            raise Refused("", f"there is no button for {verb}")
        more = {name: str(fields[key]) for key, name in (("file", "Rollout_file,_as_text"), ("weight", "Weight")) if key in fields}  # fmt: skip
        act(self._page, label, fields["reason"], **more)
        shown = self._rest.do(f"{verb.partition('.')[0]}.get", name="ranker")
        # As a person would: what is pressed next is pressed on what has been seen to be so.
        answers = weight(0.0 if shown.get("killed") else shown["weight"])
        self._page.locator(".weight .big", has_text=re.compile(f"^{answers}$")).wait_for()
        if "phase" in shown:
            phase(self._page, shown["phase"])
        return shown


@pytest.fixture
def world(tmp_path: Path) -> Iterator[SimpleNamespace]:
    scene = Scene(tmp_path / "home", lanes=False)
    token = scene.token(ANN, Role.OPERATOR)
    scene.start_control()
    yield SimpleNamespace(
        made=scene.made, kill=KillSwitch(scene.made.home), clock=SystemClock(), scene=scene, token=token
    )
    scene.close()


@pytest.fixture
def door(world: SimpleNamespace, opened: Open) -> Iterator[Console]:
    page = opened()
    sign_in(page, world.scene.url, world.token)
    rest = Rest(world.scene.config.listen.http_port, token=world.token)
    yield Console(page, rest)
    rest.close()


class TestConsole(OperatorsDay):
    """An operator's day, except creating endpoints, for which the console has no button."""

    test_an_endpoint_is_made_and_changed = None  # type: ignore[assignment]
    test_the_worker_is_seen = None  # type: ignore[assignment]

"""Operators' actions, each behind a dialog that states the effect and asks for a reason.

A viewer does not see the buttons. That is a convenience, not the protection: the principal is checked again at each
action, and `Admin` refuses a caller without the role whatever the page showed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from nicegui import events, ui

from pipeline.errors import BatonError, StaleVersion
from serving.admin import verbs as v
from serving.admin.answers import Rollout
from serving.admin.door import Admin, request_of
from serving.admin.verbs import Verb
from serving.http.console.live import Text, element, show
from serving.http.console.reader import Reader, Reading, View
from serving.http.console.visitors import Visitor
from serving.http.console.wording import weight
from serving.rollout.state import ACTIVE, Phase
from serving.rollout.status.codes import Code
from serving.security.session import CSRF_HEADER

__all__ = ["Actions"]

MAX_FILE_BYTES = 1 << 18
_MOVABLE = frozenset({Phase.PROGRESSING, Phase.PAUSED, Phase.DEGRADED})


@dataclass(frozen=True, slots=True)
class _Action:
    """An action.

    Args:
        label: on its button. effect: text of the dialog.
        verb: of `Admin`. fields: of its request, from the view at the time the dialog was opened.
        possible: whether it makes sense now. look: class of the button.
        asks: input of the dialog beside the reason: "weight" or "file".
        passes: whether it passes what the rollout waits for; the dialog says what that is.
    """

    label: str
    effect: str
    verb: Callable[[View], Verb[Any, Any]]
    fields: Callable[[View], dict[str, Any]]
    possible: Callable[[View], bool]
    look: str = ""
    asks: str = ""
    passes: bool = False


def _phase(view: View) -> str:
    return view.rollout.phase if view.rollout else ""


def _awaited(rollout: Rollout) -> bool:
    """Whether a rollout waits for an operator's approval."""
    return rollout.phase == Phase.PROGRESSING and rollout.code == Code.WAITS_FOR_APPROVAL


def _steer(view: View) -> dict[str, Any]:
    assert view.rollout is not None
    return {"name": view.rollout.id}


def _forward(view: View, **more: Any) -> dict[str, Any]:
    # Only an action that sends more traffic needs the newest state: a stop must never fail because something changed.
    assert view.rollout is not None
    return {**_steer(view), "expected": view.rollout.resource_version, **more}


def _weigh(view: View) -> dict[str, Any]:
    if _phase(view) in ACTIVE:
        return _forward(view)
    endpoint = view.endpoint
    arms = {"stable": endpoint.stable.model_dump(), "candidate": endpoint.candidate and endpoint.candidate.model_dump()}
    return {"name": endpoint.name, **arms, "salt": endpoint.salt, "expected": endpoint.resource_version}


ACTIONS = (
    _Action("Pause", "The rollout stays at this step. A breach still steps back.", lambda _: v.ROLLOUTS_PAUSE, _steer,
            lambda view: _phase(view) in (Phase.PROGRESSING, Phase.DEGRADED, Phase.WATCHING), "main"),
    _Action("Resume", "The rollout goes on by evidence.", lambda _: v.ROLLOUTS_RESUME, _steer,
            lambda view: _phase(view) == Phase.PAUSED, "main"),
    _Action("Approve", "The next step is entered on its evidence, which is there.", lambda _: v.ROLLOUTS_APPROVE, _forward,
            lambda view: view.rollout is not None and _awaited(view.rollout), "main"),
    _Action("Promote one step", "The next step is entered now, without its evidence. Guards go on watching.",
            lambda _: v.ROLLOUTS_PROMOTE, partial(_forward, force=True), lambda view: _phase(view) in _MOVABLE, passes=True),
    _Action("Promote fully", "The last step is entered now, without evidence. Guards go on watching.",
            lambda _: v.ROLLOUTS_PROMOTE, partial(_forward, full=True, force=True), lambda view: _phase(view) in _MOVABLE,
            passes=True),
    _Action("Set weight", "This share of routing keys goes to the candidate. A running rollout pauses there.",
            lambda view: v.ROLLOUTS_SET_WEIGHT if _phase(view) in ACTIVE else v.ENDPOINTS_SET, _weigh,
            lambda view: view.endpoint.candidate is not None and not view.endpoint.killed, asks="weight"),
    _Action("Start rollout", "The candidate begins in shadow, at weight 0.", lambda _: v.ROLLOUTS_START, lambda _: {},
            lambda view: _phase(view) not in ACTIVE and not view.endpoint.killed, asks="file"),
    _Action("Undo", "The hand-over is taken back: stable answers everything again.", lambda _: v.ROLLOUTS_UNDO, _steer,
            lambda view: _phase(view) in (Phase.WATCHING, Phase.COMPLETED)),
    _Action("Abort", "Stable answers everything, and this rollout is over.", lambda _: v.ROLLOUTS_ABORT, _steer,
            lambda view: _phase(view) in ACTIVE, "danger"),
    _Action("Kill", "The candidate answers nothing from this moment, in every lane, and its rollout is aborted.",
            lambda _: v.ENDPOINTS_KILL, lambda view: {"name": view.endpoint.name}, lambda view: not view.endpoint.killed, "danger"),
    _Action("Release", "The kill switch is taken back. The weight is 0: traffic returns only by a rollout or a weight.",
            lambda _: v.ENDPOINTS_RELEASE, lambda view: {"name": view.endpoint.name}, lambda view: view.endpoint.killed),
)  # fmt: skip


class Actions:
    """Row of action buttons on an endpoint's page."""

    def __init__(self, name: str, admin: Admin, reader: Reader, visitor: Visitor) -> None:
        self._name = name
        self._view: View | None = None
        self._buttons: list[tuple[_Action, ui.button]] = []
        ask = _Dialog(admin, reader, visitor, lambda: self._view)
        with element("div", "actions", role="group", aria_label="What can be done"):
            for action in ACTIONS:
                button = ui.button(action.label, color=None, on_click=partial(ask.open, action))
                button.props("unelevated no-caps").classes(f"press {action.look}")
                show(button, False)
                self._buttons.append((action, button))

    def tell(self, reading: Reading, now_ms: int) -> None:
        self._view = reading.views.get(self._name)
        for action, button in self._buttons:
            show(button, self._view is not None and action.possible(self._view))


class _Dialog:
    """Dialog that asks for the reason and other input, and runs the action."""

    def __init__(self, admin: Admin, reader: Reader, visitor: Visitor, view: Callable[[], View | None]) -> None:
        self._admin, self._reader, self._visitor, self._view = admin, reader, visitor, view
        self._action: _Action | None = None
        self._fields: dict[str, Any] = {}
        with ui.dialog() as self._box, element("div", "ask"), element("form") as form:
            form.on("submit.prevent", self._confirm)
            self._title = Text(tag="h2")
            self._effect = Text(tag="p")
            self._weight = ui.number("Weight, percent of routing keys", min=0, max=100)
            self._weight.props("outlined dense step=any")
            self._upload = ui.upload(label="Rollout file", auto_upload=True, max_files=1, max_file_size=MAX_FILE_BYTES, on_upload=self._read, on_rejected=lambda: self._refuse("That file is too large."))  # fmt: skip
            self._upload.props('accept=".yaml,.yml,.txt" flat')
            self._upload.props["headers"] = [{"name": CSRF_HEADER, "value": visitor.csrf}]
            self._file = ui.textarea("Rollout file, as text").props("outlined dense input-style='min-height:180px'")
            self._reason = ui.input("Reason, for the audit").props("outlined dense maxlength=2000 autofocus")
            self._refused = Text(tag="p", classes="refused").props("role=alert")
            with element("div", "foot"):
                ui.button("Cancel", color=None, on_click=self._box.close).props(
                    "unelevated no-caps type=button"
                ).classes("press")
                self._do = ui.button("", color=None).props("unelevated no-caps type=submit")
        self._box.props["aria-label"] = "Confirm"

    def open(self, action: _Action) -> None:
        """Open the dialog of an action on the present view."""
        view = self._view()
        if view is None:
            return
        self._action, self._fields = action, action.fields(view)
        rollout = f", {weight(view.endpoint.weight)} now" if view.endpoint.candidate else ""
        self._title.tell(f"{action.label}: {view.endpoint.name}{rollout}")
        waits = view.rollout.waiting if view.rollout is not None and action.passes else ""
        self._effect.tell(f"{action.effect} Passed, and kept in the audit: {waits}" if waits else action.effect)
        self._reason.set_value("")
        self._refused.tell("")
        for asked, parts in {"weight": (self._weight,), "file": (self._upload, self._file)}.items():
            for part in parts:
                show(part, action.asks == asked)
        self._weight.set_value(view.endpoint.weight)
        self._do.set_text(action.label)
        self._do.classes(replace=f"press {action.look or 'main'}")
        self._box.open()

    async def _read(self, uploaded: events.UploadEventArguments) -> None:
        try:
            self._file.set_value((await uploaded.file.read()).decode("utf-8"))
        except UnicodeDecodeError:
            self._refuse("That file is not text in UTF-8.")

    def _refuse(self, why: str) -> None:
        self._refused.tell(why)

    async def _confirm(self) -> None:
        action, view = self._action, self._view()
        if action is None or view is None:
            return
        reason = (self._reason.value or "").strip()
        if not reason:
            self._refuse("Say why: the audit keeps the reason.")
            return
        fields = {**self._fields, "reason": reason}
        if action.asks == "weight":
            fields["weight"] = self._weight.value
        if action.asks == "file":
            fields |= {"file": self._file.value or "", "name": "rollout file"}
        self._do.disable()
        try:
            verb = action.verb(view)
            request = request_of(verb, fields)
            await asyncio.to_thread(lambda: self._admin.call(verb, request, self._visitor.principal()))
        except StaleVersion:
            self._fields = action.fields(view)
            self._refuse(f"It changed since you opened this: {_now(view)}. Confirm again if you still want it.")
        except BatonError as error:
            self._refuse(str(error))
        else:
            self._box.close()
            self._reader.hurry()
        finally:
            self._do.enable()


def _now(view: View) -> str:
    phase = f", {view.rollout.phase}" if view.rollout else ""
    return f"it is at {weight(view.endpoint.weight)} now{phase}"

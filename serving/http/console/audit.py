"""Audit trail: who changed what, when and why. An opened entry shows its evidence."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from nicegui import ui

from pipeline.errors import BatonError
from serving.admin import requests as r
from serving.admin import verbs as v
from serving.admin.answers import AuditEntry, Explanation
from serving.admin.door import Admin
from serving.http.console.live import LiveTable, Text, element, panel, show
from serving.http.console.reader import Reading, View
from serving.http.console.shell import EndpointPanel
from serving.http.console.visitors import Visitor
from serving.http.console.wording import NONE, clock, figure

__all__ = ["AuditPanel"]

PAGE_ENTRIES = 15


class AuditPanel(EndpointPanel):
    """Newest audit entries of an endpoint, more on demand."""

    def __init__(self, name: str, admin: Admin, visitor: Visitor) -> None:
        super().__init__(name)
        self._admin, self._visitor = admin, visitor
        self._shown = PAGE_ENTRIES
        self._lines: list[_Line] = []
        with panel("Audit trail", "newest first; open an entry for its evidence", "audit"):
            scroll = element("div", "scroll cards", tabindex="0", role="region", aria_label="Audit trail")
            with scroll, element("table"):
                Text("Audit trail, newest first", "caption", "unseen")
                with element("thead"), element("tr"):
                    for heading in ("time, UTC", "what", "by", "why"):
                        Text(heading, "th").props("scope=col")
                self._body = element("tbody")
            self._more = (
                ui.button("Older entries", color=None, on_click=self._older)
                .props("unelevated no-caps")
                .classes("press")
            )
            self._note = Text("Older ones: baton audit", "p", "note")
        with ui.dialog() as self._dialog, element("div", "ask"):
            self._title = Text(tag="h2")
            self._why = Text(tag="p")
            self._evidence = LiveTable(("what was seen", ">used", ">computed now"), "Evidence of the entry", "It rests on no figures.")  # fmt: skip
            self._result = Text(tag="p", classes="note")
            with element("div", "foot"):
                self._again = (
                    ui.button("Work it out again", color=None, on_click=self._explain)
                    .props("unelevated no-caps")
                    .classes("press")
                )
                ui.button("Close", color=None, on_click=self._dialog.close).props("unelevated no-caps").classes("press")
        self._open: AuditEntry | None = None

    def draw(self, view: View, reading: Reading, now_ms: int) -> None:
        newest = list(view.audit)[: -self._shown - 1 : -1]
        for at, entry in enumerate(newest):
            if at == len(self._lines):
                with self._body:
                    self._lines.append(_Line(self._show))
            self._lines[at].tell(entry, now_ms)
        show(self._more, len(view.audit) > self._shown)
        show(self._note, not self._more.visible and len(view.audit) >= PAGE_ENTRIES)

    def _older(self) -> None:
        self._shown += 2 * PAGE_ENTRIES

    def _show(self, entry: AuditEntry) -> None:
        self._open = entry
        self._title.tell(f"{entry.verb} by {entry.actor}, {clock(entry.time_ms, entry.time_ms)} UTC")
        self._why.tell(entry.reason or "no reason given")
        self._evidence.tell([[name, _value(used), NONE] for name, used in entry.evidence.items()])
        self._result.tell(_change(entry))
        show(self._again, bool(entry.evidence))
        self._dialog.open()

    async def _explain(self) -> None:
        """Compute the figures again; in a thread, since it may read a part of the log."""
        entry = self._open
        assert entry is not None
        self._result.tell("Working it out …")
        self._again.disable()
        try:
            found: Explanation = await asyncio.to_thread(
                lambda: self._admin.call(v.AUDIT_EXPLAIN, r.AuditSeq(seq=entry.seq), self._visitor.principal())
            )
        except BatonError as error:
            self._result.tell(str(error), "bad")
            return
        finally:
            self._again.enable()
        again = {compared.name: compared for compared in found.figures}
        self._evidence.tell(
            [
                [name, _value(used), _value(again[name].recomputed) if name in again else NONE]
                for name, used in entry.evidence.items()
            ]
        )
        agrees = (
            "" if found.same is None else "It comes out the same. " if found.same else "Other figures come out now. "
        )
        self._result.tell(f"{agrees}{found.verdict}{'; ' if found.verdict else ''}{found.note}")


class _Line:
    """Row with a button that opens its entry."""

    def __init__(self, opened: Callable[[AuditEntry], None]) -> None:
        self._entry: AuditEntry | None = None
        with element("tr"):
            self._time = Text(tag="td").props("data-label='time, UTC'")
            with element("td", data_label="what"):
                self._verb = Text(tag="button", classes="open").props("type=button")
            self._actor = Text(tag="td").props("data-label=by")
            self._why = Text(tag="td", classes="wide").props("data-label=why")
        self._verb.on("click", lambda: opened(self._entry) if self._entry else None)

    def tell(self, entry: AuditEntry, now_ms: int) -> None:
        self._time.tell(clock(entry.time_ms, now_ms))
        if self._entry is entry:
            return
        self._entry = entry
        before, after = (state.get("endpoint", {}).get("weight") for state in (entry.before, entry.after))
        moved = f", {before:g} to {after:g} %" if None not in (before, after) and before != after else ""
        self._verb.tell(f"{entry.verb.replace('_', ' ')}{moved}")
        self._actor.tell(entry.actor)
        self._why.tell(entry.reason or NONE)


def _value(value: object) -> str:
    if isinstance(value, float):
        return figure(value, 5) if abs(value) < 1000 else f"{value:,.0f}"
    return NONE if value is None else str(value)


def _change(entry: AuditEntry) -> str:
    """Changes of an entry, by field of endpoint and rollout state."""
    parts = []
    for what in ("endpoint", "state"):
        before, after = entry.before.get(what, {}), entry.after.get(what, {})
        parts += [
            f"{name}: {_value(before.get(name))} → {_value(after[name])}"
            for name in after
            if name != "resource_version" and before.get(name) != after[name] and not isinstance(after[name], dict)
        ]
    return "Changed " + "; ".join(parts) if parts else "Nothing changed."

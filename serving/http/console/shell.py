"""Frame of every page: the bar with user and theme, the alarms, and a place for the panels."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import quote

from nicegui import ui
from nicegui.client import Client

from serving.health import Health
from serving.http.console.alarms import Alarm
from serving.http.console.health import HealthPanel
from serving.http.console.live import Text, element, show
from serving.http.console.reader import Reading, View
from serving.http.console.visitors import Visitor

__all__ = ["ICON", "STYLE", "THEME", "EndpointPanel", "Panel", "Tab", "Theme", "frame"]

STYLE = Path(__file__).with_name("console.css").read_text(encoding="utf-8")
"""The style sheet. It is small and part of every page, so that a page without a session needs no other file."""
ICON = (
    "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'><rect x='12' y='1' width='8' height='30' rx='4' "
    "transform='rotate(45 16 16)' fill='#3f7ff0'/></svg>"
)
"""A baton, for the browser's tab."""

Theme = Literal["system", "light", "dark"]
THEME = "baton-theme"
"""Cookie with the chosen theme; without it the page follows the system's."""
_DARK: dict[str, bool | None] = {"light": False, "dark": True}
MAX_ALARMS = 8


class Panel(Protocol):
    """A part of a page."""

    def tell(self, reading: Reading, now_ms: int) -> None:
        """Show a reading."""


class EndpointPanel(ABC):
    """A part of an endpoint's page. It stays as it was made where a reading does not have the endpoint."""

    def __init__(self, name: str) -> None:
        self.name = name

    def tell(self, reading: Reading, now_ms: int) -> None:
        """Show a reading."""
        view = reading.views.get(self.name)
        if view is not None:
            self.draw(view, reading, now_ms)

    @abstractmethod
    def draw(self, view: View, reading: Reading, now_ms: int) -> None:
        """Show the view of the endpoint."""


class Tab:
    """One open page: its panels and its alarms.

    Args:
        alarms: of the page, beside those of the installation.
    """

    def __init__(self, client: Client, visitor: Visitor, alarms: Callable[[Reading], Sequence[Alarm]]) -> None:
        self.client, self.visitor, self._own = client, visitor, alarms
        self.panels: list[Panel] = []
        self.health: HealthPanel | None = None
        with element("div", "alarms", role="status", aria_live="polite", aria_label="What is wrong"):
            self._alarms = [Text(tag="div", classes="alarm") for _ in range(MAX_ALARMS)]

    def tell(
        self, reading: Reading | None, general: Sequence[Alarm], now_ms: int, health: Health | None = None
    ) -> None:
        """Show a reading and the alarms. The health is shown without a reading, too."""
        if self.health is not None and health is not None:
            self.health.tell(health, now_ms)
        found = [*general, *(self._own(reading) if reading is not None else ())]
        for at, line in enumerate(self._alarms):
            show(line, at < len(found))
            if at < len(found):
                line.tell(found[at].text, "bad" if found[at].bad else "")
        if reading is None:
            return
        for panel in self.panels:
            panel.tell(reading, now_ms)


@contextmanager
def frame(visitor: Visitor, theme: Theme, path: str, trail: Sequence[str] = ()) -> Iterator[None]:
    """Bar and main part of a page; entered by `with`.

    Args:
        path: of the page.
        trail: names after the brand's.
    """
    ui.dark_mode(_DARK.get(theme))
    who = visitor.principal()
    Text("Skip to the content", "a", "skip").props("href=#content")
    with element("header", "bar"):
        with element("nav", aria_label="Where you are"):
            Text("Baton", "a", "brand").props("href=/")
            for name in trail:
                Text("/", classes="muted").props("aria-hidden=true")
                Text(name)
        with element("div", "right"):
            Text(f"{who.name}, {who.role}" if visitor.signed_in else f"{who.role}, without sign-in on this machine")
            with element("nav", "themes", aria_label="Theme"):
                for name in ("system", "light", "dark"):
                    link = Text(name, "a")
                    link.props["href"] = f"/theme/{name}?back={quote(path, safe='')}"
                    if name == theme:
                        link.props["aria-current"] = "true"
            if visitor.signed_in:

                async def leave() -> None:
                    await asyncio.to_thread(visitor.leave)
                    ui.navigate.to("/login")

                Text("Sign out", "button", "linklike").props("type=button").on("click", leave)
    with element("div", "content", id="content"):
        yield

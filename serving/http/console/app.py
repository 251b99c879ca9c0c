"""Console application: mounts the pages into the control process's application and keeps the open ones up to date.

One thread reads (`reader`), one task updates all open pages. A page sends only the elements that changed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import cast
from urllib.parse import quote

from fastapi import FastAPI, Request
from nicegui import app as nicegui_app
from nicegui import background_tasks, ui
from nicegui.client import Client
from starlette.responses import Response
from starlette.routing import Match, Mount
from starlette.types import Scope

from pipeline.clock import Clock
from pipeline.errors import BatonError, InvalidInput, NotFound, NotReady
from serving.admin import Admin
from serving.admin import verbs as v
from serving.admin.door import request_of
from serving.config import Config
from serving.http.console.actions import Actions
from serving.http.console.alarms import Alarm, alarms, endpoint_alarms
from serving.http.console.audit import AuditPanel
from serving.http.console.gate import PageGate, plain_page
from serving.http.console.headline import HeadlinePanel, StepsPanel
from serving.http.console.health import HealthPanel
from serving.http.console.live import element
from serving.http.console.login import login_routes
from serving.http.console.nonces import PAGES, Nonces
from serving.http.console.overview import EndpointsPanel, LabelsPanel, ProcessesPanel
from serving.http.console.quality import BiasPanel, CalibrationPanel, QualityPanel, StaysPanel
from serving.http.console.reader import Reader, Reading
from serving.http.console.shell import ICON, STYLE, THEME, Tab, Theme, frame
from serving.http.console.sockets import end_sockets, guard_sockets
from serving.http.console.source import READER
from serving.http.console.traffic import ArmsPanel, LatencyPanel, ShadowPanel, TiersPanel, VersionsPanel, WorkerPanel
from serving.http.console.visitors import Visitors
from serving.security.authenticator import Authenticator
from serving.security.session import Sessions

__all__ = ["mount_console"]

UPDATE_EVERY_S = 1.0
"""Time between updates of a page's ages while there are no new figures; new figures are shown at once."""
CONNECTION_TIMEOUT_S = 10.0
"""Silence after which browser and server call the connection lost (pings come more often)."""
KEPT_S = 30.0
"""Time that a page is kept for a browser that lost its connection; later the browser loads the page again."""
TOLD_S = 1.0
"""Time in which the browser of a page that has ended goes to the sign-in page by itself."""
log = logging.getLogger(__name__)


class _Only(Mount):
    """NiceGUI's application for the console's own paths; for other unknown paths the API answers."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        path = scope.get("path", "")
        if PAGES.fullmatch(path) or path.startswith("/_nicegui"):
            return super().matches(scope)
        return Match.NONE, {}


def mount_console(
    app: FastAPI, admin: Admin, config: Config, clock: Clock, authenticator: Authenticator, sessions: Sessions
) -> None:
    """Add the console to the application, after all other routes. Once per process: NiceGUI is one application."""
    console = _Console(admin, config, clock, Visitors(authenticator, sessions))
    ui.add_head_html(f"<style>{STYLE}</style>", shared=True)
    ui.page("/", title="Baton", reconnect_timeout=KEPT_S)(console.landing)
    ui.page("/endpoints/{name}", title="Baton", reconnect_timeout=KEPT_S)(console.endpoint)
    app.include_router(login_routes(console.visitors))
    nicegui_app.add_middleware(Nonces)
    # Its own error pages have state.
    nicegui_app.add_exception_handler(404, _not_found)
    nicegui_app.add_exception_handler(Exception, _broken)
    nicegui_app.on_connect(console.gate.connected)
    # Its other transport uses POST requests, which need a CSRF value that NiceGUI does not know.
    nicegui_app.config.socket_io_js_transports = ["websocket"]
    # NiceGUI's storage is not used, so it gets no secret, sets no cookie, writes no file and keeps nothing for its tabs.
    nicegui_app.storage.max_tab_storage_age = KEPT_S
    ui.run_with(
        app,
        title="Baton",
        favicon=ICON,
        language="en-US",
        tailwind=False,
        show_welcome_message=False,
        dark=None,
        reconnect_timeout=CONNECTION_TIMEOUT_S,
        binding_refresh_interval=None,
    )
    guard_sockets(sessions.cookie, console.owner, clock)
    app.router.routes[-1] = _Only("/", app=console.gate)
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(own: FastAPI) -> AsyncIterator[None]:
        async with inner(own), console.running():
            yield

    app.router.lifespan_context = lifespan


class _Console:
    """The pages, and the open tabs."""

    def __init__(self, admin: Admin, config: Config, clock: Clock, visitors: Visitors) -> None:
        self._admin, self._config, self._clock, self.visitors = admin, config, clock, visitors
        self._reader = Reader(admin, clock)
        self.gate = PageGate(nicegui_app, self._exists, clock)
        self._tabs: dict[str, Tab] = {}
        self._news = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Read and update the pages until the application ends."""
        loop = asyncio.get_running_loop()

        def notify() -> None:
            loop.call_soon_threadsafe(self._news.set)

        self._reader.start(notify)
        updates = background_tasks.create(self._update(), name="console-update")
        try:
            yield
        finally:
            updates.cancel()
            await asyncio.to_thread(self._reader.stop)

    def landing(self, request: Request) -> None:
        """`/`"""
        visitor = self.visitors.of(request)
        with frame(visitor, _theme(request), "/"):
            tab = self._open(Tab(ui.context.client, visitor, lambda reading: ()))
            tab.health = HealthPanel()
            with element("div", "grid"):
                tab.panels += [EndpointsPanel(), ProcessesPanel(), LabelsPanel()]

    def endpoint(self, request: Request, name: str) -> None:
        """`/endpoints/NAME`"""
        visitor, client = self.visitors.of(request), ui.context.client
        client.title = f"{name}, Baton"

        def own(reading: Reading) -> list[Alarm]:
            return endpoint_alarms(reading, name)

        with frame(visitor, _theme(request), f"/endpoints/{quote(name, safe='')}", [name]):
            tab = self._open(Tab(client, visitor, own))
            tab.panels.append(HeadlinePanel(name))
            if visitor.operator:
                tab.panels.append(Actions(name, self._admin, self._reader, visitor))
            worker = self._config.worker is not None and self._config.worker.endpoint == name
            with element("div", "grid"):
                tab.panels += [
                    BiasPanel(name),
                    StepsPanel(name),
                    QualityPanel(name, "AUC", "auc", "per step"),
                    QualityPanel(name, "LogLoss", "logloss", "nats per row, per step"),
                    CalibrationPanel(name),
                    StaysPanel(name),
                ]
                with element("div", "stack half"):
                    tab.panels += [ArmsPanel(name), VersionsPanel(name), TiersPanel(name)]
                with element("div", "stack half"):
                    tab.panels += [LatencyPanel(name), ShadowPanel(), WorkerPanel(configured=worker)]
                tab.panels.append(AuditPanel(name, self._admin, visitor))

    def owner(self, client: str) -> str | None:
        """Session of an open page, None: there is no such page."""
        tab = self._tabs.get(client)
        return None if tab is None else tab.visitor.cookie

    async def _exists(self, name: str) -> bool:
        """Whether an endpoint exists. Raises: NotReady."""
        reading = self._reader.reading
        if reading is not None and name in reading.views:
            return True
        try:
            await asyncio.to_thread(
                self._admin.call, v.ENDPOINTS_GET, request_of(v.ENDPOINTS_GET, {"name": name}), READER
            )
        except (NotFound, InvalidInput):
            return False
        return True

    def _open(self, tab: Tab) -> Tab:
        client = tab.client
        self._tabs[client.id] = tab
        client.on_delete(lambda: self._close(client.id))
        self._reader.watchers = len(self._tabs)
        self._reader.hurry()
        return tab

    def _close(self, client: str) -> None:
        self._tabs.pop(client, None)
        self._reader.watchers = len(self._tabs)

    async def _end(self, client: Client) -> None:
        """End a page whose session has ended, once its browser was told."""
        await asyncio.sleep(TOLD_S)
        await end_sockets(client.id)
        if client.id in Client.instances:
            client.delete()

    async def _update(self) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), UPDATE_EVERY_S)
            self._news.clear()
            self.gate.sweep()
            reader, now = self._reader, self._clock.wall_ms()
            general = alarms(reader.reading, reader.error, now, worker=self._config.worker is not None)
            tabs = list(self._tabs.values())
            with suppress(NotReady):  # each page says so
                await self.visitors.sessions.look([tab.visitor.cookie for tab in tabs])
            for tab in tabs:
                try:
                    with tab.client:
                        self._update_tab(tab, reader.reading, general, now)
                except Exception:  # one page must not block the others
                    log.exception("a page of the console cannot be updated")
                await asyncio.sleep(0)

    def _update_tab(self, tab: Tab, reading: Reading | None, general: list[Alarm], now: int) -> None:
        try:
            tab.visitor.principal()
        except NotReady as error:  # nothing new is shown until it is known who looks
            tab.tell(None, [Alarm(str(error), bad=True)], now)
            return
        except BatonError:
            ui.navigate.to(f"/login?next={quote(tab.client.request.url.path)}")
            background_tasks.create(self._end(tab.client), name="console-end")
            self._close(tab.client.id)
            return
        tab.tell(reading, general, now, self._reader.health)


def _not_found(request: Request, error: Exception) -> Response:
    return plain_page(404, "Not found", "There is no such page or file.")


def _broken(request: Request, error: Exception) -> Response:
    return plain_page(
        500, "Something went wrong", "The page could not be made; the log of the control process says why."
    )


def _theme(request: Request) -> Theme:
    found = request.cookies.get(THEME)
    return cast("Theme", found) if found in ("light", "dark") else "system"

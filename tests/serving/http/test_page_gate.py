"""Gate before the console's pages: what reaches NiceGUI, how often, and how many pages there are."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from clocks import HandClock

from pipeline.errors import NotReady
from serving.config.principal import Principal, Role
from serving.http.console import gate
from serving.http.console.gate import BURST_PAGES, FILES, LOADING_S, MAX_PAGES, MAX_VISITOR_PAGES, PageGate
from serving.security.admitted import admitted


class Page:
    """A page as NiceGUI keeps it."""

    instances: ClassVar[dict[str, Page]] = {}
    made = 0

    def __init__(self, scope: dict[str, Any]) -> None:
        Page.made += 1
        self.id, self.created = str(Page.made), float(Page.made)
        self.request = SimpleNamespace(scope=scope)
        self.has_socket_connection = False
        self.instances[self.id] = self

    def delete(self) -> None:
        del self.instances[self.id]


class Gate:
    """A gate around an application that makes a page for whatever reaches it."""

    def __init__(self) -> None:
        self.clock, self.reached = HandClock(), Counter[str]()
        self.gate = PageGate(self._app, self._exists, self.clock)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.reached[scope["path"]] += 1
        if not scope["path"].startswith(FILES):
            Page(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def _exists(self, name: str) -> bool:
        if name == "away":
            raise NotReady("the state does not answer")
        return name == "ranker"

    def ask(
        self, path: str, who: str = "ann", role: Role = Role.VIEWER, method: str = "GET"
    ) -> tuple[int, dict[bytes, bytes]]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def go() -> None:
            admitted.set(Principal(who, role))
            scope = {"type": "http", "path": path, "method": method, "client": ("192.0.2.1", 1), "headers": []}
            await self.gate(scope, None, send)  # type: ignore[arg-type]

        asyncio.run(go())
        return sent[0]["status"], dict(sent[0]["headers"])


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Gate:
    monkeypatch.setattr(gate, "Client", Page)
    Page.instances.clear()
    return Gate()


def test_only_what_exists_reaches_the_pages(made: Gate) -> None:
    for path, code in (
        ("/", 200),
        ("/endpoints/ranker", 200),
        ("/endpoints/x", 404),
        ("/_nicegui/x", 404),
        ("/endpoints/away", 503),
    ):
        status, headers = made.ask(path)
        assert status == code, path
        if code != 200:
            assert headers[b"content-security-policy"].startswith(b"default-src 'none'; script-src 'none'")
    assert made.ask("/", method="HEAD")[0] == made.ask("/", method="POST")[0] == 405
    assert made.ask(f"{FILES}static/x.js")[0] == 200
    assert set(made.reached) == {"/", "/endpoints/ranker", f"{FILES}static/x.js"}
    assert len(Page.instances) == 2


def test_pages_are_bounded_and_an_operator_gets_one(made: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = [made.ask("/")[0] for _ in range(BURST_PAGES + 3)]
    assert codes == [200] * BURST_PAGES + [429] * 3, "so many at once"
    assert len(Page.instances) == MAX_VISITOR_PAGES
    for number in range(MAX_PAGES + 10):
        assert made.ask("/", f"viewer-{number}")[0] == 200
    assert len(Page.instances) == MAX_PAGES, "the oldest without a socket gave way"
    for page in Page.instances.values():
        page.has_socket_connection = True
    before = set(Page.instances)
    assert made.ask("/", "late")[0] == 429
    assert set(Page.instances) == before

    monkeypatch.setattr(gate, "background_tasks", SimpleNamespace(create=lambda work, name: work.close()))
    assert made.ask("/", "root", Role.OPERATOR)[0] == 200
    assert len(Page.instances) == MAX_PAGES


def test_pages_that_no_browser_shows_are_dropped(made: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        made.ask("/")
    first, shown, young = Page.instances.values()
    made.gate.connected(shown)  # type: ignore[arg-type]
    monkeypatch.setattr("time.time", lambda: first.created + 1.5 + LOADING_S)
    made.gate.sweep()
    assert list(Page.instances.values()) == [shown, young]


def test_a_page_of_an_operator_sends_files(made: Gate) -> None:
    name = "1dcbb088-88d4-48ee-8bef-e6b70e701199"
    made.ask("/", "ann", Role.OPERATOR)
    (page,) = Page.instances.values()
    Page.instances[name] = page
    path = f"/_nicegui/client/{name}/upload/7"
    for who, role, method, code in (
        ("ann", Role.OPERATOR, "POST", 200),
        ("ann", Role.OPERATOR, "GET", 404),
        ("bob", Role.OPERATOR, "POST", 404),
        ("ann", Role.VIEWER, "POST", 404),
    ):
        assert made.ask(path, who, role, method)[0] == code, (who, role, method)
    assert made.ask(f"/_nicegui/client/{name[::-1]}/upload/7", "ann", Role.OPERATOR, "POST")[0] == 404

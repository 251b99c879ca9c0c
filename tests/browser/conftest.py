"""Chromium, pages that complain, and an installation to look at; the parts are in `scene.py`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from desk import LIMIT_MS, SHOT, Open
from scene import Scene

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make install")

NOISE = ("WebSocket connection to", "ERR_CONNECTION_REFUSED", "ERR_EMPTY_RESPONSE", "ERR_CONNECTION_RESET")
"""What Chromium itself says of a server that is gone."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Closed at the end of the module: its event loop conflicts with others."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is missing: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Control process, store, rollout loop and labels, without lanes."""
    made = Scene(tmp_path_factory.mktemp("scene") / "home", lanes=False)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Open]:
    """Opens pages, each in its own browser; at the end none may have logged an error or called another site."""
    contexts: list[Any] = []
    complaints: list[str] = []

    def complain(message: Any) -> None:
        if message.type in ("error", "warning") and not any(noise in message.text for noise in NOISE):
            complaints.append(f"{message.type}: {message.text}")

    def asked(request: Any) -> None:
        if urlsplit(request.url).hostname not in (None, "127.0.0.1"):
            complaints.append(f"asked {request.url}")

    def make(*, width: int = 1280, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 860}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(LIMIT_MS)
        page.on("console", complain)
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("request", asked)
        page.on("websocket", lambda socket: asked(socket))
        return page

    yield make
    for context in contexts:
        context.close()
    assert not complaints


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go: $BATON_SCREENSHOTS, or a folder of this run."""
    named = os.environ.get("BATON_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say where they are."""
    for folder in sorted({str(path.parent) for path in SHOT}):
        terminalreporter.write_line(f"screenshots: {folder}")

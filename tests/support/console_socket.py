"""The console's WebSocket without a browser: a page's buttons, pressed by the messages that its script would send."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import socketio

__all__ = ["Page", "Socket", "opened_page", "sign_in"]


@dataclass(frozen=True)
class Page:
    """A page as it was sent. `elements`: of NiceGUI by their number."""

    client: str
    elements: dict[str, Any]

    def number(self, **wanted: str) -> str:
        """Number of the element with these props, `label` and `text` among them. Raises: LookupError."""
        for number, element in self.elements.items():
            seen = {**element.get("props", {}), "text": element.get("text"), "tag": element.get("tag")}
            if all(seen.get(name) == value for name, value in wanted.items()):
                return number
        raise LookupError(f"the page has no element with {wanted}")

    def listener(self, number: str, kind: str) -> str:
        """Listener of an element for an event. Raises: LookupError."""
        for event in self.elements[number].get("events", ()):
            if event["type"] == kind:
                return str(event["listener_id"])
        raise LookupError(f"element {number} does not listen to {kind}")


def sign_in(url: str, token: str) -> dict[str, str]:
    """Cookies of a session; empty: the token was refused."""
    with httpx.Client(base_url=url, trust_env=False) as http:
        http.post("/login", data={"token": token, "next": "/"})
        return dict(http.cookies)


def opened_page(url: str, path: str, cookies: dict[str, str]) -> Page | None:
    """A page; None: another one was answered, such as the one for signing in."""
    answer = httpx.get(url + path, cookies=cookies, headers={"accept": "text/html"}, trust_env=False)
    found = re.search(r"parseElements\(String\.raw`(.*?)`\)", answer.text, re.DOTALL)
    client = re.search(r"client_id['\"]?: ?['\"]([0-9a-f-]{36})", answer.text)
    if answer.status_code != 200 or found is None or client is None:
        return None
    raw = (
        found[1]
        .replace("&#36;", "$")
        .replace("&#96;", "`")
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&amp;", "&")
    )
    return Page(client[1], json.loads(raw))


class Socket:
    """A connected socket of a page."""

    def __init__(self, client: socketio.Client, page: Page) -> None:
        self._client, self.page = client, page
        self.told: dict[str, Any] = {}
        """Elements as they were last sent, by number."""
        self._lock = threading.Lock()
        client.on("update", self._update)

    def send(self, number: str, kind: str, *args: Any, page: Page | None = None) -> None:
        """The event of an element, of this socket's page or, forged, of another one."""
        of = page or self.page
        message = {
            "id": int(number),
            "client_id": of.client,
            "listener_id": of.listener(number, kind),
            "args": [json.dumps(arg) for arg in args],
        }
        self._client.call("event", message, timeout=20)  # back once the server has handled it

    def _update(self, message: dict[str, Any]) -> None:
        with self._lock:
            self.told.update(message)


@contextlib.contextmanager
def connected(url: str, page: Page, cookies: dict[str, str]) -> Iterator[Socket | None]:
    """A socket of a page; None: it was refused."""
    client = socketio.Client(reconnection=False)
    cookie = "; ".join(f"{name}={value}" for name, value in cookies.items())
    query = f"client_id={page.client}&implicit_handshake=true&tab_id={uuid.uuid4()}&document_id={uuid.uuid4()}&next_message_id=0"
    socket = Socket(client, page)
    try:
        client.connect(
            f"{url}/?{query}",
            headers={"Cookie": cookie} if cookie else {},
            transports=["websocket"],
            socketio_path="/_nicegui_ws/socket.io",
            wait_timeout=20,
        )
    except socketio.exceptions.ConnectionError:
        yield None
        return
    try:
        yield socket
    finally:
        client.disconnect()

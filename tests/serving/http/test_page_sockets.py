"""What a socket of the console may send: the messages of a page, and none that Socket.IO keeps or stumbles over."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from serving.http.console.sockets import MAX_VIEWER_BYTES, of_a_page

EVENT = '["event",{"client_id":"x","id":3}]'


def received(message: dict[str, Any], *, operator: bool) -> str:
    async def receive() -> dict[str, Any]:
        return {"type": "websocket.receive", **message}

    return str(asyncio.run(of_a_page(receive, operator=operator)())["type"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "3",
        "1",
        "40",
        '40{"a":1}',
        "41",
        f"42{EVENT}",
        f"4217{EVENT}",
        '420["handshake",{"client_id":"x"}]',
        "431[true]",
    ],
)
def test_messages_of_a_page_pass(text: str) -> None:
    assert received({"text": text}, operator=False) == "websocket.receive"


@pytest.mark.parametrize(
    "text",
    [
        "", "9", "zzz", "2probe", "40/other,", '4599999-["event",{"_placeholder":true,"num":0}]', '461-0[{"_placeholder":true}]',
        f"42{'9' * 3000}{EVENT}", "42[]", "42[[1]]", '42["connect",{}]', '42["event"]', '42["event",1]', '42["event",{},{}]',
        f"42{'[' * 5000}{']' * 5000}", "42[nonsense", f"42/other,{EVENT}", '43{"a":1}',
    ],
)  # fmt: skip
def test_a_socket_ends_with_what_no_page_sends(text: str) -> None:
    assert received({"text": text}, operator=True) == "websocket.disconnect"


def test_binary_and_large_messages_end_a_socket() -> None:
    large = f'42["event",{{"a":"{"x" * MAX_VIEWER_BYTES}"}}]'
    assert received({"bytes": b"4" + EVENT.encode()}, operator=True) == "websocket.disconnect"
    assert received({"text": large}, operator=False) == "websocket.disconnect"
    assert received({"text": large}, operator=True) == "websocket.receive", "a rollout file is typed into a page"

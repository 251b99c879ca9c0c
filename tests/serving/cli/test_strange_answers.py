"""Answers that no control process of this version gives: a message and no traceback, and memory stays bounded."""

from __future__ import annotations

import gzip
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from serving.cli.api import MAX_ANSWER_BYTES
from serving.cli.main import app


@pytest.mark.parametrize("command", [("audit",), ("status",), ("endpoint", "get", "ranker")])
@pytest.mark.parametrize(
    ("content", "headers", "said"),
    [
        (b"{}", {}, "its answer has no"),
        (b"[1]", {}, "is no object"),
        (b"[" * 200_000, {}, "is not JSON"),
        (b'{"a": "\xff\x1b[2J', {}, "is not JSON"),
        (gzip.compress(b" " * (MAX_ANSWER_BYTES + 1)), {"content-encoding": "gzip"}, "has more than"),
    ],
    ids=["empty", "list", "deep", "bytes", "gzip"],
)
def test_a_strange_answer_is_a_message(
    monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], content: bytes, headers: dict[str, str], said: str
) -> None:
    def handle(self: Any, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers=headers, stream=httpx.ByteStream(content), request=request)

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", handle)
    done = CliRunner().invoke(app, list(command), env={"BATON_SERVER": "http://127.0.0.1:1"})
    assert done.exit_code == 1
    assert said in " ".join(done.stderr.split()), done.stderr
    assert "\x1b" not in done.stderr
    assert isinstance(done.exception, SystemExit)

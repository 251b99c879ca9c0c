"""A token of the command line: where it comes from, and that nobody on the way or on the machine can read it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from command_tree import below
from typer.testing import CliRunner, Result

from pipeline.errors import InvalidInput
from serving.cli.main import app
from serving.cli.token_file import read_token

SECRET = "baton_abc_secretsecret"


def baton(*arguments: object, **env: str) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"BATON_CLEAR_TOKEN": "", **env})


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[httpx.Request]:
    """Requests that would have left this process."""
    found: list[httpx.Request] = []

    def handle(self: Any, request: httpx.Request) -> httpx.Response:
        found.append(request)
        return httpx.Response(200, json={"endpoints": [], "next_page_token": ""}, request=request)

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", handle)
    return found


@pytest.mark.parametrize(
    "server",
    [
        "http://10.0.0.1:8000", "HTTP://Baton.example", "http://localhost.example.org",
        "http://127.0.0.1.nip.io:8000", "http://[2001:db8::1]:8000", "http://0x7f.1",
    ],
)  # fmt: skip
@pytest.mark.parametrize("way", ["argument", "environment", "file"])
def test_a_token_never_goes_to_another_machine_in_the_clear(
    seen: list[httpx.Request], tmp_path: Path, server: str, way: str
) -> None:
    file = tmp_path / "token"
    file.write_text(SECRET)
    file.chmod(0o600)
    given = {"argument": ("--token", SECRET), "environment": (), "file": ("--token-file", file)}[way]
    env = {"BATON_TOKEN": SECRET} if way == "environment" else {}
    done = baton("endpoint", "list", "--server", server, *given, **env)
    assert done.exit_code == 1
    assert "https://" in done.stderr
    assert not seen
    assert baton("endpoint", "list", "--server", server).exit_code == 0  # without a token
    assert baton("--clear-token", "endpoint", "list", "--server", server, *given, **env).exit_code == 0
    assert [request.headers.get("authorization") for request in seen][1:] == [f"Bearer {SECRET}"]


@pytest.mark.parametrize(
    "server", ["https://10.0.0.1:8000", "http://127.0.0.1:8000", "http://[::1]:8000", "http://localhost:8000"]
)
def test_a_token_goes_over_tls_and_on_this_machine(seen: list[httpx.Request], server: str) -> None:
    assert baton("endpoint", "list", "--server", server, "--token", SECRET).exit_code == 0
    assert [request.headers["authorization"] for request in seen] == [f"Bearer {SECRET}"]


@pytest.mark.parametrize("server", ["http://127.0.0.1@10.0.0.1", "http://localhost:8000@evil.example"])
def test_a_user_in_the_url_is_not_taken_for_the_host(seen: list[httpx.Request], server: str) -> None:
    for words in ((), ("--token", SECRET)):
        done = baton("endpoint", "list", "--server", server, *words)
        assert done.exit_code == 1
        assert server.rpartition("@")[2] in done.stderr
    assert not seen


def test_a_lane_of_another_machine_gets_no_token_in_the_clear() -> None:
    done = baton("model", "load", "ranker", "--target", "10.0.0.1:8001", "--token", SECRET)
    assert done.exit_code == 1
    assert "unencrypted" in done.stderr


class _Redirects(BaseHTTPRequestHandler):
    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        self.send_response(307 if self.path.startswith("/api") else 200)
        self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/taken")  # type: ignore[attr-defined]
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def elsewhere() -> Iterator[HTTPServer]:
    _Redirects.requests = []
    server = HTTPServer(("127.0.0.1", 0), _Redirects)
    thread = threading.Thread(target=server.serve_forever, name="elsewhere")
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_neither_a_redirect_nor_a_proxy_is_followed(elsewhere: HTTPServer) -> None:
    here = f"http://127.0.0.1:{elsewhere.server_port}"
    done = baton("endpoint", "list", "--server", here, "--token", SECRET)
    assert done.exit_code == 1
    assert "/taken, which is not followed" in done.stderr
    assert not any("/taken" in path for path in _Redirects.requests)
    _Redirects.requests.clear()
    names = ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy")
    done = baton("endpoint", "list", "--server", "http://127.0.0.1:1", "--token", SECRET, **dict.fromkeys(names, here))
    assert done.exit_code == 1
    assert not _Redirects.requests


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o640, 0o660, 0o777])
def test_a_token_file_that_others_can_read_is_refused(seen: list[httpx.Request], tmp_path: Path, mode: int) -> None:
    file = tmp_path / "token"
    file.write_text(SECRET)
    file.chmod(mode)
    done = baton("audit", "--token-file", file)
    assert done.exit_code == 1
    assert f"{mode:04o}" in done.stderr
    assert "chmod 600" in done.stderr
    assert SECRET not in done.output
    assert not seen


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"x" * 5000, b"\xff\xfe", "ünicode".encode()])
def test_a_file_that_holds_no_token_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(InvalidInput, match="one token and nothing else"):
        read_token(file)
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_token(tmp_path / "absent")


def test_a_token_comes_from_the_command_line_before_the_environment(seen: list[httpx.Request], tmp_path: Path) -> None:
    files = {}
    for name in ("named", "env"):
        files[name] = tmp_path / name
        files[name].write_text(f"{name}\n")
        files[name].chmod(0o600)
    env = {"BATON_TOKEN_FILE": str(files["env"])}
    for words, more, expected in (
        ((), env, "env"),
        (("--token-file", files["named"]), env, "named"),
        (("--token-file", files["named"]), {"BATON_TOKEN": "environment"}, "named"),
        (("--token", "argument"), env, "argument"),
        ((), env | {"BATON_TOKEN": "environment"}, "environment"),
    ):
        assert baton("endpoint", "list", *words, **more).exit_code == 0
        assert seen[-1].headers["authorization"] == f"Bearer {expected}"
    both = baton("endpoint", "list", "--token", "a", "--token-file", files["named"])
    assert both.exit_code == 1
    assert "two ways" in both.stderr
    reader, writer = os.pipe()  # as <(command) gives it
    os.write(writer, b"piped\n")
    os.close(writer)
    assert read_token(Path(f"/dev/fd/{reader}")) == "piped"
    os.close(reader)


def test_a_token_with_a_line_end_in_it_is_refused_and_not_sent(seen: list[httpx.Request]) -> None:
    for token in ("a\nb: c", "ü", "a\x7f"):
        assert baton("endpoint", "list", "--token", token).exit_code == 1
    assert not seen


def test_every_command_that_takes_a_token_takes_a_file_of_one() -> None:
    found = []

    def walk(command: Any, name: str) -> None:
        options = {option.name for option in command.params}
        if "token" in options:
            found.append(name)
            assert "token_file" in options, name
        for child, one in below(command).items():
            walk(one, f"{name} {child}")

    walk(typer.main.get_command(app), "baton")
    assert {"baton audit", "baton audit explain", "baton log forget", "baton model load", "baton status"} <= set(found)
    assert len(found) >= 25

"""Tokens: content of the file, authentication, changes by other processes, and the commands."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from clocks import MillisecondClock
from typer.testing import CliRunner, Result

from pipeline.errors import InvalidInput, NotFound, Unauthenticated
from serving.cli.main import app
from serving.config.principal import Principal, Role
from serving.security.tokens import LOCAL, TokenAuthenticator, TokenStore

NOW = 1_700_000_000_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "tokens.json"


def door(path: Path, clock: MillisecondClock | None = None, *, loopback: bool = True) -> TokenAuthenticator:
    return TokenAuthenticator(TokenStore(path), clock or MillisecondClock(NOW), loopback=loopback)


def refused(door: TokenAuthenticator, authorization: str) -> str:
    with pytest.raises(Unauthenticated) as error:
        door.authenticate(authorization)
    return str(error.value)


def test_the_file_keeps_no_secret_and_is_its_owners_alone(path: Path) -> None:
    token, text = TokenStore(path).create("ann", Role.OPERATOR, NOW)
    assert text.startswith(f"baton_{token.id}_")
    secret = text.split("_", 2)[2]
    assert len(secret) >= 43  # 256 bits
    assert secret not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not list(path.parent.glob(".*")), "no staging file is left"


def test_a_token_says_who_calls_and_every_near_miss_is_refused(path: Path) -> None:
    store = TokenStore(path)
    _, ann = store.create("ann", Role.OPERATOR, NOW)
    _, bob = store.create("bob", Role.VIEWER, NOW)
    at = door(path)
    assert at.authenticate(f"Bearer {ann}") == Principal("ann", Role.OPERATOR)
    assert at.authenticate(f"bearer  {bob} ") == Principal("bob", Role.VIEWER)
    crossed = f"baton_{ann.split('_')[1]}_{bob.split('_', 2)[2]}"
    near = ["", "Bearer", "Bearer ", ann, f"Basic {ann}", f"Bearer {ann}x", f"Bearer {ann[:-1]}", f"Bearer {crossed}"]
    near += [f"Bearer x{ann}", f"Bearer {ann.upper()}", f"Bearer {ann} {bob}", f"Bearer {ann},{bob}", "Bearer baton__"]
    near += [f"Bearer {ann[:14]}", "Bearer baton_\u0661_\ud7ff", f"Bearer {ann}\0"]
    for authorization in near:
        refused(at, authorization)
    assert ann not in refused(at, f"Bearer {ann}x")


def test_without_tokens_this_machine_is_open_and_no_other_is(path: Path) -> None:
    assert door(path).authenticate("") == LOCAL
    assert door(path).authenticate("Bearer left-over") == LOCAL
    refused(door(path, loopback=False), "")


def test_a_running_door_notices_creation_expiry_and_revocation(path: Path) -> None:
    clock = MillisecondClock(NOW)
    at = door(path, clock)
    assert at.authenticate("") == LOCAL
    other = TokenStore(path)
    token, text = other.create("ann", Role.VIEWER, NOW, NOW + 60_000)
    refused(at, "")
    assert at.authenticate(f"Bearer {text}").name == "ann"
    clock.now += 59_999
    assert at.authenticate(f"Bearer {text}").name == "ann"
    clock.now += 1
    refused(at, f"Bearer {text}")
    clock.now = NOW
    assert other.revoke(token.id) == [token]
    refused(at, f"Bearer {text}")


def test_what_was_shut_stays_shut(path: Path) -> None:
    store = TokenStore(path)
    token, text = store.create("ann", Role.VIEWER, NOW)
    at = door(path)
    assert at.authenticate(f"Bearer {text}").name == "ann"
    store.revoke(token.id)
    assert TokenStore(path).tokens() == {}
    refused(door(path), "")  # the last revoked lets nobody in, not everybody
    path.write_text("{")
    assert "doctor" in refused(at, f"Bearer {text}")
    path.unlink()
    refused(at, "")


def test_a_damaged_file_is_named_without_its_content(path: Path) -> None:
    store = TokenStore(path)
    token, _ = store.create("ann", Role.VIEWER, NOW)
    path.write_text(path.read_text().replace('"viewer"', '"king"'))
    with pytest.raises(InvalidInput) as error:
        TokenStore(path).tokens()
    assert "tokens.0.role" in str(error.value)
    assert token.digest not in str(error.value)


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "a\n", "\x1b[31m"])
def test_names_that_would_spoil_a_log_are_refused(path: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match="name"):
        TokenStore(path).create(name, Role.VIEWER, NOW)
    with pytest.raises(InvalidInput, match="expired"):
        TokenStore(path).create("ann", Role.VIEWER, NOW, NOW)


def test_a_name_stands_for_all_its_tokens_and_an_id_for_one(path: Path) -> None:
    store = TokenStore(path)
    first, _ = store.create("ann", Role.VIEWER, NOW)
    for _ in range(2):
        store.create("ann", Role.VIEWER, NOW)
    store.create("bob", Role.VIEWER, NOW)
    assert store.revoke(first.id) == [first]
    assert len(store.revoke("ann")) == 2
    assert [t.name for t in (store.tokens() or {}).values()] == ["bob"]
    with pytest.raises(NotFound):
        store.revoke("ann")


def test_writers_at_once_lose_nothing_and_readers_never_see_half(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from serving.security.tokens import *; from serving.config.principal import Role\n"
        "store = TokenStore(Path(sys.argv[1]))\n"
        "for i in range(20): store.create(f'{sys.argv[2]}-{i}', Role.VIEWER, 1)"
    )
    TokenStore(path).create("first", Role.VIEWER, NOW)
    done = threading.Event()
    seen: list[int] = []

    def read() -> None:
        store = TokenStore(path)
        while not done.wait(0.0005):
            seen.append(len(store.tokens() or {}))

    reader = threading.Thread(target=read, name="reader")
    reader.start()
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), w]) for w in "ab"]
    assert [w.wait(150) for w in writers] == [0, 0]
    done.set()
    reader.join(10)
    assert seen == sorted(seen)
    assert seen[0] >= 1
    assert len(TokenStore(path).tokens() or {}) == 41


# --- commands --------------------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path) -> Path:
    made = tmp_path / "baton.yaml"
    made.write_text("home: home\n")
    return made


def baton(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["token", *arguments, "--config", str(config)])


def test_create_tells_the_token_once_and_the_audit_never(config: Path, path: Path) -> None:
    assert "no token was ever made" in baton(config, "list").stderr
    made = baton(config, "create", "ann", "--role", "operator", "--expires", "90d", "--reason", "on call")
    text = made.stdout.strip()
    assert door(path).authenticate(f"Bearer {text}") == Principal("ann", Role.OPERATOR)
    listed = baton(config, "list", "-o", "json")
    (shown,) = json.loads(listed.stdout)
    assert (shown["name"], shown["role"], shown["state"]) == ("ann", "operator", "good")
    assert shown["expires_ms"] - shown["created_ms"] == 90 * 86_400_000
    again = json.loads(baton(config, "create", "bob", "-o", "json").stdout)
    assert door(path).authenticate(f"Bearer {again['token']}") == Principal("bob", Role.VIEWER)
    gone = baton(config, "revoke", "ann", "--reason", "left")
    assert gone.exit_code == 0
    refused(door(path), f"Bearer {text}")
    audit = "".join(p.read_text(errors="replace") for p in path.parent.glob("control.db*"))
    assert "token-create" in audit
    assert "on call" in audit
    for output in (listed.output, gone.output, audit):
        for secret in (text, again["token"]):
            assert secret.split("_", 2)[2] not in output


def test_commands_refuse_with_the_argument_at_fault(config: Path) -> None:
    assert "--expires" in baton(config, "create", "ann", "--expires", "soon").stderr
    assert "a b" in baton(config, "create", "a b").stderr
    assert baton(config, "create", "ann", "--role", "king").exit_code == 2
    nobody = baton(config, "revoke", "ann")
    assert nobody.exit_code == 1
    assert "'ann'" in nobody.stderr

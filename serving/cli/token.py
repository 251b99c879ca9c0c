"""`baton token`: bearer tokens. The commands work on the home directory of the configuration, without a server.

A running process sees a change at its next call. Each change is written into the audit, secrets never.
"""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from pipeline.clock import SystemClock
from pipeline.errors import InvalidInput
from serving.cli.output import Output, emit, line, print_json, say
from serving.config import Config, parse_duration
from serving.config.principal import Role
from serving.security.access_memory import AccessMemory
from serving.security.tokens import Token, TokenStore
from serving.wiring.home import OPENED

__all__ = ["app"]

app = typer.Typer(
    help="Bearer tokens. The first one ends open access on this machine: from then on admin verbs need a token.",
    no_args_is_help=True,
)

ConfigFile = Annotated[Path, typer.Option("--config", help="Configuration file of the installation")]
Reason = Annotated[str, typer.Option(help="Why; goes into the audit")]
Format = Annotated[Output, typer.Option("-o", "--output", help="table for people, json for programs")]
_COLUMNS = ("id", "name", "role", "created", "expires", "state")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Owner of the token, a person or program; the audit shows it")],
    role: Annotated[Role, typer.Option(help="viewer reads, operator changes")] = Role.VIEWER,
    expires: Annotated[str, typer.Option(help="Lifetime, for example 12h or 90d; never expires by default")] = "",
    reason: Reason = "",
    config: ConfigFile = Path("baton.yaml"),
    output: Format = Output.table,
) -> None:
    """Create a token and print it, only this once: only its hash is kept.

    Example: baton token create ann --role operator --expires 90d
    """
    now = SystemClock().wall_ms()
    until = now + _milliseconds(expires) if expires else 0
    settings = Config.load(config)
    token, text = TokenStore(settings.tokens).create(name, role, now, until)
    AccessMemory(settings.access_memory, settings.tokens).remember(tokens=True, roles=False)
    _audit(settings, "token-create", reason, [token], now)
    if output is Output.json:
        print_json({**_shown(token, now), "token": text})
    else:
        say(
            f"token {token.id} of {name}, a {role}; keep it now, it is not shown again (for --token-file, or BATON_TOKEN):"
        )
        line(text)  # alone on stdout, for scripts, and never wrapped


@app.command("list")
def list_tokens(config: ConfigFile = Path("baton.yaml"), output: Format = Output.table) -> None:
    """Show all tokens, without their secrets.

    Example: baton token list
    """
    now = SystemClock().wall_ms()
    found = TokenStore(Config.load(config).tokens).tokens()
    tokens = sorted((found or {}).values(), key=lambda t: t.created_ms)
    emit(output, [_shown(t, now) for t in tokens], "", _COLUMNS, [_row(t, now) for t in tokens])
    if found is None:
        say("no token was ever made: on this machine everyone may do everything, and nothing is served off it")


@app.command()
def revoke(
    which: Annotated[str, typer.Argument(help="Id of a token, or a name: then all tokens of that name")],
    reason: Reason = "",
    config: ConfigFile = Path("baton.yaml"),
    output: Format = Output.table,
) -> None:
    """Revoke tokens: the next call with one is refused, console sessions opened with it end.

    Example: baton token revoke ann --reason 'left the team'
    """
    now = SystemClock().wall_ms()
    settings = Config.load(config)
    store = TokenStore(settings.tokens)
    gone = store.revoke(which)
    _audit(settings, "token-revoke", reason, gone, now)
    emit(output, [_shown(t, now) for t in gone], "", _COLUMNS, [_row(t, now) for t in gone])
    if not store.tokens():
        say(
            "no token is left, so nobody has access; make another, or open this machine: baton token open --reason '...', then "
            "restart"
        )


@app.command("open")
def open_machine(
    reason: Annotated[str, typer.Option(help="Why; needed, goes into the audit")] = "",
    config: ConfigFile = Path("baton.yaml"),
) -> None:
    """Remove the file of tokens, and forget that there was one: from the next start on everyone on this machine is an
    operator, and nothing is served off it.

    Example: baton token open --reason 'a machine of my own again'
    """
    if not reason:
        raise InvalidInput("--reason is needed: the audit has it", "reason")
    settings = Config.load(config)
    found = list((TokenStore(settings.tokens).tokens() or {}).values())
    settings.tokens.unlink(missing_ok=True)
    AccessMemory(settings.access_memory, settings.tokens).forget()
    _audit(settings, OPENED, reason, found, SystemClock().wall_ms())
    say("no token is needed from the next start on")


def _milliseconds(duration: str) -> int:
    try:
        return round(1000 * parse_duration(duration))
    except ValueError as error:
        raise InvalidInput(f"--expires: {error}", "expires") from None


def _audit(config: Config, verb: str, reason: str, tokens: list[Token], now_ms: int) -> None:
    from serving.cli.api import user
    from serving.rollout.store import Who
    from serving.wiring.state import open_control_store

    with closing(open_control_store(config)) as store:
        store.note(verb, Who(user(), reason, now_ms), {"tokens": [_shown(t, now_ms) for t in tokens]})


def _state(token: Token, now_ms: int) -> str:
    return "expired" if token.expired(now_ms) else "good"


def _row(token: Token, now_ms: int) -> tuple[str, ...]:
    until = _day(token.expires_ms) if token.expires_ms else "never"
    return token.id, token.name, token.role, _day(token.created_ms), until, _state(token, now_ms)


def _shown(token: Token, now_ms: int) -> dict[str, object]:
    return {**token.model_dump(mode="json", exclude={"digest"}), "state": _state(token, now_ms)}


def _day(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")

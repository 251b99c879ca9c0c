"""`baton freeze`: until a time nothing moves in any rollout but kill, abort and step back."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from pipeline.errors import InvalidInput
from serving.cli.api import DEFAULT_SERVER, AdminClient
from serving.cli.options import Format, Server, Token, Why
from serving.cli.output import Output, emit
from serving.config import parse_duration

__all__ = ["freeze"]


def freeze(
    until: Annotated[
        str, typer.Option(help="End: 2026-12-27T08:00 (UTC, or with an offset), or a duration such as 12h")
    ] = "",
    lift: Annotated[bool, typer.Option("--lift", help="End the freeze now")] = False,
    reason: Why = "",
    server: Server = DEFAULT_SERVER,
    token: Token = "",
    output: Format = Output.table,
) -> None:
    """Let nothing move in any rollout until a time; kill, abort and step backs go on. `baton status` shows a freeze.

    Example: baton freeze --until 12h --reason 'big sale'
    """
    if bool(until) == lift:
        raise InvalidInput("give --until TIME, or --lift to end a freeze", "until")
    client = AdminClient(server, token=token)
    if lift:
        _show(client.post("/freeze/lift", {"reason": reason}), output)
    else:
        _show(client.post("/freeze", {"until_ms": _time_ms(until), "reason": reason}), output)


def _time_ms(text: str) -> int:
    """Unix milliseconds of a time, or of a duration from now."""
    try:
        return round(1000 * (time.time() + parse_duration(text)))
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInput(
            f"--until {text!r} is no time and no duration; write for example 2026-12-27T08:00 or 12h", "until"
        ) from None
    return round(1000 * (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())


def _show(found: dict[str, Any], output: Output) -> None:
    end = datetime.fromtimestamp(found["until_ms"] / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    row = (end, found["actor"], found["reason"]) if found["until_ms"] else ("not frozen", "-", "-")
    emit(output, found, "", ("frozen until", "by", "why"), [row])

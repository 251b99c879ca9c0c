"""`baton endpoint`: arms of an endpoint and the kill switch. Only `kill` works without the control process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.errors import InvalidInput
from serving.cli.api import DEFAULT_SERVER, AdminClient, user
from serving.cli.options import Endpoint, Expected, Format, Reason, Server, Token, Why
from serving.cli.output import Output, emit, line
from serving.runtime.status import lane_of

__all__ = ["app"]

app = typer.Typer(help="Endpoints: their arms, the split of keys, the kill switch.", no_args_is_help=True)

_COLUMNS = ("endpoint", "stable", "candidate", "weight %", "killed", "resource version")


@app.command("list")
def list_endpoints(server: Server = DEFAULT_SERVER, token: Token = "", output: Format = Output.table) -> None:
    """Show all endpoints.

    Example: baton endpoint list
    """
    found = AdminClient(server, token=token).list("/endpoints", "endpoints")
    emit(output, found, "", _COLUMNS, [_row(e) for e in found])


@app.command("get")
def get_endpoint(
    name: Endpoint, server: Server = DEFAULT_SERVER, token: Token = "", output: Format = Output.table
) -> None:
    """Show one endpoint, and why an arm does not answer with the version that it should.

    Example: baton endpoint get ranker -o json
    """
    client = AdminClient(server, token=token)
    found = client.get(f"/endpoints/{name}")
    emit(output, found, "", _COLUMNS, [_row(found)])
    if output is Output.table:
        for sentence in _lagging(client.get("/status")["lanes"], name):
            line(sentence)


@app.command("set")
def set_endpoint(
    name: Endpoint,
    stable: Annotated[
        str, typer.Option(help="BUNDLE, BUNDLE:VERSION, or observed:NAME of a server that answers elsewhere")
    ],
    candidate: Annotated[str, typer.Option(help="The same for the candidate")] = "",
    weight: Annotated[float, typer.Option(min=0, max=100, help="Percent of keys for the candidate")] = 0.0,
    salt: Annotated[str, typer.Option(help="Salt of the key assignment; a new one assigns all keys again")] = "",
    expected: Expected = None,
    reason: Why = "",
    server: Server = DEFAULT_SERVER,
    token: Token = "",
    output: Format = Output.table,
) -> None:
    """Create or change an endpoint that no rollout owns.

    Example: baton endpoint set ranker --stable ranker-deepfm --candidate ranker-dcnv2:3 --weight 5 --reason 'by hand'
    """
    body = {
        "stable": _arm(stable),
        "candidate": _arm(candidate) if candidate else None,
        "weight": weight,
        "salt": salt,
        "expected": expected,
        "reason": reason,
    }
    saved = AdminClient(server, token=token).put(f"/endpoints/{name}", body)
    emit(output, saved, "", _COLUMNS, [_row(saved)])


@app.command("pin")
def pin(
    name: Endpoint,
    stable: Annotated[str, typer.Option(help="BUNDLE:VERSION of the stable arm; BUNDLE alone: the newest again")],
    expected: Expected = None,
    reason: Why = "",
    server: Server = DEFAULT_SERVER,
    token: Token = "",
    output: Format = Output.table,
) -> None:
    """Let the stable arm answer with one version, or follow the newest again; also while a rollout runs.

    Example: baton endpoint pin ranker --stable ranker-deepfm:7 --reason 'version 8 is 36 % off'
    """
    body = {"stable": _arm(stable), "expected": expected, "reason": reason}
    saved = AdminClient(server, token=token).post(f"/endpoints/{name}/pin", body)
    emit(output, saved, "", _COLUMNS, [_row(saved)])


@app.command("kill")
def kill(
    name: Endpoint,
    reason: Reason = "",
    release: Annotated[bool, typer.Option("--release", help="Release the kill switch")] = False,
    home: Annotated[
        Path | None,
        typer.Option(help="Home of the installation: write the kill file there instead of calling the server"),
    ] = None,
    server: Server = DEFAULT_SERVER,
    token: Token = "",
    output: Format = Output.table,
) -> None:
    """Send all traffic to stable within a second; with --home it works without the control process.

    Example: baton endpoint kill ranker --reason 'clicks collapsed' --home .baton
    """
    from serving.state.kill import KillSwitch

    if home is not None:
        if not home.is_dir():
            raise InvalidInput(f"--home {home} is not a directory", "home")
        if release:
            raise InvalidInput(
                "release goes through the server, which sees to it that no traffic comes back by itself; "
                "leave --home out",
                "release",
            )
        KillSwitch(home).engage(name, reason, user())
        _known(home, name)
        found = {"endpoint": name, "killed": True}
    else:
        verb = "release" if release else "kill"
        saved = AdminClient(server, token=token).post(f"/endpoints/{name}/{verb}", {"reason": reason})
        found = {"endpoint": name, "killed": saved["killed"]}
    emit(output, found, "", tuple(found), [tuple(found.values())])


def _known(home: Path, name: str) -> None:
    """Report a misspelt name, only after the switch is set: nothing may delay that."""
    from serving.rollout.sqlite_store import endpoint_names

    names = endpoint_names(home / "control.db") or [name]
    if name not in names:
        raise InvalidInput(f"the switch of {name!r} is set, but there is no such endpoint; there are {names}", "name")


def _arm(text: str) -> dict[str, str]:
    from serving.rollout.routing import OBSERVED

    elsewhere = OBSERVED if text.startswith(OBSERVED) else ""
    bundle, _, version = text.removeprefix(elsewhere).partition(":")
    bundle = elsewhere + bundle
    return {"bundle": bundle, "version": version}


def _spec(arm: dict[str, Any] | None) -> str:
    return "-" if not arm else f"{arm['bundle']}:{arm['version'] or 'newest'}"


def _lagging(lanes: Mapping[str, dict[str, Any]], endpoint: str) -> list[str]:
    """Sentences about arms that answer with another version than they should, or with none."""
    waiting: dict[str, list[str]] = {}
    for name, document in sorted(lanes.items()):
        if not document.get("fresh"):
            continue
        for arm, report in lane_of(document).endpoints.get(endpoint, {}).items():
            if report.lags:
                waiting.setdefault(f"{arm}: {report}", []).append(name)
    return [f"{report} ({', '.join(names)})" for report, names in waiting.items()]


def _row(e: dict[str, Any]) -> tuple[Any, ...]:
    held = f" (held at {e['stable_held']})" if e.get("stable_held") else ""
    arms = f"{_spec(e['stable'])}{held}", _spec(e["candidate"])
    return (e["name"], *arms, f"{e['weight']:g}", e["killed"], e["resource_version"])

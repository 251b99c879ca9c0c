"""`baton endpoint`, `baton model`, `baton rollout`: what an operator does to a running installation, over its REST API.
`endpoint kill` alone works without it. What verdicts rest on: `baton metrics` and `baton audit`, in `verdicts`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.errors import BatonError, InvalidInput
from serving.cli.api import DEFAULT_SERVER, AdminClient, user
from serving.cli.demo_view import PHASE_COLUMNS, phase_rows
from serving.cli.output import Output, emit, problems, say

__all__ = ["Format", "Name", "Server", "Token", "endpoints", "models", "rollouts"]

endpoints = typer.Typer(help="Which arms answer a name, and how keys are split.", no_args_is_help=True)
models = typer.Typer(help="Model versions: which there are, which are loaded.", no_args_is_help=True)
rollouts = typer.Typer(
    help="Hand traffic over. To stop one: baton rollout list, then baton rollout pause ENDPOINT --reason '...'.",
    no_args_is_help=True,
)

Server = Annotated[str, typer.Option(envvar="BATON_SERVER", help="Admin API of the control process")]
Token = Annotated[str, typer.Option(envvar="BATON_TOKEN", help="Bearer token")]
Format = Annotated[Output, typer.Option("-o", "--output", help="table for people, json for programs")]
Reason = Annotated[str, typer.Option(help="Why; goes into the audit")]
Name = Annotated[str, typer.Argument(help="Endpoint")]
Target = Annotated[str, typer.Option(help="host:port of the data plane")]

_ENDPOINT = ("endpoint", "stable", "candidate", "weight %", "killed", "resource version")
_ROLLOUT = ("rollout", "endpoint", "phase", "step", "weight %", "waiting")


# --- endpoints -------------------------------------------------------------------------------------------------------


@endpoints.command("list")
def list_endpoints(server: Server = DEFAULT_SERVER, token: Token = "", output: Format = Output.table) -> None:
    """Show all endpoints."""
    with problems():
        found = AdminClient(server, token=token).list("/endpoints", "endpoints")
        emit(output, found, "", _ENDPOINT, [_endpoint_row(e) for e in found])


@endpoints.command("get")
def get_endpoint(name: Name, server: Server = DEFAULT_SERVER, token: Token = "", output: Format = Output.table) -> None:
    """Show one endpoint."""
    with problems():
        found = AdminClient(server, token=token).get(f"/endpoints/{name}")
        emit(output, found, "", _ENDPOINT, [_endpoint_row(found)])


@endpoints.command("set")
def set_endpoint(
    name: Name,
    stable: Annotated[str, typer.Option(help="BUNDLE or BUNDLE:VERSION")],
    candidate: Annotated[str, typer.Option(help="BUNDLE or BUNDLE:VERSION")] = "",
    weight: Annotated[float, typer.Option(min=0, max=100, help="Percent of keys for the candidate")] = 0.0,
    salt: Annotated[str, typer.Option(help="Of the assignment of keys; a new one deals all keys anew")] = "",
    reason: Reason = "",
    server: Server = DEFAULT_SERVER,
    token: Token = "",
    output: Format = Output.table,
) -> None:
    """Make or change an endpoint that no rollout owns."""
    with problems():
        body = {
            "stable": _arm(stable),
            "candidate": _arm(candidate) if candidate else None,
            "weight": weight,
            "salt": salt,
            "reason": reason,
        }
        saved = AdminClient(server, token=token).put(f"/endpoints/{name}", body)
        emit(output, saved, "", _ENDPOINT, [_endpoint_row(saved)])


@endpoints.command("kill")
def kill(
    name: Name,
    reason: Reason = "",
    release: Annotated[bool, typer.Option("--release", help="Take the switch back")] = False,
    home: Annotated[
        Path | None,
        typer.Option(help="The installation's home: write the kill file there instead of asking the server"),
    ] = None,
    server: Server = DEFAULT_SERVER,
    token: Token = "",
    output: Format = Output.table,
) -> None:
    """Take all traffic from the candidate within a second; with --home it works though the control process is dead."""
    from serving.kill import KillSwitch

    with problems():
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
    """Complain of a misspelt name, after the switch is set: nothing may come before that."""
    from serving.rollout.sqlite_store import SqliteControlStore

    path = home / "control.db"
    names = sorted(SqliteControlStore(path).endpoints()) if path.exists() else [name]
    if name not in names:
        raise InvalidInput(f"the switch of {name!r} is set, but there is no such endpoint; there are {names}", "name")


# --- models ----------------------------------------------------------------------------------------------------------


@models.command("list")
def list_models(server: Server = DEFAULT_SERVER, token: Token = "", output: Format = Output.table) -> None:
    """Show every version in the repository, what the gate said of it and who uses it."""
    with problems():
        found = AdminClient(server, token=token).list("/models", "models")
        rows = [
            (
                m["bundle"],
                int(m["version"]),
                m["architecture"],
                f"delta on {m['base']}" if m["base"] else "base",
                _standing(m),
                ", ".join(m["arms"]),
            )
            for m in found
        ]
        emit(output, found, "", ("bundle", "version", "architecture", "kind", "gate", "answers for"), rows)


def _standing(model: Mapping[str, Any]) -> str:
    if model["fault"]:
        return f"cannot be loaded: {model['fault']}"
    return "may serve" if model["servable"] else "refused: " + "; ".join(model["reasons"])


@models.command("load")
def load(bundle: str, target: Target = "127.0.0.1:8001") -> None:
    """Have the lanes load a bundle's newest version, so that it answers under its own name."""
    _repository_call("RepositoryModelLoad", bundle, target)


@models.command("unload")
def unload(bundle: str, target: Target = "127.0.0.1:8001") -> None:
    """Take back a `load`; what an endpoint's arm needs stays."""
    _repository_call("RepositoryModelUnload", bundle, target)


@models.command("warm")
def warm(bundle: str, target: Target = "127.0.0.1:8001") -> None:
    """Load a bundle and wait until it has answered its warm-up requests; the same as `load`, which never skips them."""
    _repository_call("RepositoryModelLoad", bundle, target)


def _repository_call(method: str, bundle: str, target: str) -> None:
    import grpc

    from protos import inference
    from serving.client import error_of

    request, response = inference.methods()[method]
    with problems(), grpc.insecure_channel(target) as channel:
        call = channel.unary_unary(
            f"/{inference.SERVICE}/{method}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        try:
            call(request(model_name=bundle), timeout=120)
        except grpc.RpcError as error:
            raise error_of(error) from None
        say(f"{bundle}: done")


# --- rollouts --------------------------------------------------------------------------------------------------------


@rollouts.command("start")
def start(
    file: Annotated[Path, typer.Argument(help="Rollout file")],
    reason: Reason = "",
    server: Server = DEFAULT_SERVER,
    token: Token = "",
    output: Format = Output.table,
) -> None:
    """Begin a rollout: the candidate in shadow, then step by step on evidence."""
    with problems():
        try:
            text = file.read_text()
        except OSError as error:
            raise InvalidInput(f"rollout file {file} cannot be read: {error.strerror}", "file") from None
        body = {"file": text, "name": str(file), "reason": reason}
        _show_rollout(AdminClient(server, token=token).post("/rollouts", body), output)


@rollouts.command("list")
def list_rollouts(server: Server = DEFAULT_SERVER, token: Token = "", output: Format = Output.table) -> None:
    """Show all rollouts, oldest first, and what each waits for."""
    with problems():
        found = AdminClient(server, token=token).list("/rollouts", "rollouts")
        emit(output, found, "", _ROLLOUT, [_rollout_row(r) for r in found])


@rollouts.command("get")
def get_rollout(name: Name, server: Server = DEFAULT_SERVER, token: Token = "", output: Format = Output.table) -> None:
    """Show an endpoint's newest rollout: step, weight, what it waits for, figures per step."""
    with problems():
        _show_rollout(AdminClient(server, token=token).get(f"/rollouts/{name}"), output)


@rollouts.command("watch")
def watch(
    name: Name,
    server: Server = DEFAULT_SERVER,
    token: Token = "",
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks")] = 2.0,
) -> None:
    """Print a line whenever something changes, until the rollout ends or Ctrl-C."""
    with problems():
        client = AdminClient(server, token=token)
        last = None
        while True:
            try:
                found = client.get(f"/rollouts/{name}")
            except BatonError as error:
                line: tuple[Any, ...] = (str(error),)
                found = None
            else:
                line = (found["phase"], f"step {found['step']}", f"weight {found['weight']:g} %", found["waiting"])
            if line != last:
                typer.echo(f"{datetime.now():%H:%M:%S}  " + "  ".join(map(str, line)))
                last = line
            if found and found["phase"] in ("aborted", "undone", "completed"):
                return
            time.sleep(every)


def _verb(verb: str, name: str, server: str, token: str, output: Output, **body: Any) -> None:
    with problems():
        _show_rollout(AdminClient(server, token=token).post(f"/rollouts/{name}/{verb}", body), output)


@rollouts.command()
def pause(
    name: Name, reason: Reason = "", server: Server = DEFAULT_SERVER, token: Token = "", output: Format = Output.table
) -> None:
    """Stay at this step whatever the evidence says in favour; breaches still step back."""
    _verb("pause", name, server, token, output, reason=reason)


@rollouts.command()
def resume(
    name: Name, reason: Reason = "", server: Server = DEFAULT_SERVER, token: Token = "", output: Format = Output.table
) -> None:
    """Go on by evidence."""
    _verb("resume", name, server, token, output, reason=reason)


@rollouts.command()
def promote(
    name: Name,
    full: Annotated[bool, typer.Option("--full", help="Straight to the last step")] = False,
    reason: Reason = "",
    server: Server = DEFAULT_SERVER,
    token: Token = "",
    output: Format = Output.table,
) -> None:
    """Enter the next step without waiting for its evidence."""
    _verb("promote", name, server, token, output, reason=reason, full=full)


@rollouts.command()
def abort(
    name: Name, reason: Reason = "", server: Server = DEFAULT_SERVER, token: Token = "", output: Format = Output.table
) -> None:
    """All traffic to stable, and the end of this rollout."""
    _verb("abort", name, server, token, output, reason=reason)


@rollouts.command()
def undo(
    name: Name, reason: Reason = "", server: Server = DEFAULT_SERVER, token: Token = "", output: Format = Output.table
) -> None:
    """Take a finished hand-over back: stable answers all again."""
    _verb("undo", name, server, token, output, reason=reason)


@rollouts.command("set-weight")
def set_weight(
    name: Name,
    weight: Annotated[float, typer.Argument(min=0, max=100, help="Percent of keys for the candidate")],
    reason: Reason = "",
    server: Server = DEFAULT_SERVER,
    token: Token = "",
    output: Format = Output.table,
) -> None:
    """Set the weight by hand; the rollout pauses there."""
    _verb("set-weight", name, server, token, output, reason=reason, weight=weight)


@rollouts.command()
def simulate(
    file: Annotated[Path, typer.Argument(help="Rollout file")],
    scenario: Annotated[
        str, typer.Option(help="good, biased, worse_auc, turns_bad, label_outage, low_traffic, base_rate_jump")
    ] = "good",
    runs: Annotated[int, typer.Option(min=1, help="Simulated rollouts")] = 100,
    seed: Annotated[int, typer.Option(help="Of the generated streams")] = 0,
    output: Format = Output.table,
) -> None:
    """Try a rollout file's thresholds on generated streams, without a server."""
    from serving.rollout.simulate import simulate as run
    from serving.rollout.spec import Rollout

    with problems():
        result = run(Rollout.load(file), scenario, runs, seed).to_json()
        emit(output, result, "", ("what", "value"), [(k, str(v)) for k, v in result.items()])


def _arm(text: str) -> dict[str, str]:
    bundle, _, version = text.partition(":")
    return {"bundle": bundle, "version": version}


def _spec(arm: dict[str, Any] | None) -> str:
    return "-" if not arm else f"{arm['bundle']}:{arm['version'] or 'newest'}"


def _endpoint_row(e: dict[str, Any]) -> tuple[Any, ...]:
    return (
        e["name"],
        _spec(e["stable"]),
        _spec(e["candidate"]),
        f"{e['weight']:g}",
        e["killed"],
        e["resource_version"],
    )


def _rollout_row(r: dict[str, Any]) -> tuple[Any, ...]:
    return (r["id"], r["endpoint"], r["phase"], f"{r['step']}/{len(r['steps']) - 1}", f"{r['weight']:g}", r["waiting"])


def _show_rollout(r: dict[str, Any], output: Output) -> None:
    emit(output, r, "", _ROLLOUT, [_rollout_row(r)])
    if output is Output.table and r["phases"]:
        emit(output, None, "figures per step, both arms on the same rows", PHASE_COLUMNS, phase_rows(r["phases"]))

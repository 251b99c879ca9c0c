"""`baton cache`: bring rows into the Redis that machines share, and see what every tier holds and answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from pipeline.errors import BatonError, InvalidInput
from serving.cli.api import DEFAULT_SERVER, AdminClient
from serving.cli.options import Format, Reason, Server, Token
from serving.cli.output import Output, console, emit, problems, say, show_table
from serving.wiring.bundles import open_repository

__all__ = ["app"]

LOOK_EVERY_S = 0.2
_KEYS = ("bundle", "version", "rows", "rows_per_second", "seconds")

app = typer.Typer(help="Embedding rows: load them into Redis, see which tier answers.", no_args_is_help=True)


@app.command()
def warm(
    name: Annotated[str, typer.Argument(help="Endpoint (both its arms) or bundle")],
    config: Annotated[
        Path | None, typer.Option("--config", help="Configuration file: do it here instead of asking the server")
    ] = None,
    version: Annotated[str, typer.Option(help="Of the bundle; the newest that may serve unless said")] = "",
    reason: Reason = "",
    server: Server = DEFAULT_SERVER,
    token: Token = "",
    output: Format = Output.table,
) -> None:
    """Write a version's rows into Redis, or what of it is missing there; goes on where an earlier run was ended.

    Example: baton cache warm ranker --reason 'new machine'
    """
    with problems():
        done = (
            _here(config, name, version) if config else _there(AdminClient(server, token=token), name, version, reason)
        )
        if done["error"]:
            raise BatonError(done["error"])
        columns = ("bundle", "version", "rows", "rows/s", "seconds")
        emit(output, {"loaded": done["loaded"]}, "", columns, [tuple(d[c] for c in _KEYS) for d in done["loaded"]])


def _there(client: AdminClient, name: str, version: str, reason: str) -> dict[str, Any]:
    began = client.post(f"/cache/{name}/warm", {"version": version, "reason": reason})
    return _watched(lambda: client.get("/cache")["warming"] or began)


def _here(config: Path, name: str, version: str) -> dict[str, Any]:
    from pipeline.clock import SystemClock
    from serving.config import Config
    from serving.tiers.cache import versions_of
    from serving.tiers.warm import Warming
    from serving.wiring.embedding import redis_updater
    from serving.wiring.state import stored_endpoints

    settings = Config.load(config)
    if settings.embedding.redis is None:
        raise InvalidInput(f"{config} names no embedding.redis; there is nothing to load rows into", "embedding")
    repository = open_repository(settings)
    endpoints: dict[str, Any] = {**settings.endpoints, **stored_endpoints(settings)}
    versions = versions_of(repository, endpoints, name, version)
    updater = redis_updater(settings.embedding.redis, repository)
    return _watched(Warming(name, versions, updater, repository, SystemClock()).told)


def _watched(look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Draw a run until it has ended; how it ended."""
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[rate]} rows/s"), TimeRemainingColumn(), console=console, transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task("rows", total=None, rate="-")
        while True:
            told = look()
            rate = f"{told['written'] / told['seconds']:,.0f}" if told["seconds"] else "-"
            bar.update(task, description=told["name"], total=told["total"], completed=told["written"], rate=rate)
            if not told["running"]:
                return told
            time.sleep(LOOK_EVERY_S)


@app.command()
def stats(server: Server = DEFAULT_SERVER, token: Token = "", output: Format = Output.table) -> None:
    """Show which tier answers, what is stale, late or failed, the breakers, and what Redis holds.

    Example: baton cache stats
    """
    with problems():
        found = AdminClient(server, token=token).get("/cache")
        if output is Output.json:
            emit(output, found, "", (), ())
            return
        names = list(dict.fromkeys(tier for row in found["tables"] for tier in row["hits"]))
        where = ("endpoint", "arm", "table", "ids")
        faults = ("default", "stale", "late", "error", "open", "incomplete")
        rows = [
            (*(r[c] for c in where), *(_share(r["hits"].get(n, 0), r["ids"]) for n in names), *(r[c] for c in faults))
            for r in found["tables"]
        ]
        show_table("ids by table", (*where, *(f"{name} %" for name in names), *faults), rows)
        columns = ("lane", "endpoint", "arm", "tier", "rows", "bytes", "breaker", "versions_behind", "seconds_behind")
        show_table("tiers", columns, [[tier.get(c) for c in columns] for tier in found["tiers"]])
        if found["shared"] is not None:
            _shared(found["shared"])


def _share(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None


def _shared(told: dict[str, Any]) -> None:
    if told["error"]:
        say(f"[red]redis is not brought up to date:[/red] {told['error']}")
    redis = told["redis"]
    if redis is None:
        say("redis cannot be reached")
        return
    limit = f"of {redis['max_bytes'] / 2**20:,.0f} MiB" if redis["max_bytes"] else "without a limit"
    title = f"redis: {redis['keys']:,} keys, {redis['used_bytes'] / 2**20:,.0f} MiB {limit}, {redis['policy']}"
    columns = ("generation", "bundle", "base", "version", "format", "rows_written", "writing")
    show_table(title, columns, [[g[c] for c in columns] for g in redis["generations"]])

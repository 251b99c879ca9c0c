"""`baton cache`: write rows into the Redis that machines share; show what every tier holds and answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.errors import BatonError, InvalidInput
from serving.cli.api import DEFAULT_SERVER, AdminClient
from serving.cli.options import Format, Reason, Server, Token
from serving.cli.output import Output, emit, say, show_table
from serving.cli.progress import bar
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
    version: Annotated[str, typer.Option(help="Version of the bundle; by default the newest that may serve")] = "",
    reason: Reason = "",
    server: Server = DEFAULT_SERVER,
    token: Token = "",
    output: Format = Output.table,
) -> None:
    """Write the missing rows of a version into Redis; a run that was interrupted is resumed.

    Example: baton cache warm ranker --reason 'new machine'
    """
    done = (
        _run_here(config, name, version)
        if config
        else _ask_server(AdminClient(server, token=token), name, version, reason)
    )
    if done["error"]:
        raise BatonError(done["error"])
    columns = ("bundle", "version", "rows", "rows/s", "seconds")
    emit(output, {"loaded": done["loaded"]}, "", columns, [tuple(d[c] for c in _KEYS) for d in done["loaded"]])


def _ask_server(client: AdminClient, name: str, version: str, reason: str) -> dict[str, Any]:
    began = client.post(f"/cache/{name}/warm", {"version": version, "reason": reason})
    return _watched(lambda: client.get("/cache")["warming"] or began)


def _run_here(config: Path, name: str, version: str) -> dict[str, Any]:
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
    return _watched(Warming(name, versions, updater, repository, SystemClock()).report)


def _watched(look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Show the progress of a run until its end; its last report."""
    columns = ("{task.description}", "bar", "percent", "count", "{task.fields[rate]} rows/s", "left")
    with bar(*columns, transient=True) as progress:
        task = progress.add_task("rows", total=None, rate="-")
        while True:
            run = look()
            rate = f"{run['written'] / run['seconds']:,.0f}" if run["seconds"] else "-"
            progress.update(task, description=run["name"], total=run["total"], completed=run["written"], rate=rate)
            if not run["running"]:
                return run
            time.sleep(LOOK_EVERY_S)


@app.command()
def stats(server: Server = DEFAULT_SERVER, token: Token = "", output: Format = Output.table) -> None:
    """Show which tier answers, what is stale, late or failed, the breakers, and what Redis holds.

    Example: baton cache stats
    """
    found = AdminClient(server, token=token).get("/cache")
    if output is Output.json:
        emit(output, found, "", (), ())
        return
    names = list(dict.fromkeys(tier for row in found["tables"] for tier in row["hits"]))
    where = ("endpoint", "arm", "table", "ids")
    faults = ("default", "stale", "late", "error", "open", "incomplete")
    rows = [
        (*(r[c] for c in where), *(_percent(r["hits"].get(n, 0), r["ids"]) for n in names), *(r[c] for c in faults))
        for r in found["tables"]
    ]
    show_table("ids by table", (*where, *(f"{name} %" for name in names), *faults), rows)
    columns = ("lane", "endpoint", "arm", "tier", "rows", "bytes", "breaker", "versions_behind", "seconds_behind")
    show_table("tiers", columns, [[tier.get(c) for c in columns] for tier in found["tiers"]])
    if found["shared"] is not None:
        _show_redis(found["shared"])


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None


def _show_redis(shared: dict[str, Any]) -> None:
    if shared["error"]:
        say(shared["error"], lead="redis is not brought up to date:")
    redis = shared["redis"]
    if redis is None:
        say("redis cannot be reached")
        return
    limit = f"of {redis['max_bytes'] / 2**20:,.0f} MiB" if redis["max_bytes"] else "without a limit"
    title = f"redis: {redis['keys']:,} keys, {redis['used_bytes'] / 2**20:,.0f} MiB {limit}, {redis['policy']}"
    columns = ("generation", "bundle", "base", "version", "format", "rows_written", "missing", "writing")
    show_table(title, columns, [[g[c] for c in columns] for g in redis["generations"]])

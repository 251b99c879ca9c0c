"""`baton cache`: bring rows into the Redis that machines share, and see what every tier holds and answers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from pipeline.errors import Conflict, InvalidInput
from serving.bundles import open_repository
from serving.cli.api import DEFAULT_SERVER, AdminClient
from serving.cli.output import Output, console, emit, problems, say, show_table

if TYPE_CHECKING:
    from pipeline.bundle import Bundle
    from pipeline.embedding.redis_updates import Brought, RedisUpdater

__all__ = ["app"]

TRIES, PAUSE = 20, 0.5

app = typer.Typer(help="Embedding rows: load them into Redis, see which tier answers.", no_args_is_help=True)

Format = Annotated[Output, typer.Option("-o", "--output", help="table for people, json for programs")]
Server = Annotated[str, typer.Option(envvar="BATON_SERVER", help="Admin API of the control process")]
Token = Annotated[str, typer.Option(envvar="BATON_TOKEN", help="Bearer token")]


@app.command()
def warm(
    name: Annotated[str, typer.Argument(help="Endpoint (both its arms) or bundle")],
    config: Annotated[Path, typer.Option("--config", help="Configuration file")] = Path("baton.yaml"),
    version: Annotated[str, typer.Option(help="Of the bundle; the newest that may serve unless said")] = "",
    output: Format = Output.table,
) -> None:
    """Write a version's rows into Redis, or what of it is missing there; goes on where an earlier run was ended."""
    from serving.cache import redis_updater, versions_of
    from serving.config import Config
    from serving.state import stored_endpoints

    with problems():
        settings = Config.load(config)
        if settings.embedding.redis is None:
            raise InvalidInput(f"{config} names no embedding.redis; there is nothing to load rows into", "embedding")
        repository = open_repository(settings)
        endpoints: dict[str, Any] = {**settings.endpoints, **stored_endpoints(settings)}
        updater = redis_updater(settings.embedding.redis, repository)
        try:
            done = [_warm(updater, repository, b) for b in versions_of(repository, endpoints, name, version)]
        finally:
            updater.close()
        columns = ("bundle", "version", "rows", "rows/s", "seconds")
        emit(output, {"loaded": done}, "", columns, [tuple(d[c] for c in _KEYS) for d in done])


_KEYS = ("bundle", "version", "rows", "rows_per_second", "seconds")


def _warm(updater: RedisUpdater, repository: Any, bundle: Bundle) -> dict[str, Any]:
    chain = repository.chain(bundle)
    total = sum(info.rows for link in chain for info in link.manifest.tables.values())
    title = f"{bundle.manifest.name} {bundle.manifest.version}"
    start = time.perf_counter()
    with Progress(
        TextColumn(title), BarColumn(), TaskProgressColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[rate]} rows/s"), TimeRemainingColumn(), console=console, transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task("rows", total=total, rate="-")
        written = 0

        def wrote(rows: int) -> None:
            nonlocal written
            written += rows
            bar.update(task, completed=written, rate=f"{written / (time.perf_counter() - start):,.0f}")

        brought = _bring(updater, chain, wrote)
    seconds = time.perf_counter() - start
    return {
        "bundle": bundle.manifest.name,
        "version": brought.applied[-1],
        "generation": brought.generation.name,
        "rows": brought.rows,
        "rows_per_second": round(brought.rows / seconds),
        "seconds": round(seconds, 3),
    }


def _bring(updater: RedisUpdater, chain: list[Bundle], wrote: Any) -> Brought:
    """The control process looks after the same rows every second, for a moment: wait for it a few times."""
    for _ in range(TRIES - 1):
        try:
            return updater.bring(chain, wrote)
        except Conflict:
            time.sleep(PAUSE)
    return updater.bring(chain, wrote)


@app.command()
def stats(server: Server = DEFAULT_SERVER, token: Token = "", output: Format = Output.table) -> None:
    """Show which tier answers, what is stale, late or failed, the breakers, and what Redis holds."""
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

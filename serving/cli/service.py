"""`baton service`: addresses of the replicas on a cluster."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pipeline.clock import SystemClock
from serving.cli.output import Output, emit
from serving.config import Config

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _group() -> None:  # without it Typer makes the only command the group itself
    """Show where the replicas on a cluster can be reached."""


@app.command("list")
def list_replicas(
    config: Annotated[Path, typer.Option("--config", help="Configuration file")] = Path("baton.yaml"),
    output: Annotated[
        Output, typer.Option("-o", "--output", help="table for people, json for programs")
    ] = Output.table,
) -> None:
    """Show the replicas that answer now, and the gRPC target that names them all.

    Example: baton service list --config baton.yaml
    """
    from serving.state.directory import target_of
    from serving.wiring.state import open_directory

    records = open_directory(Config.load(config), SystemClock()).replicas()
    target = target_of(records) if records else ""
    emit(
        output,
        {"replicas": [asdict(record) for record in records], "target": target},
        f"gRPC target {target or '-'}",
        ("replica", "address", "node"),
        [(record.replica, record.address, record.node) for record in records],
    )

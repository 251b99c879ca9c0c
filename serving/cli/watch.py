"""`baton rollout watch`: a rollout as it moves. Sample in place on a terminal, a line per change anywhere else, an object
per line for programs. A server that goes away is waited for."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.errors import NotReady
from serving.cli.api import DEFAULT_SERVER, AdminClient
from serving.cli.options import Endpoint, Format, Server, Token
from serving.cli.output import Output, problems

__all__ = ["watch"]

ENDED = ("aborted", "undone", "completed")
_MARKS = {True: "→", False: " "}


def watch(
    name: Endpoint,
    server: Server = DEFAULT_SERVER,
    token: Token = "",
    every: Annotated[float, typer.Option(min=0.2, max=60, help="Seconds between two looks")] = 2.0,
    output: Format = Output.table,
) -> None:
    """Show a rollout as it moves, until it has ended or Ctrl-C.

    Example: baton rollout watch ranker
    """
    with problems():
        client = AdminClient(server, token=token)
        if output is Output.json:
            _follow(client, name, every, _print_json)
        elif sys.stdout.isatty():
            with Live(auto_refresh=False, screen=False) as live:
                _follow(client, name, every, lambda told: live.update(_drawn(told), refresh=True))
        else:
            _follow(client, name, every, _line_printer())


def _follow(client: AdminClient, name: str, every: float, show: Callable[[dict[str, Any]], None]) -> None:
    """Show all that is told; `{"away": why}` while the server is."""
    seen: dict[str, Any] = {}
    while True:
        try:
            for told in client.lines(f"/rollouts/{name}/watch", interval=every):
                seen = told
                show(told)
        except NotReady as error:
            if not seen:
                raise
            show({**seen, "away": str(error)})
        if seen.get("phase") in ENDED:
            return
        time.sleep(every)  # cut off: the stream is asked for anew, and by id, since another may begin
        name = seen.get("id", name)


def _print_json(told: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


def _line_printer() -> Callable[[dict[str, Any]], None]:
    last = ""

    def show(told: dict[str, Any]) -> None:
        nonlocal last
        said = told.get("away") or (
            f"{told['phase']}  step {told['step']}  weight {told['weight']:g} %  {told['waiting']}"
        )
        if said != last:
            typer.echo(f"{datetime.now():%H:%M:%S}  {said}")
            last = said

    return show


def _drawn(told: dict[str, Any]) -> Group:
    table = Table(header_style="bold")
    for column in (
        "step",
        "weight %",
        "bias below",
        "rows",
        "clicks",
        "bias",
        "from",
        "to",
        "AUC, stable",
        "candidate",
    ):
        table.add_column(column, justify="left" if column == "step" else "right")
    stays = {phase["step"]: phase for phase in told["phases"]}
    for number, step in enumerate(told["steps"]):
        here = number == told["step"]
        bound = "-" if step["bias_below"] is None else f"{step['bias_below']:g}"
        weight = "-" if step["shadow"] else f"{step['weight']:g}"
        cells = _figures(stays[number]) if number in stays else [""] * 7
        label = f"{_MARKS[here]} {'shadow' if step['shadow'] else number}"
        table.add_row(label, weight, bound, *cells, style="bold" if here else "")
    head = f"{told['endpoint']}: {told['phase']}, {told['weight']:g} % to {told['candidate']['bundle']}:{told['candidate']['version']}"
    return Group(Text(head, "bold"), table, *(Text(line, style) for line, style in _below(told)))


def _below(told: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield told["waiting"], ""
    if told["missing_clicks"]:
        yield f"about {told['missing_clicks']:,.0f} more clicks until the bound can be shown", ""
    if told.get("away"):
        yield f"as of before: {told['away']}", "red"


def _figures(phase: dict[str, Any]) -> list[str]:
    bias, auc = phase["bias"]["candidate"], phase["auc"]
    signed = ["-" if bias[part] is None else f"{bias[part]:+.4f}" for part in ("value", "low", "high")]
    plain = ["-" if auc[arm] is None else f"{auc[arm]:.4f}" for arm in ("stable", "candidate")]
    return [f"{phase['rows']:,}", f"{phase['labels']:,.0f}", *signed, *plain]

"""`baton rollout watch`: live view of a rollout. Drawn in place on a terminal, a line per change elsewhere, a JSON object
per line for programs. The command waits for a server that goes away."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Annotated, Any

import typer

from pipeline.errors import NotReady
from serving.cli.api import DEFAULT_SERVER, AdminClient
from serving.cli.drawing import Drawing, live, shown, stacked, table_of
from serving.cli.options import Endpoint, Format, Server, Token
from serving.cli.output import Output, line, print_json

__all__ = ["watch"]

ENDED = ("aborted", "undone", "completed")
_COLUMNS = (
    *("step", "weight %", "bias below", "rows", "clicks", "bias", "from", "to"),
    *("AUC, stable", "candidate"),
)
_MARKS = {True: "→", False: " "}


def watch(
    name: Endpoint,
    server: Server = DEFAULT_SERVER,
    token: Token = "",
    every: Annotated[float, typer.Option(min=0.2, max=60, help="Seconds between two looks")] = 2.0,
    output: Format = Output.table,
) -> None:
    """Show a rollout live, until it has ended or Ctrl-C.

    Example: baton rollout watch ranker
    """
    client = AdminClient(server, token=token)
    if output is Output.json:
        _follow(client, name, every, print_json)
    elif sys.stdout.isatty():
        with live() as view:
            _follow(client, name, every, lambda rollout: view.update(_drawn(rollout), refresh=True))
    else:
        _follow(client, name, every, _line_printer())


def _follow(client: AdminClient, name: str, every: float, show: Callable[[dict[str, Any]], None]) -> None:
    """Show every state of the rollout; with `{"away": why}` while the server is away."""
    seen: dict[str, Any] = {}
    while True:
        try:
            for rollout in client.lines(f"/rollouts/{name}/watch", interval=every):
                seen = rollout
                show(rollout)
        except NotReady as error:
            if not seen:
                raise
            show({**seen, "away": str(error)})
        if seen.get("phase") in ENDED:
            return
        time.sleep(every)  # the stream was cut off: it is opened again, by id, since another rollout may begin
        name = seen.get("id", name)


def _line_printer() -> Callable[[dict[str, Any]], None]:
    last = ""

    def show(rollout: dict[str, Any]) -> None:
        nonlocal last
        said = rollout.get("away") or (
            f"{rollout['phase']}  step {rollout['step']}  weight {rollout['weight']:g} %  {rollout['waiting']}"
        )
        if said != last:
            line(f"{datetime.now():%H:%M:%S}  {said}")
            last = said

    return show


def _drawn(rollout: dict[str, Any]) -> Drawing:
    rows = []
    stays = {phase["step"]: phase for phase in rollout["phases"]}
    for number, step in enumerate(rollout["steps"]):
        bound = "-" if step["bias_below"] is None else f"{step['bias_below']:g}"
        weight = "-" if step["shadow"] else f"{step['weight']:g}"
        cells = _figures(stays[number]) if number in stays else [""] * 7
        label = f"{_MARKS[number == rollout['step']]} {'shadow' if step['shadow'] else number}"
        rows.append((label, weight, bound, *cells))
    table = table_of(_COLUMNS, rows, right=range(1, len(_COLUMNS)), bold=rollout["step"])
    candidate = f"{rollout['candidate']['bundle']}:{rollout['candidate']['version']}"
    head = f"{rollout['endpoint']}: {rollout['phase']}, {rollout['weight']:g} % to {candidate}"
    return stacked(shown(head, "bold"), table, *(shown(text, style) for text, style in _below(rollout)))


def _below(rollout: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield rollout["waiting"], ""
    if rollout["missing_clicks"]:
        hours = rollout.get("hours_left")
        left = "time left unknown" if hours is None else f"about {hours:.1f} h at the present rate of labels"
        yield f"about {rollout['missing_clicks']:,.0f} more clicks until the bound can be shown; {left}", ""
    if rollout.get("what_to_do"):
        yield f"what to do: {rollout['what_to_do']}", ""
    if rollout.get("away"):
        yield f"as of before: {rollout['away']}", "red"


def _figures(phase: dict[str, Any]) -> list[str]:
    bias, auc = phase["bias"]["candidate"], phase["auc"]
    signed = ["-" if bias[part] is None else f"{bias[part]:+.4f}" for part in ("value", "low", "high")]
    plain = ["-" if auc[arm] is None else f"{auc[arm]:.4f}" for arm in ("stable", "candidate")]
    return [f"{phase['rows']:,}", f"{phase['labels']:,.0f}", *signed, *plain]

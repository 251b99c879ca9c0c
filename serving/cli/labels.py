"""`baton labels`: labels from files and folders, by the keys that a team has."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from serving.cli.api import lane_options
from serving.cli.options import Format, Token
from serving.cli.output import Output, emit, say

__all__ = ["app"]

app = typer.Typer(help="Labels by your own keys, from files.", no_args_is_help=True)

PLACE = ".baton-labels.json"
LOOK_EVERY_S = 1.0


@app.callback()
def _group() -> None:
    """Keep the name of the command."""


@app.command("import")
def import_labels(
    files: Annotated[list[Path], typer.Argument(help="Parquet, CSV or JSON lines; a folder stands for its files")],
    endpoint: Annotated[str, typer.Option(help="Endpoint that the request ids were sent to")],
    target: Annotated[str, typer.Option(help="host:port of the data plane")] = "127.0.0.1:8001",
    follow: Annotated[bool, typer.Option("--follow", help="Go on as files and folders grow, until Ctrl-C")] = False,
    request_id: Annotated[str, typer.Option(help="Column of the caller's request id")] = "request_id",
    prediction_id: Annotated[
        str, typer.Option(help="Column of Baton's prediction id, where rows have one")
    ] = "prediction_id",
    candidate: Annotated[str, typer.Option(help="Column of the caller's candidate id")] = "candidate_id",
    index: Annotated[str, typer.Option(help="Column of the index in request order, where there is no id")] = "index",
    label: Annotated[str, typer.Option(help="Column of what happened: `exposure`, or a label's name")] = "label",
    value: Annotated[str, typer.Option(help="Column of the label's value, 0 to 1; 1 without it")] = "value",
    time_column: Annotated[str, typer.Option("--time", help="Column of the time")] = "time",
    time_unit: Annotated[str, typer.Option(help="Unit of times that are numbers: s, ms or us")] = "ms",
    only: Annotated[str, typer.Option(help="Take labels of this name alone")] = "",
    final: Annotated[bool, typer.Option("--final", help="No other label will follow")] = False,
    exposed_all: Annotated[
        bool, typer.Option("--exposed-all", help="All candidates of a labelled prediction were shown")
    ] = False,
    place: Annotated[
        Path | None, typer.Option(help=f"File that keeps how far files are read; beside the first one ({PLACE})")
    ] = None,
    token: Token = "",
    output: Format = Output.table,
) -> None:
    """Send labels and exposures from files, from where the last run ended; exit code 1 where some were expired or invalid.

    What was sent before is answered as a duplicate and counts once, so a file may be sent again.

    Example: baton labels import clicks.parquet --endpoint ranker --candidate item_id --exposed-all
    """
    from serving.client import RankingClient
    from serving.client.labels import LabelColumns, LabelImport

    columns = LabelColumns(
        request_id=request_id,
        prediction_id=prediction_id,
        candidate=candidate,
        index=index,
        label=label,
        value=value,
        time=time_column,
        unit=time_unit,
        only=only,
        final=final,
        exposed_all=exposed_all,
    )
    kept = place or (files[0] if files[0].is_dir() else files[0].parent) / PLACE
    with RankingClient(target, lane_options(token)) as client:
        work = LabelImport(client, endpoint, columns, kept)
        try:
            work.run(files, growing=follow)
            while follow:
                time.sleep(LOOK_EVERY_S)
                work.run(files, growing=True)
        except KeyboardInterrupt:
            say("ended; the next run goes on from here")
    totals = work.totals
    result = {
        "rows": totals.rows,
        **{status: totals.statuses[status] for status in ("accepted", "duplicate", "expired", "invalid")},
        "skipped": totals.skipped,
        "reasons": totals.reasons,
        "place": str(kept),
    }
    emit(output, result, "labels", ("what", "value"), [(k, v) for k, v in result.items() if k != "reasons"])
    for reason in totals.reasons if output is Output.table else ():
        say(reason)
    if totals.refused:
        raise typer.Exit(1)

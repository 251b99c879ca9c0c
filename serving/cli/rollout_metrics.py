"""`baton rollout metrics`: the figures of a rollout as a flat table, for notebooks and reports."""

from __future__ import annotations

import io
import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import typer

from pipeline.disk import replacing
from pipeline.errors import InvalidInput
from serving.cli.api import DEFAULT_SERVER, AdminClient
from serving.cli.options import Endpoint, Server, Token
from serving.cli.output import line, print_json, say, show_table
from serving.rollout.frame import figures_table

__all__ = ["metrics"]

SHOWN = ("scope", "step", "weight", "segment", "arm", "figure", "value", "low", "high", "rows", "clicks")
"""Columns of the table for people."""


class Form(StrEnum):
    """Value of `-o`."""

    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


def metrics(
    name: Endpoint,
    out: Annotated[
        Path | None, typer.Option(help="File to write instead: .csv, .json (an object per line) or .parquet")
    ] = None,
    server: Server = DEFAULT_SERVER,
    token: Token = "",
    output: Annotated[
        Form, typer.Option("-o", "--output", help="table for people, csv or json for programs, parquet with --out")
    ] = Form.table,
) -> None:
    """Write every figure of a rollout (an endpoint's newest, or by id), a row each: step or segment, arm, figure, value, its
    interval, the rows and clicks behind it.

    Example: baton rollout metrics ranker --out ranker.parquet
    """
    form = output
    if out is not None:
        known = [form.value for form in Form if form is not Form.table]
        if out.suffix[1:] not in known:
            raise InvalidInput(f"--out {out}: a name that ends in .{', .'.join(known)} was expected", "out")
        form = Form(out.suffix[1:])
    elif output is Form.parquet:
        raise InvalidInput("-o parquet needs --out FILE.parquet", "out")
    table = _asked(AdminClient(server, token=token), name)
    if out is None and form is Form.table:
        rows = [tuple("-" if row[column] is None else row[column] for column in SHOWN) for row in table.to_pylist()]
        show_table(f"{name}: figures", SHOWN, rows)
    elif out is None and form is Form.csv:
        text = io.BytesIO()
        csv.write_csv(table, text)
        for row in text.getvalue().decode().splitlines():
            line(row)
    elif out is None:
        print_json([_plain(row) for row in table.to_pylist()])
    else:
        with replacing(out) as staging:
            _write(table, form, staging)
        say(f"wrote {table.num_rows} figures to {out}")


def _asked(client: AdminClient, name: str) -> pa.Table:
    rollout = client.get(f"/rollouts/{name}")
    endpoint = rollout["endpoint"]
    newest = rollout if name == endpoint else client.get(f"/rollouts/{endpoint}")
    return figures_table(rollout, client.get(f"/metrics/{endpoint}") if newest["id"] == rollout["id"] else None)


def _write(table: pa.Table, form: Form, path: Path) -> None:
    if form is Form.parquet:
        pq.write_table(table, path)
    elif form is Form.csv:
        csv.write_csv(table, path)
    else:
        path.write_text("".join(json.dumps(_plain(row)) + "\n" for row in table.to_pylist()))


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row as JSON values: the time as text."""
    entered = row["entered"]
    return {**row, "entered": None if entered is None else entered.isoformat(timespec="milliseconds")}

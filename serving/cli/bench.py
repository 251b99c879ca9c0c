"""`baton bench NAME`: speed against limits measured in the same run; exit code 1 when a budget is missed.

Each command takes the options of one bench and hands its `Report` to `_show`. The benches live in `benchmarks/`, one
file each with `run(..., progress) -> Report`, and are imported by the command that runs them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serving.cli.output import Output, emit, problems, say

if TYPE_CHECKING:
    from benchmarks.report import Report

__all__ = ["app"]

app = typer.Typer(
    name="bench", help="Measure speed against limits in the same run; 1 when a budget is missed.", no_args_is_help=True
)

OutputOption = Annotated[Output, typer.Option("-o", "--output", help="table for people, json for programs")]
OutFile = Annotated[Path | None, typer.Option("--out", help="Write the JSON object here as well")]


@app.command("train")
def train(
    batch: Annotated[int, typer.Option(min=1, help="Rows of one step")] = 4096,
    vocabulary: Annotated[int, typer.Option(min=1, help="Ids per field")] = 20_000,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved turns; figures are their medians")] = 20,
    output: OutputOption = Output.table,
    out: OutFile = None,
) -> None:
    """Rows per second of training with growing tables, against the same network alone on dense inputs."""
    from benchmarks import training

    with problems():
        _show(training.run(batch=batch, vocabulary=vocabulary, rounds=rounds, progress=say), output, out)


def _show(report: Report, output: Output, out: Path | None) -> None:
    result = report.as_json()
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")
    machine = result["machine"]
    title = f"{report.name}: {machine['cpu']}, {machine['cores']} cores, {machine['gpu'] or 'no GPU'}"
    emit(output, result, title, report.COLUMNS, report.as_table())
    if not report.ok:
        raise typer.Exit(1)

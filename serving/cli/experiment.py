"""Command `baton experiment`: ways to a successor of a model, measured side by side on one log."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.errors import InvalidInput
from pipeline.host import cores
from serving.cli.click_log import click_log
from serving.cli.output import Output, emit, say

if TYPE_CHECKING:
    from transfer.data import Log

__all__ = ["app"]

app = typer.Typer(
    name="experiment", help="Measure ways to a successor of a model side by side on one log.", no_args_is_help=True
)

CACHE = Path(".baton/cache")


class Drift(StrEnum):
    """Value of `--drift`: what the built-in generator does."""

    on = "on"
    off = "off"
    abrupt = "abrupt"


class ClockName(StrEnum):
    """Value of `--clock`."""

    wall = "wall"
    cpu = "cpu"


@app.command()
def crossadapt(
    teacher_arch: Annotated[str, typer.Option(help="Architecture and width, as in dnn-8")],
    student_arch: Annotated[str, typer.Option(help="Architecture and width, as in dcnv2-16")],
    report: Annotated[Path, typer.Option(help="Directory of report.json, report.md and the plots; must not exist yet")],
    data: Annotated[Path | None, typer.Option(help="Data set descriptor; a built-in generator without one")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions: a teacher and all runs for each")] = 3,
    runs: Annotated[
        list[str] | None, typer.Option(help="Only this run; may be repeated; default: all but ours_all")
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=1000, help="First rows of the log only; for the generator how many it makes")
    ] = None,
    drift: Annotated[
        Drift, typer.Option(help="Of the generator: on, off, or one abrupt change within the stream")
    ] = Drift.on,
    threads: Annotated[int, typer.Option(min=1, help="Threads of training; more than 1 helps large networks only")] = 1,
    clock: Annotated[
        ClockName, typer.Option(help="Training seconds: wall, or cpu on a machine that others use too")
    ] = ClockName.wall,
    cache: Annotated[Path, typer.Option(help="Where the prepared log is kept between runs")] = CACHE,
    output: Annotated[
        Output, typer.Option("-o", "--output", help="table for people, json for programs")
    ] = Output.table,
) -> None:
    """Teacher, student from scratch, and ways between them, on the same rows of one log.

    40 % of the rows are history, 40 % the retained window, 10 % the stream (each row judged before it is learned) and
    10 % the test.

    Example: baton experiment crossadapt --data dataset.yaml --teacher-arch deepfm --student-arch dcnv2 --seeds 3 --report out
    """
    import torch

    from transfer.data.memory import MemoryLog
    from transfer.experiment import STANDARD, ExperimentResults, write_report
    from transfer.experiment import crossadapt as run

    if report.exists():
        raise InvalidInput(f"{report} exists; name a new directory for the report", "report")
    torch.set_num_threads(threads)
    log = MemoryLog(_log(data, cache, rows, drift), 0.0, 1.0, most_rows=rows)
    if log.label_offset != 0.0:
        say(
            "of a sampled log the runs `published` and `ours` learn the stream as it is; their figures are of the traffic"
        )
    results = run(
        log,
        teacher_arch,
        student_arch,
        seeds=range(seeds),
        runs=tuple(runs or STANDARD),
        clock=time.perf_counter if clock is ClockName.wall else time.process_time,
        tell=say,
    )
    outcome = ExperimentResults(
        dataset=log.name if data else f"generator, drift {drift.value}",
        rows=log.rows,
        teacher=teacher_arch,
        student=student_arch,
        clock=f"{clock.value}, {threads} of {cores().amount} cores",
        results=list(results),
    )
    write_report(outcome, report)
    emit(output, outcome.as_json(), outcome.title, outcome.COLUMNS, outcome.table())
    if output is Output.table:
        say(f"more in {report / 'report.md'}")


def _log(data: Path | None, cache: Path, rows: int | None, drift: Drift) -> Log:
    from transfer.data import open_log

    if data is not None:
        if drift is not Drift.on:
            raise InvalidInput("--drift is the built-in generator's; leave it out with --data", "drift")
        return click_log(data, cache)
    say("no --data: a built-in generator of drifting click logs makes the rows")
    generator: dict[str, Any] = {
        Drift.on: {},
        Drift.off: {"drift": 0.0},
        Drift.abrupt: {"drift": 0.0, "abrupt_at": 0.85},
    }[drift]
    return open_log(None, cache, rows=rows or 600_000, **generator)

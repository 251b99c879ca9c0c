"""`baton bench NAME`: speed against limits measured in the same run; exit code 1 when a budget is missed.

Each command takes the options of one bench and hands its `Report` to `_show`. The benches live in `benchmarks/`, one
file each with `run(..., progress) -> Report`, and are imported by the command that runs them.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from pipeline.errors import InvalidInput
from serving.cli.output import Output, emit, say

if TYPE_CHECKING:
    from benchmarks.report import Report

__all__ = ["app"]

app = typer.Typer(
    name="bench", help="Measure speed against limits in the same run; 1 when a budget is missed.", no_args_is_help=True
)

OutputOption = Annotated[Output, typer.Option("-o", "--output", help="table for people, json for programs")]
OutFile = Annotated[Path | None, typer.Option("--out", help="Write the JSON object here as well")]
TableRows = Annotated[int, typer.Option(min=39, help="Ids in all tables of a model together")]
EngineFile = Annotated[
    Path | None, typer.Option("--config", help="YAML with sections of baton.yaml to measure instead of the defaults")
]
RowsOption = Annotated[int, typer.Option("--rows", min=1, help="Candidates per request")]
RowsList = Annotated[list[int], typer.Option(min=1, help="Candidates per request; may be repeated")]
RoundsOption = Annotated[int, typer.Option(min=1, help="Interleaved turns; figures are their medians")]
SecondsOption = Annotated[float, typer.Option(min=0.1, help="Length of one measurement")]
TABLE_ROWS = 400_000
MODELS, INFLIGHT = ["deepfm", "dcnv2"], [1, 8, 32]
SERVE_ROWS, LANES_ROWS, CONTEXT_ROWS, ENGINE_ROWS = [1, 100, 500], [1, 100], [100, 500], [1, 8, 32, 100, 500]
OWN_SECTIONS = {"home", "bundles", "listen", "endpoints", "worker", "log_level"}


@app.command("serve")
def serve(
    models: Annotated[list[str], typer.Option(help="Architectures of the zoo; may be repeated")] = MODELS,
    rows: RowsList = SERVE_ROWS,
    inflight: Annotated[list[int], typer.Option(min=1, help="Calls in flight; may be repeated")] = INFLIGHT,
    seconds: SecondsOption = 1.0,
    rounds: RoundsOption = 3,
    table_rows: TableRows = TABLE_ROWS,
    config: EngineFile = None,
    quick: Annotated[bool, typer.Option("--quick", help="One model, 1 and 100 rows, 8 in flight, short")] = False,
    output: OutputOption = Output.table,
    out: OutFile = None,
) -> None:
    """In-process ONNX Runtime (the limit), a bare grpc.aio server, and Baton by OIP, Rank and RankStream, in turns.

    Example: baton bench serve --quick
    """
    from benchmarks import serve

    if quick:
        models, rows, inflight, seconds = models[:1], [1, 100], [8], min(seconds, 0.5)
    report = serve.run(
        models, rows, inflight, seconds, rounds, table_rows=table_rows, settings=_settings(config), progress=say
    )
    _show(report, output, out)


@app.command("ray")
def ray(
    rows: RowsOption = 100,
    inflight: Annotated[int, typer.Option(min=2, help="Calls in flight")] = 8,
    seconds: SecondsOption = 2.0,
    rounds: RoundsOption = 7,
    table_rows: TableRows = TABLE_ROWS,
    output: OutputOption = Output.table,
    out: OutFile = None,
) -> None:
    """What it costs that Ray places the lanes; as root, for the cluster gets a network of its own.

    Example: baton bench ray --rounds 3
    """
    from benchmarks import cluster

    cluster.enter_own_network(sys.argv[1:])
    _show(cluster.run(rows, inflight, seconds, rounds, table_rows, progress=say), output, out)


@app.command("lanes")
def lanes(
    split: Annotated[
        list[str] | None,
        typer.Option(help="LANESxWORKERSxTHREADS, for example 2x1x1; may be repeated; all likely ones unless said"),
    ] = None,
    rows: RowsList = LANES_ROWS,
    inflight: Annotated[int, typer.Option(min=1, help="Calls in flight")] = 8,
    seconds: SecondsOption = 2.0,
    rounds: RoundsOption = 3,
    table_rows: TableRows = TABLE_ROWS,
    output: OutputOption = Output.table,
    out: OutFile = None,
) -> None:
    """Which split of the cores into lanes, workers and network threads answers most; the best comes first.

    Example: baton bench lanes --split 2x1x1
    """
    from benchmarks import lanes

    splits = [lanes.Split.parse(text) for text in split or []]
    report = lanes.run(
        splits, rows=rows, inflight=inflight, seconds=seconds, rounds=rounds, table_rows=table_rows, progress=say
    )
    _show(report, output, out)


@app.command("shadow")
def shadow(
    seconds: Annotated[float, typer.Option(min=1, help="Length of each half of a pair")] = 60.0,
    pairs: Annotated[int, typer.Option(min=1, help="Interleaved pairs; figures are their medians")] = 5,
    rows: RowsOption = 100,
    table_rows: TableRows = TABLE_ROWS,
    quick: Annotated[bool, typer.Option("--quick", help="Pairs of 5 s")] = False,
    output: OutputOption = Output.table,
    out: OutFile = None,
) -> None:
    """p50 and p99 at half load with the shadow lane on, against off.

    Example: baton bench shadow --quick
    """
    from benchmarks import shadow

    report = shadow.run(5.0 if quick else seconds, pairs, rows, table_rows=table_rows, progress=say)
    _show(report, output, out)


@app.command("remote")
def remote(
    seconds: SecondsOption = 5.0,
    rounds: RoundsOption = 5,
    rows: RowsOption = 100,
    inflight: Annotated[int, typer.Option(min=1, help="Calls in flight where throughput is measured")] = 8,
    table_rows: TableRows = TABLE_ROWS,
    output: OutputOption = Output.table,
    out: OutFile = None,
) -> None:
    """Cost of an arm on another server: calls through Baton against calls to that server, in turns.

    Example: baton bench remote --seconds 2 --rounds 3
    """
    from benchmarks import remote

    _show(remote.run(seconds, rounds, rows, inflight, table_rows=table_rows, progress=say), output, out)


@app.command("swap")
def swap(
    seconds: Annotated[float, typer.Option(min=1, help="Length of each half of a turn")] = 20.0,
    rounds: RoundsOption = 5,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two versions")] = 2.0,
    rows: RowsOption = 100,
    table_rows: TableRows = TABLE_ROWS,
    quick: Annotated[bool, typer.Option("--quick", help="Turns of 5 s")] = False,
    output: OutputOption = Output.table,
    out: OutFile = None,
) -> None:
    """p99 and errors at half load while versions are swapped, against none.

    Example: baton bench swap --quick
    """
    from benchmarks import swap
    from benchmarks.site import Workload

    report = swap.run(Workload(rows, table_rows), 5.0 if quick else seconds, rounds, interval, say)
    _show(report, output, out)


@app.command("overload")
def overload(
    seconds: Annotated[float, typer.Option(min=1, help="Length of the overload")] = 60.0,
    deadline: Annotated[float, typer.Option(min=0.01, help="Of each call, in seconds")] = 1.0,
    rows: RowsOption = 100,
    table_rows: TableRows = TABLE_ROWS,
    quick: Annotated[bool, typer.Option("--quick", help="10 s of overload")] = False,
    output: OutputOption = Output.table,
    out: OutFile = None,
) -> None:
    """Three times the peak: goodput, p99 of what was accepted, memory, recovery.

    Example: baton bench overload --quick
    """
    from benchmarks import overload
    from benchmarks.site import Workload

    length = 10.0 if quick else seconds
    report = overload.run(Workload(rows, table_rows), length, min(10.0, length), deadline, say)
    _show(report, output, out)


@app.command("soak")
def soak(
    minutes: Annotated[float, typer.Option(min=0.05, help="Length of the load")] = 10.0,
    load: Annotated[float, typer.Option(min=0.01, max=1.0, help="Share of the capacity")] = 0.8,
    rows: RowsOption = 100,
    table_rows: TableRows = TABLE_ROWS,
    output: OutputOption = Output.table,
    out: OutFile = None,
) -> None:
    """Memory after minutes at 80 % load.

    Example: baton bench soak
    """
    from benchmarks import soak
    from benchmarks.site import Workload

    _show(soak.run(Workload(rows, table_rows), minutes, load, say), output, out)


@app.command("embedding")
def embedding(
    full: Annotated[bool, typer.Option("--full/--quick", help="All settings, which takes hours")] = False,
    rows: Annotated[list[int], typer.Option(min=1000, help="Rows of a table; may be repeated")] = [],  # noqa: B006
    widths: Annotated[list[int], typer.Option(min=1, help="Numbers of a row; may be repeated")] = [],  # noqa: B006
    redis: Annotated[bool, typer.Option(help="With a redis-server of its own")] = True,
    folder: Annotated[Path | None, typer.Option(help="Where tables are written and removed again")] = None,
    output: OutputOption = Output.table,
    out: OutFile = None,
) -> None:
    """Tiers, stacks and other stores against torch.index_select of the same rows; 5M x 16, Zipf, unless told.

    Example: baton bench embedding
    """
    from benchmarks import embedding

    chosen = embedding.FULL if full else embedding.QUICK
    settings = replace(chosen, rows=rows or chosen.rows, widths=widths or chosen.widths, redis=redis)
    _show(embedding.run(settings, progress=say, folder=folder), output, out)


@app.command("context")
def context(
    rows: RowsList = CONTEXT_ROWS,
    turns: RoundsOption = 40,
    table_rows: TableRows = TABLE_ROWS,
    output: OutputOption = Output.table,
    out: OutFile = None,
) -> None:
    """What computing the context once per request is worth, in process.

    Example: baton bench context
    """
    from benchmarks import context

    _show(context.run(rows=rows, turns=turns, table_rows=table_rows, progress=say), output, out)


@app.command("engine")
def engine(
    rows: RowsList = ENGINE_ROWS,
    rounds: RoundsOption = 5,
    output: OutputOption = Output.table,
    out: OutFile = None,
) -> None:
    """What the engine costs around a model, and when running inline pays, in process.

    Example: baton bench engine
    """
    from benchmarks import engine

    _show(engine.run(rows, rounds=rounds, progress=say), output, out)


@app.command("traffic")
def traffic(
    seconds: Annotated[float, typer.Option(min=0.5, help="How long predictions and labels are written")] = 10.0,
    rows: RowsOption = 100,
    rate: Annotated[float, typer.Option(min=0, help="Predictions per second; 0: as many as go")] = 0.0,
    output: OutputOption = Output.table,
    out: OutFile = None,
) -> None:
    """How fast the traffic log takes predictions and labels, joins them and reads them back.

    Example: baton bench traffic
    """
    from benchmarks import traffic

    _show(traffic.run(seconds, rows, rate, progress=say), output, out)


@app.command("log")
def log(
    full: Annotated[bool, typer.Option("--full/--quick", help="The sizes of the targets, which take hours")] = False,
    case: Annotated[list[str] | None, typer.Option(help="Only this one; may be repeated")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="Of load and of writing")] = None,
    writers: Annotated[int | None, typer.Option(min=1, help="Processes that write at once")] = None,
    predictions: Annotated[
        int | None, typer.Option(min=1024, help="Of the log that is counted and erased from")
    ] = None,
    labelled: Annotated[int | None, typer.Option(min=256, help="Behind a restart, and behind a verdict")] = None,
    keys: Annotated[int | None, typer.Option(min=1, help="Forgotten users")] = None,
    output: OutputOption = Output.table,
    out: OutFile = None,
) -> None:
    """The traffic log and the evidence read from it as both grow, against their targets.

    Example: baton bench log --case log/writers --full
    """
    from benchmarks.log.run import run
    from benchmarks.log.settings import FULL, QUICK

    chosen = FULL if full else QUICK
    settings = replace(
        chosen,
        seconds=seconds or chosen.seconds,
        writers=writers or chosen.writers,
        predictions=(predictions // 8, predictions) if predictions else chosen.predictions,
        restart=labelled or chosen.restart,
        explain=labelled or chosen.explain,
        keys=keys or chosen.keys,
    )
    _show(run(settings, case or (), progress=say), output, out)


@app.command("analysis")
def analysis(
    total: Annotated[int, typer.Option(min=10_000, help="Labelled rows")] = 10_000_000,
    rows: RowsOption = 100,
    output: OutputOption = Output.table,
    out: OutFile = None,
) -> None:
    """What a look at the labels costs after millions of labelled rows, in time and in memory.

    Example: baton bench analysis
    """
    from benchmarks import analysis

    _show(analysis.run(total, rows, progress=say), output, out)


@app.command("train")
def train(
    batch: Annotated[int, typer.Option(min=1, help="Rows of one step")] = 4096,
    vocabulary: Annotated[int, typer.Option(min=1, help="Ids per field")] = 20_000,
    rounds: RoundsOption = 20,
    output: OutputOption = Output.table,
    out: OutFile = None,
) -> None:
    """Rows per second of training with growing tables, against the same network alone on dense inputs.

    Example: baton bench train
    """
    from benchmarks import training

    _show(training.run(batch=batch, vocabulary=vocabulary, rounds=rounds, progress=say), output, out)


@app.command("projection")
def projection(
    rows: Annotated[int, typer.Option(min=1, help="Of the table")] = 10_000_000,
    output: OutputOption = Output.table,
    out: OutFile = None,
) -> None:
    """Seconds and peak memory of S1A on one large table, 16 -> 32 and 32 -> 16.

    Example: baton bench projection
    """
    from benchmarks import projection

    _show(projection.run(rows, progress=say), output, out)


@app.command("teachers")
def teachers(
    members: Annotated[list[int], typer.Option(min=1, help="Processes in the pool; repeatable")] = [1, 2, 3, 4],  # noqa: B006
    rows: Annotated[int, typer.Option(min=1, help="Scored in each turn")] = 200_000,
    rounds: Annotated[int, typer.Option(min=1, help="Turns; figures are their medians")] = 3,
    output: OutputOption = Output.table,
    out: OutFile = None,
) -> None:
    """Rows per second that a pool of teachers scores, by members.

    Example: baton bench teachers --members 1 --members 2
    """
    from benchmarks import teachers

    _show(teachers.run(tuple(members), rows, rounds, progress=say), output, out)


@app.command("drift")
def drift(
    rows: Annotated[int, typer.Option(min=20_000, help="Of every generated log")] = 500_000,
    seeds: Annotated[int, typer.Option(min=1, help="Logs, each with its own models")] = 3,
    output: OutputOption = Output.table,
    out: OutFile = None,
) -> None:
    """Rows that the online stage needs to recover from an abrupt change, adapting against constants; some minutes.

    Example: baton bench drift -o json
    """
    from benchmarks import drift

    _show(drift.run(rows, seeds, progress=say), output, out)


@app.command("levels")
def levels(
    rows: Annotated[int, typer.Option(min=20_000, help="Of the traffic")] = 2_000_000,
    first: Annotated[int, typer.Option(min=0, help="First seed")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Logs, each with its own models")] = 4,
    output: OutputOption = Output.table,
    out: OutFile = None,
) -> None:
    """Bias on the full traffic of models of logs that lack rows, by each way to say so; some minutes a seed.

    Example: baton bench levels --rows 1000000 --first 1 --seeds 1
    """
    from benchmarks import levels

    _show(levels.run(rows, first, seeds, progress=say), output, out)


def _settings(config: Path | None) -> dict[str, Any]:
    """Sections of baton.yaml other than those that a bench sets itself."""
    if config is None:
        return {}
    try:
        found = yaml.safe_load(config.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise InvalidInput(f"--config {config} cannot be read: {error}", "config") from None
    if not isinstance(found, dict):
        raise InvalidInput(
            f"--config {config} must be a mapping of sections, for example engine: {{lanes: 2}}", "config"
        )
    own = OWN_SECTIONS & found.keys()
    if own:
        raise InvalidInput(f"--config {config}: a bench sets {sorted(own)[0]!r} itself; leave it out", sorted(own)[0])
    return found


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

"""Commands `baton train`, `baton transfer` and `baton replay`: a teacher, a student and live traffic from a log."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.arrays import F32
from pipeline.bundle.bundle import MANIFEST, read_manifest
from pipeline.bundle.row_format import RowFormat
from pipeline.calibration import probabilities
from pipeline.errors import InvalidInput
from pipeline.features import Rows as DenseRows
from serving.cli.bundle_place import BundlePlace, ConfigFile, Out, place_of
from serving.cli.click_log import click_log
from serving.cli.levels import Traffic, show_sides, traffic_of, warnings_of
from serving.cli.output import Output, emit, say

if TYPE_CHECKING:
    from pipeline.arrays import F32
    from transfer.click_model.model import ClickModel
    from transfer.data import Log
    from transfer.offline.distill import Stage1Settings
    from transfer.quality.measured import PeakMemory, Stopwatch

__all__ = ["replay", "train", "transfer"]


class Mode(StrEnum):
    """Value of `--mode`."""

    ours = "ours"
    published = "published"


class Device(StrEnum):
    """Value of `--device`."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


Data = Annotated[Path, typer.Option(help="Data set descriptor (dataset.yaml)")]
Start = Annotated[
    float, typer.Option("--from", min=0, max=1, help="First row, as a fraction of the rows in time order")
]
Stop = Annotated[float, typer.Option("--to", min=0, max=1, help="Last row, as a fraction of the rows in time order")]
Cache = Annotated[Path, typer.Option(help="Where the prepared log is kept between runs")]
Seed = Annotated[int, typer.Option(help="Seed of all random numbers")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of training; more than 1 helps large networks only")]
Where = Annotated[
    Device,
    typer.Option(
        help="Where the network is trained; auto is a GPU where there is one, whose sums vary in their last bits"
    ),
]
Admit = Annotated[
    int,
    typer.Option(
        min=1, max=255, help="Times an id is seen before it gets a row of its own, here and later in the worker"
    ),
]
Evict = Annotated[
    int | None,
    typer.Option(min=1, help="Rows trained since an id was last seen after which its row is evicted; default: never"),
]
Rows = Annotated[RowFormat, typer.Option(help="How the bundle stores rows; below float32 it serves rounded rows")]
Retained = Annotated[Path | None, typer.Option(help="Also keep a sample of the rows here, for the worker to replay")]
Teachers = Annotated[int, typer.Option(min=0, help="Processes that score rows for the student; 0: this one does")]
Ray = Annotated[str, typer.Option(help="Address of a Ray cluster whose nodes the teachers run on")]
WindowFraction = Annotated[
    float | None,
    typer.Option(
        "--share",
        min=0.001,
        max=1.0,
        help="Newest fraction of the window to train on, 1 for all of it; default: a tenth, then all of it where the "
        "student is ahead of its teacher",
    ),
]
Format = Annotated[Output, typer.Option("-o", "--output", help="table for people, json for programs")]
CACHE = Path(".baton/cache")
RETAINED_ROWS = 200_000
NEXT_FRACTION = 0.1
"""Fraction of the log after the window that a new model is measured on."""


def train(
    data: Data,
    arch: Annotated[str, typer.Option(help="Architecture, for example deepfm or deepfm-16 (with its vectors' width)")],
    out: Out = None,
    name: Annotated[
        str, typer.Option(help="Bundle name; default: that of a directory NAME/N, else the architecture")
    ] = "",
    config: ConfigFile = Path("baton.yaml"),
    rows: Rows = "float32",
    start: Start = 0.0,
    stop: Stop = 1.0,
    cache: Cache = CACHE,
    seed: Seed = 0,
    threads: Threads = 1,
    device: Where = Device.auto,
    admit_after: Admit = 1,
    evict_after: Evict = None,
    output: Format = Output.table,
) -> None:
    """Train a teacher on a log, in time order, and write it as a bundle: the next version of NAME, or a directory.

    Example: baton train --data dataset.yaml --arch deepfm --name teacher --to 0.4
    """
    import torch

    from serving.cli.progress import rows_progress
    from transfer.click_model.blocks import TableSettings
    from transfer.click_model.model import LearningSettings
    from transfer.model_zoo import Architectures, parse_arch
    from transfer.offline.train import TrainSettings
    from transfer.offline.train import train as run
    from transfer.quality.measured import PeakMemory, Stopwatch

    _check_window(start, stop)
    torch.set_num_threads(threads)
    kind, width = parse_arch(arch)
    architectures = Architectures([kind])
    place = place_of(out, name, config, _short(arch))
    log = click_log(data, cache)
    memory, watch = PeakMemory(), Stopwatch()
    learning = LearningSettings(tables=TableSettings(admit_after=admit_after, evict_after=evict_after))
    settings = TrainSettings(stored=rows, device=device.value, learning=learning)
    total = round(log.rows * (stop - start))
    with place.held(), rows_progress(f"training {arch}", total) as progress, watch.running():
        model = run(
            log,
            kind,
            width=width,
            start=start,
            stop=stop,
            seed=seed,
            settings=settings,
            progress=progress,
            architectures=architectures,
        )
    _publish(model, log, start, stop, watch, memory, place, output)


def transfer(
    teacher: Annotated[Path, typer.Option(help="The teacher's bundle directory")],
    arch: Annotated[str, typer.Option(help="The student's architecture, for example dcnv2-16")],
    data: Data,
    out: Out = None,
    name: Annotated[
        str, typer.Option(help="Bundle name; default: that of a directory NAME/N, else the architecture")
    ] = "",
    config: ConfigFile = Path("baton.yaml"),
    teacher_arch: Annotated[
        str,
        typer.Option(
            help="Class that the teacher's bundle may name, as package.module:Class, where it is one of your own"
        ),
    ] = "",
    mode: Annotated[Mode, typer.Option(help="ours, or published: CrossAdapt's constants, no corrections")] = Mode.ours,
    rows: Rows = "float32",
    start: Start = 0.0,
    stop: Stop = 1.0,
    retained: Retained = None,
    cache: Cache = CACHE,
    seed: Seed = 0,
    threads: Threads = 1,
    device: Where = Device.auto,
    admit_after: Admit = 1,
    evict_after: Evict = None,
    teachers: Teachers = 0,
    ray: Ray = "",
    window_fraction: WindowFraction = None,
    without: Annotated[
        list[str] | None,
        typer.Option(help="Field of the log that the student is not to have; may be given several times"),
    ] = None,
    output: Format = Output.table,
) -> None:
    """Teach a student of another architecture from a teacher and the rows that are still there; it becomes the next
    version of NAME, or a directory.

    Example: baton transfer --teacher teacher --arch dcnv2 --data dataset.yaml --name student --from 0.4 --to 0.8
    """
    import torch

    from serving.cli.progress import rows_progress
    from serving.cli.remote_teacher import teacher_of
    from serving.cli.teachers import pooled
    from transfer.click_model.device import device_for
    from transfer.click_model.model import ClickModel
    from transfer.data import Dataset
    from transfer.data.own_fields import own_fields
    from transfer.model_zoo import Architectures, parse_arch
    from transfer.offline.distill import transfer_offline
    from transfer.offline.fields import fields_of_student
    from transfer.offline.window import Window
    from transfer.online.replay_store import keep_sample
    from transfer.quality.measured import PeakMemory, Stopwatch

    _check_window(start, stop)
    torch.set_num_threads(threads)
    kind, width = parse_arch(arch)
    place = place_of(out, name, config, _short(arch))
    settings = _stage1(mode, rows, device, admit_after, evict_after, window_fraction)
    architectures = Architectures([kind, *([parse_arch(teacher_arch)[0]] if teacher_arch else [])])
    model = teacher_of(teacher, architectures, config, teachers)
    schema, notes = fields_of_student(Dataset.load(data).like(model.schema).feature_schema, model.schema, without or ())
    for note in notes:
        say(note)
    log = click_log(data, cache, like=model.schema)
    if isinstance(model, ClickModel):
        model.to(device_for(device.value))
    memory, watch = PeakMemory(), Stopwatch()
    with (
        place.held(),
        pooled(teacher, teachers, ray, calibrated=mode is Mode.ours, architectures=architectures) as score,
        rows_progress(f"teaching {arch}", round(log.rows * (stop - start))) as progress,
        watch.running(),
    ):
        window = Window(model, log, start, stop, schema=schema, score=score)
        student, _ = transfer_offline(
            window, kind, width=width, settings=settings, seed=seed, progress=progress, architectures=architectures
        )
    read = own_fields(log.schema, model.schema)

    def guide(rows: DenseRows) -> F32:
        return model.calibrated_logits(read(rows))

    if retained is not None:
        keep_sample(log, start, stop, retained, guide, capacity=RETAINED_ROWS, seed=seed, read=window.read)
    traffic = traffic_of(config, read_manifest(teacher / MANIFEST).name)
    _publish(student, log, start, stop, watch, memory, place, output, guide, traffic, window.read)


def replay(
    data: Data,
    target: Annotated[str, typer.Option(help="host:port of the data plane")],
    endpoint: Annotated[str, typer.Option(help="Endpoint to call")],
    rate: Annotated[float, typer.Option(min=0.001, help="Requests per second")] = 50.0,
    label_delay: Annotated[float, typer.Option(min=0, help="Seconds between an answer and its labels")] = 2.0,
    start: Start = 0.0,
    stop: Stop = 1.0,
    cache: Cache = CACHE,
    output: Format = Output.table,
) -> None:
    """Send the rows of a log as live requests, and their labels late.

    Example: baton replay --data dataset.yaml --target 127.0.0.1:8001 --endpoint ranker --rate 50 --label-delay 30
    """
    from serving.cli.progress import rows_progress
    from serving.cli.replay import Replay

    _check_window(start, stop)
    log = click_log(data, cache)
    if log.label_offset != 0.0:
        say(
            "the log lacks rows (sampling): a request holds what is left of it, so the labels that are replayed are of another "
            "level than the traffic, and a rollout is judged at that level; replay a log with all rows",
            lead="warning:",
        )
    sender = Replay(target, endpoint, log.schema, rate=rate, label_delay=label_delay)
    total = round(log.rows * (stop - start))
    with rows_progress("replaying", total) as progress:

        def going() -> bool:
            progress(sender.report.rows, total)
            return False

        report = asyncio.run(sender.run(log.requests(start, stop), going))
    result: dict[str, Any] = {
        "requests": report.requests,
        "rows": report.rows,
        "errors": dict(report.errors),
        "labels": dict(report.labels),
        "latency_ms": report.latency_ms(),
        "versions": {arm: sorted(versions, key=int) for arm, versions in report.versions.items()},
    }
    emit(output, result, "replay", ("what", "value"), [(k, json.dumps(v)) for k, v in result.items()])
    if report.errors:
        raise typer.Exit(1)


def _stage1(
    mode: Mode,
    rows: RowFormat,
    device: Device,
    admit_after: int,
    evict_after: int | None,
    window_fraction: float | None,
) -> Stage1Settings:
    from transfer.offline.distill import OURS, PUBLISHED

    settings = OURS if mode is Mode.ours else PUBLISHED
    tables = replace(settings.learning.tables, admit_after=admit_after, evict_after=evict_after)
    learning = replace(settings.learning, tables=tables)
    settings = replace(settings, stored=rows, device=device.value, learning=learning)
    if window_fraction is None:
        return settings
    part = window_fraction if window_fraction < 1 else None
    return replace(settings, window_fraction=part, extend=False, warm=settings.warm and part is not None)


def _check_window(start: float, stop: float) -> None:
    if not start < stop:
        raise InvalidInput(f"--from {start} must be below --to {stop}", "from")


def _short(arch: str) -> str:
    """Name of a bundle that is given none: the architecture, or its class where it is `package.module:Class`."""
    from transfer.model_zoo import parse_arch

    return parse_arch(arch)[0].split(":")[-1].lower()


def _publish(
    model: ClickModel,
    log: Log,
    start: float,
    stop: float,
    watch: Stopwatch,
    memory: PeakMemory,
    place: BundlePlace,
    output: Output,
    teacher: Callable[[DenseRows], F32] | None = None,
    traffic: Traffic | None = None,
    read: Callable[[DenseRows], DenseRows] = lambda rows: rows,
) -> None:
    """Write a model as a bundle and print its figures, beside those of its teacher (calibrated logits of rows of the log),
    on the rows after the window, which were not trained on. `read` gives the student's fields of rows of the log."""
    from transfer.bundles.publish import save
    from transfer.offline.side_by_side import side_by_side

    bundle = save(model, place.target, place.name, version=place.number)
    written = place.written(bundle)
    scores = {"student": lambda rows: model.scores(read(rows))}
    if teacher is not None:
        scores = {"teacher": lambda rows: probabilities(teacher(rows), 1.0, 0.0), **scores}
    sides = side_by_side(log, stop, min(1.0, stop + NEXT_FRACTION), scores)
    figures = {} if sides is None else {name: sides.figures(name) for name in scores}
    after = figures.get("student")
    warnings: list[str] = []
    if teacher is not None:
        # Where the log ends with the window, its newest rows still tell the level.
        levels = sides or side_by_side(log, max(start, stop - NEXT_FRACTION), stop, scores)
        warnings = [] if levels is None else warnings_of(levels, traffic)
    result: dict[str, Any] = {
        "bundle": written,
        "name": bundle.manifest.name,
        "version": bundle.manifest.version,
        **bundle.manifest.metrics,
        "train_seconds": watch.seconds,  # a teacher's scoring included
        "rows_per_second": model.rows_trained / watch.seconds,
        "peak_mb": memory.megabytes,
        "after": after,
    }
    if teacher is not None:
        result |= {"teacher_after": figures.get("teacher"), "warnings": warnings}
    rows = [(key, value) for key, value in result.items() if key not in ("after", "teacher_after", "warnings")]
    rows += [(f"{key} on the rows after", value) for key, value in (after or {}).items() if key != "deciles"]
    emit(output, result, f"wrote {written}", ("what", "value"), rows)
    if output is Output.table:
        if after is not None:
            table = [(n + 1, *decile.values()) for n, decile in enumerate(after["deciles"])]
            columns = ("decile", "rows", "mean score", "share clicked")
            emit(output, None, "calibration on the rows after", columns, table)
            if teacher is not None:
                show_sides(figures)
        elif teacher is not None:
            say(
                "teacher and student are not compared: the log ends with the window; leave rows after it, as by --to 0.9"
            )
        say(f"look at it with: baton bundle inspect {written}")
    for warning in warnings:
        say(warning, lead="warning:")

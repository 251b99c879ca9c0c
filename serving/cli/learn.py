"""Commands `baton train`, `baton transfer` and `baton replay`: a teacher, a student and live traffic from a log."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from pipeline.bundle.row_format import RowFormat
from pipeline.errors import InvalidInput
from serving.cli.click_log import click_log
from serving.cli.output import Output, emit, say

if TYPE_CHECKING:
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
    out: Annotated[Path, typer.Option(help="Directory of the bundle; must not exist yet")],
    name: Annotated[str, typer.Option(help="Bundle name; default: the architecture")] = "",
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
    """Train a teacher on a log, in time order, and write it as a bundle.

    Example: baton train --data dataset.yaml --arch deepfm --out teacher --to 0.4
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
    log = click_log(data, cache)
    memory, watch = PeakMemory(), Stopwatch()
    learning = LearningSettings(tables=TableSettings(admit_after=admit_after, evict_after=evict_after))
    settings = TrainSettings(stored=rows, device=device.value, learning=learning)
    with rows_progress(f"training {arch}", round(log.rows * (stop - start))) as progress, watch.running():
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
    _publish(model, log, stop, watch, memory, out, name, output)


def transfer(
    teacher: Annotated[Path, typer.Option(help="The teacher's bundle directory")],
    arch: Annotated[str, typer.Option(help="The student's architecture, for example dcnv2-16")],
    data: Data,
    out: Annotated[Path, typer.Option(help="Directory of the student's bundle; must not exist yet")],
    name: Annotated[str, typer.Option(help="Bundle name; default: the architecture")] = "",
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
    output: Format = Output.table,
) -> None:
    """Teach a student of another architecture from a teacher and the rows that are still there.

    Example: baton transfer --teacher teacher --arch dcnv2 --data dataset.yaml --out student --from 0.4 --to 0.8
    """
    import torch

    from serving.cli.progress import rows_progress
    from serving.cli.teachers import pooled
    from transfer.bundles.frozen import load_teacher
    from transfer.click_model.device import device_for
    from transfer.click_model.model import ClickModel
    from transfer.model_zoo import Architectures, parse_arch
    from transfer.offline.distill import transfer_offline
    from transfer.offline.window import Window
    from transfer.online.replay_store import keep_sample
    from transfer.quality.measured import PeakMemory, Stopwatch

    _check_window(start, stop)
    torch.set_num_threads(threads)
    kind, width = parse_arch(arch)
    settings = _stage1(mode, rows, device, admit_after, evict_after, window_fraction)
    architectures = Architectures([kind, *([parse_arch(teacher_arch)[0]] if teacher_arch else [])])
    model = load_teacher(teacher, architectures)
    log = click_log(data, cache, like=model.schema)
    if isinstance(model, ClickModel):
        model.to(device_for(device.value))
    memory, watch = PeakMemory(), Stopwatch()
    with (
        pooled(teacher, teachers, ray, calibrated=mode is Mode.ours, architectures=architectures) as score,
        rows_progress(f"teaching {arch}", round(log.rows * (stop - start))) as progress,
        watch.running(),
    ):
        window = Window(model, log, start, stop, score=score)
        student, _ = transfer_offline(
            window, kind, width=width, settings=settings, seed=seed, progress=progress, architectures=architectures
        )
    if retained is not None:
        keep_sample(log, start, stop, retained, model.calibrated_logits, capacity=RETAINED_ROWS, seed=seed)
    _publish(student, log, stop, watch, memory, out, name, output)


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
    sender = Replay(target, endpoint, log.schema, rate=rate, label_delay=label_delay)
    total = round(log.rows * (stop - start))
    with rows_progress("replaying", total) as progress:

        def going() -> bool:
            progress(sender.report.rows, total)
            return False

        report = asyncio.run(sender.run(log.requests(start, stop), going))
    result = {
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


def _after(model: ClickModel, log: Log, stop: float) -> dict[str, Any] | None:
    """Metrics and calibration by decile on the rows after the window, which were not trained on; None: there are none."""
    from transfer.offline.train import measure
    from transfer.quality.figures import deciles

    chunks = list(log.chunks(stop, min(1.0, stop + NEXT_FRACTION)))
    if not chunks:
        return None
    scores = np.concatenate([model.scores(chunk.rows) for chunk in chunks])
    labels = np.concatenate([chunk.labels for chunk in chunks])
    return {**measure(scores, labels), "deciles": [asdict(decile) for decile in deciles(scores, labels)]}


def _publish(
    model: ClickModel,
    log: Log,
    stop: float,
    watch: Stopwatch,
    memory: PeakMemory,
    out: Path,
    name: str,
    output: Output,
) -> None:
    """Write a model as a bundle and print its figures."""
    from transfer.bundles.publish import save

    # An architecture may be `package.module:Class`; the bundle gets the name of the class.
    bundle = save(model, out, name or model.arch.split(":")[-1].lower())
    after = _after(model, log, stop)
    result = {
        "bundle": str(out),
        **bundle.manifest.metrics,
        "train_seconds": watch.seconds,  # a teacher's scoring included
        "rows_per_second": model.rows_trained / watch.seconds,
        "peak_mb": memory.megabytes,
        "after": after,
    }
    rows = [(key, value) for key, value in result.items() if key != "after"]
    rows += [(f"{key} on the rows after", value) for key, value in (after or {}).items() if key != "deciles"]
    emit(output, result, f"wrote {out}", ("what", "value"), rows)
    if output is Output.table:
        if after is not None:
            table = [(n + 1, *decile.values()) for n, decile in enumerate(after["deciles"])]
            columns = ("decile", "rows", "mean score", "share clicked")
            emit(output, None, "calibration on the rows after", columns, table)
        say(f"look at it with: baton bundle inspect {out}")

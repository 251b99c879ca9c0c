"""`baton bundle publish`: take in a bundle that was made elsewhere as the next version of its name."""

from __future__ import annotations

import getpass
import os
import socket
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pipeline.bundle.bundle import Bundle
from pipeline.bundle.versions import Repository
from pipeline.clock import SystemClock
from pipeline.errors import BatonError, InvalidInput
from serving.cli.bundle_place import ConfigFile
from serving.cli.click_log import click_log
from serving.cli.output import Output, emit, say
from serving.cli.remote_teacher import scorer_of
from serving.config import Config
from serving.wiring.bundles import open_repository

__all__ = ["publish"]


def publish(
    folder: Annotated[Path, typer.Argument(help="The bundle's directory; it is copied and stays as it is")],
    name: Annotated[str, typer.Option(help="Bundle that it becomes a version of; default: its own name")] = "",
    gate: Annotated[
        Path | None,
        typer.Option(help="dataset.yaml: judge it on these rows beside the newest version, as a worker's versions are"),
    ] = None,
    calibrate: Annotated[
        Path | None, typer.Option(help="dataset.yaml: fit its calibration to these rows before it is judged")
    ] = None,
    start: Annotated[
        float, typer.Option("--from", min=0, max=1, help="First row of these logs, as a fraction in time order")
    ] = 0.0,
    stop: Annotated[
        float, typer.Option("--to", min=0, max=1, help="Last row of these logs, as a fraction in time order")
    ] = 1.0,
    cache: Annotated[Path, typer.Option(help="Where prepared logs are kept between runs")] = Path(".baton/cache"),
    config: ConfigFile = Path("baton.yaml"),
    output: Annotated[
        Output, typer.Option("-o", "--output", help="table for people, json for programs")
    ] = Output.table,
) -> None:
    """Take a bundle in as the next version of its name: verified, tried, judged where --gate is given, and renamed into
    place. Exit code 1: it was refused, and what serves stays.

    A bundle that is damaged gets no number. One that the gate refuses keeps its number and the gate's reasons, and is never
    served. A model that stays on its server is scored there.

    Example: baton bundle publish /data/nightly/ranker --gate yesterday.yaml
    """
    from pipeline.model.probe import ProbeLimits
    from transfer.bundles.take_in import checked, judged, take_in
    from transfer.quality.calibrating import fit_bundle
    from transfer.quality.gate import GateLimits

    if not start < stop:
        raise InvalidInput(f"--from {start} must be below --to {stop}", "from")
    settings = Config.load(config)
    repository = open_repository(settings)
    engine, worker = settings.engine, settings.worker
    bundle = checked(folder, repository, name, limits=ProbeLimits(engine.load_timeout, engine.load_memory_bytes))
    name = name or bundle.manifest.name
    _warn(bundle, repository, name)
    calibration = bundle.manifest.calibration
    schema = bundle.manifest.model_schema
    if calibrate is not None:
        calibration = fit_bundle(bundle, click_log(calibrate, cache, like=schema), start=start, stop=stop)
    judgement = None
    if gate is not None:
        limits = GateLimits()
        if worker is not None:
            limits = GateLimits(worker.gate_logloss_margin, worker.gate_auc_margin, worker.gate_bias)
        log = click_log(gate, cache, like=schema)
        scorer = partial(scorer_of, settings.remote)
        judgement = judged(bundle, calibration, repository, name, log, start, stop, limits, scorer)
    taken = take_in(
        bundle,
        repository,
        name,
        now_ms=SystemClock().wall_ms(),
        calibration=calibration,
        judgement=judgement,
        publisher=_user(),
    )
    manifest = taken.manifest
    verdict = "not judged" if judgement is None else "passed" if judgement.report.passed else "refused"
    reasons: list[str] = [] if judgement is None else list(judgement.report.reasons)
    figures: dict[str, float | None] = {} if judgement is None else judgement.report.figures
    facts = {"name": manifest.name, "version": manifest.version, "bundle": str(taken.path), "gate": verdict}
    result = {**facts, "reasons": reasons, "figures": figures, "calibration": manifest.calibration.model_dump()}
    rows: list[tuple[str, object]] = [*facts.items(), *(("refused", reason) for reason in reasons)]
    rows += [("alpha", manifest.calibration.alpha), ("beta", manifest.calibration.beta), *sorted(figures.items())]
    emit(output, result, f"{manifest.name} {manifest.version}", ("what", "value"), rows)
    if verdict == "refused":
        say(f"the gate refused it: version {manifest.version} keeps its report and is never served")
        raise typer.Exit(1)


def _user() -> str:
    """Who publishes, for the manifest."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError):  # a user id without a name, as in a container
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()}"


def _warn(bundle: Bundle, repository: Repository, name: str) -> None:
    """Say where the fields are not those of the newest version: callers of that one may send others."""
    try:
        newest = repository.newest(name)[-1].manifest
    except BatonError:  # there is none
        return
    difference = bundle.manifest.model_schema.inputs_match(newest.model_schema)
    if difference is not None:
        say(
            f"warning: its fields are not those of version {newest.version}: {difference}; lanes pass a candidate over whose "
            "fields do not go with the stable arm's"
        )

"""Taking in of bundles that were made elsewhere: each becomes the next version of its name, whole or not at all.

What is wrong with a bundle is found before it is given a number. Its files are copied beside their place and renamed into
it, so a publisher that is killed leaves nothing that could be taken for a version. Numbers are those of
`pipeline.bundle.versions`, which a worker's own versions have, too.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.arrays import F32
from pipeline.bundle.bundle import DENSE, Bundle, BundleWriter, Calibration, GateReport, sha256_of
from pipeline.bundle.versions import Repository, is_name
from pipeline.calibration import probabilities
from pipeline.errors import BundleError, DataError, InvalidInput, NotFound
from pipeline.model.probe import ProbeLimits, probe_bundle
from pipeline.model.scorer import Scorer
from transfer.data import Log
from transfer.quality.calibrating import RowScorer, scored_rows
from transfer.quality.gate import GateLimits, bias_error_of, judge

__all__ = ["Judgement", "OpenScorer", "checked", "judged", "local_scorer", "take_in"]

OpenScorer = Callable[[Bundle], AbstractContextManager[RowScorer]]
"""Opens what scores the rows of a bundle."""

JUDGED = ("auc", "logloss", "bias", "rows", "positives")


@dataclass(frozen=True, slots=True)
class Judgement:
    """The gate's report on a bundle, and its metrics on the gate's rows, with the version that they compare it with."""

    report: GateReport
    metrics: Mapping[str, float | None]
    shift_from: str | None = None


def checked(source: Path, repository: Repository, name: str = "", *, limits: ProbeLimits | None = None) -> Bundle:
    """A bundle that may be taken in: it is verified and probed, and can stand alone.

    Args:
        name: under which it is to be taken in; empty: its own.

    Raises:
        BundleError: it is damaged, its network does not pass the probe, or it is a delta.
        InvalidInput: `name` is none.
    """
    bundle = Bundle.open(source, verify=True)
    manifest = bundle.manifest
    if name and not is_name(name):
        raise InvalidInput(f"--name {name!r} is no name of a bundle: letters, digits, '_', '.' and '-'", "name")
    if manifest.base is not None:
        raise BundleError(
            f"{source}: is a delta on version {manifest.base} of {manifest.name!r}; publish a base, which holds all rows",
            "base",
        )
    if not manifest.servable:
        reasons = "; ".join(manifest.gate.reasons) if manifest.gate else ""
        raise BundleError(f"{source}: the gate refused it where it was made, so it has no network: {reasons}", "gate")
    for table in manifest.tables:
        bundle.stored_table(table)
    if DENSE in manifest.files:
        verdict = probe_bundle(bundle, limits or ProbeLimits())
        if verdict.reason:
            raise BundleError(f"{source}: {verdict.reason}", DENSE)
    return bundle


def local_scorer(bundle: Bundle) -> AbstractContextManager[RowScorer]:
    """What scores a bundle whose network is here. It is not probed again: it was checked, or it serves."""
    return Scorer(bundle, probed=True)


def judged(
    bundle: Bundle,
    calibration: Calibration,
    repository: Repository,
    name: str,
    log: Log,
    start: float,
    stop: float,
    limits: GateLimits,
    scorer_of: OpenScorer = local_scorer,
) -> Judgement:
    """The gate's judgement of a bundle on rows of a log, beside the newest version of `name` that may serve.

    Args:
        calibration: with which it is to serve.
        start, stop: row quantiles of the log; none of the rows should have trained either.
        scorer_of: opens what scores either of the two.

    Raises:
        DataError: there are no rows.
        InvalidInput: the log lacks fields of one of the two.
        NotReady: the server of one of the two does not score the rows.
    """

    def scored(one: Bundle) -> tuple[F32, F32, F32]:
        with scorer_of(one) as scorer:
            return scored_rows(scorer, log, start, stop)

    logits, labels, stands_for = scored(bundle)
    if not len(labels):
        raise DataError(f"there are no rows between {start} and {stop} of log {log.name!r} to judge on", "gate")
    scores = _scores(logits, calibration)
    references = {}
    try:
        newest = repository.newest(name, verify=True)[-1]
    except NotFound:  # it is the first
        newest = None
    if newest is not None:
        references["serving"] = _scores(scored(newest)[0], newest.manifest.calibration)
    report = judge(
        logits,
        scores,
        labels,
        references,
        limits,
        bias_error=bias_error_of(scores, labels, stands_for),
        stands_for=stands_for,
    )
    metrics: dict[str, float | None] = {key: report.figures.get(key) for key in JUDGED}
    if references and np.isfinite(scores).all():
        # The rollout starts its evidence anew when a version moves the mean score.
        metrics["score_shift"] = float(
            np.average(scores, weights=stands_for) / np.average(references["serving"], weights=stands_for) - 1
        )
    return Judgement(report, metrics, None if newest is None else newest.manifest.version)


def take_in(
    bundle: Bundle,
    repository: Repository,
    name: str = "",
    *,
    now_ms: int,
    version: str = "",
    calibration: Calibration | None = None,
    judgement: Judgement | None = None,
    publisher: str = "",
) -> Bundle:
    """Write a bundle as the next version of its name. One that the gate refused is written as a manifest with its report,
    as the worker's are.

    Args:
        bundle: as `checked` gave it.
        name: of the version; empty: the bundle's own.
        now_ms: Unix time, written into the manifest.
        version: number that was reserved before; empty: the next one.
        calibration: in place of the bundle's own.
        judgement: of the gate; None: it was not judged.
        publisher: who takes it in.

    Raises:
        BundleError: a file changed after it was checked.
        NotReady: the disk is full or fails, or the repository does not answer. Nothing is left of the version.
    """
    source = bundle.manifest
    # A report of elsewhere, and what it measures, are about another version that served there.
    report = None if judgement is None else judgement.report
    own = {key: value for key, value in source.metrics.items() if key != "score_shift"}
    name = name or source.name
    manifest = source.model_copy(
        update={
            "name": name,
            "version": version or repository.reserve(name),
            "parent": None,  # a number of the repository where it was made
            "calibration": calibration or source.calibration,
            "metrics": {**own, **({} if judgement is None else judgement.metrics)},
            "gate": report,
            "publisher": publisher,
            "shift_from": None if judgement is None else judgement.shift_from,
            "created_ms": now_ms,
        }
    )
    while repository.path(name, manifest.version).exists():  # copied there by hand meanwhile
        manifest = manifest.model_copy(update={"version": repository.reserve(name)})
    with BundleWriter(repository.path(name, manifest.version)) as writer:
        for file, info in source.files.items() if manifest.servable else ():
            copy = writer.path(file)
            shutil.copyfile(bundle.file(file), copy)
            if copy.stat().st_size != info.bytes or sha256_of(copy) != info.sha256:
                raise BundleError(f"{bundle.path}: {file} changed while it was taken in: publish what is whole", file)
        return writer.finish(manifest, repository.publish)


def _scores(logits: F32, calibration: Calibration) -> F32:
    return probabilities(logits, calibration.alpha, calibration.beta)

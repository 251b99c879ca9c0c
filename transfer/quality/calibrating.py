"""Calibration of a bundle on a log: `--calibrate DATA` of import and publish.

A model that was trained elsewhere, or on a thinned log, ranks well at a wrong level. `fit_bundle` fits alpha and beta on
labelled rows, each of which counts for what it stands for (`sampling` in dataset.yaml); `calibrated` writes a copy of the
bundle with them. Next stop: `transfer.click_model.calibration` (the fit itself).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from pipeline.arrays import F32
from pipeline.bundle.bundle import Bundle, BundleWriter, Calibration, Manifest
from pipeline.errors import DataError, InvalidInput
from pipeline.features import Rows
from pipeline.model.scorer import Scorer
from pipeline.schema import Schema
from transfer.click_model.calibration import fit_calibration
from transfer.data import Log, open_log
from transfer.data.own_fields import own_fields

__all__ = ["RowScorer", "calibrated", "fit_bundle", "scored_rows"]

CACHE = Path(".baton/cache")
ROWS = 8192


class RowScorer(Protocol):
    """What scores rows as a bundle: its fields, and logits float32 `[n]` before calibration. A `Scorer`, or a server's."""

    @property
    def schema(self) -> Schema: ...

    def logits(self, rows: Rows) -> F32: ...


def fit_bundle(
    bundle: Bundle | Path, data: Log | Path, *, start: float = 0.0, stop: float = 1.0, cache: Path = CACHE
) -> Calibration:
    """The calibration at which a bundle's scores have the level of a log's labels.

    Args:
        bundle: a base, or its directory; its present calibration does not matter.
        data: a log, or a `dataset.yaml`; it may have fields that the bundle does not read. Best are rows that the model was
            not trained on.
        start, stop: row quantiles of the log.
        cache: folder of prepared logs.

    Returns:
        alpha and beta; alpha stays 1 where a class has few labels (`transfer.click_model.calibration`).

    Raises:
        BundleError: the bundle is damaged, or its network does not pass the probe.
        DataError: the log cannot be read, has no rows there or one class, or the model's logits are not finite.
        InvalidInput: the bundle has no network here (it is remote, or a delta), or the log lacks fields that it reads.
    """
    opened = Bundle.open(bundle) if isinstance(bundle, Path) else bundle
    manifest = opened.manifest
    if manifest.remote:
        raise InvalidInput(f"{opened.path}: its model is on another server; calibrate it there", "calibrate")
    if manifest.base is not None:
        raise InvalidInput(f"{opened.path}: is a delta; calibrate a base", "calibrate")
    log = open_log(data, cache, like=manifest.model_schema) if isinstance(data, Path) else data
    own_fields(log.schema, manifest.model_schema)  # what the log lacks is said before anything is loaded
    with Scorer(opened) as scorer:
        logits, labels, stands_for = scored_rows(scorer, log, start, stop)
    if not len(labels):
        raise DataError(
            f"there are no rows between {start} and {stop} of log {log.name!r} to calibrate on", "calibrate"
        )
    return fit_calibration(logits, labels, stands_for)


def scored_rows(scorer: RowScorer, log: Log, start: float, stop: float) -> tuple[F32, F32, F32]:
    """Logits, before calibration, labels, and what they stand for, of the rows of a log, float32 `[n]` each.

    Args:
        start, stop: row quantiles of the log, which may have fields that the model does not read.

    Raises:
        InvalidInput: the log lacks fields of the model.
    """
    read = own_fields(log.schema, scorer.schema)
    logits, labels, stand_for = ([np.empty(0, np.float32)] for _ in range(3))
    for chunk in log.chunks(start, stop, ROWS):
        logits.append(scorer.logits(read(chunk.rows)))
        labels.append(chunk.labels)
        stand_for.append(chunk.stands_for)
    return np.concatenate(logits), np.concatenate(labels), np.concatenate(stand_for)


def calibrated(
    bundle: Bundle,
    calibration: Calibration,
    target: Path,
    *,
    name: str | None = None,
    version: str | None = None,
    publish: Callable[[Path, Manifest], None] | None = None,
) -> Bundle:
    """A copy of a bundle with another calibration; the original is not changed.

    Args:
        target: directory of the copy, which must not exist yet.
        name, version: of the copy; None: the bundle's own.
        publish: as of `BundleWriter.finish`.

    Raises:
        BundleError: the place is taken, or a file cannot be read.
        NotReady: the disk is full or fails.
    """
    manifest = bundle.manifest.model_copy(
        update={
            "calibration": calibration,
            "name": name or bundle.manifest.name,
            "version": version or bundle.manifest.version,
        }
    )
    with BundleWriter(target) as writer:
        for file in bundle.manifest.files:
            shutil.copyfile(bundle.file(file), writer.path(file))
        return writer.finish(manifest, publish)

"""Model on another server, for commands: rows are scored there, as requests are. Transfer itself knows no servers."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.arrays import F32
from pipeline.bundle.bundle import Bundle
from pipeline.clock import SystemClock
from pipeline.errors import InvalidInput, RemoteTimeout, RemoteUnavailable
from pipeline.features import Features, Rows
from pipeline.model.remote import LEAST_PROBABILITY, RemoteModel
from serving.config import Config
from serving.config.remote import RemoteConfig
from serving.lane.remote import RemoteServers

if TYPE_CHECKING:
    from transfer.bundles.frozen import FrozenTeacher
    from transfer.click_model.model import ClickModel
    from transfer.model_zoo import Architectures
    from transfer.quality.calibrating import RowScorer

__all__ = ["RemoteTeacher", "scorer_of", "teacher_of"]

TRIES, PAUSE_S = 30, 1.0
"""A long transfer outlives a restart of its teacher's server."""


class RemoteTeacher:
    """Logits of a remote bundle. One thread.

    Attributes:
        schema, calibration: as published.
        frozen: True: it cannot learn here.

    Raises:
        BundleError, RemoteUnavailable, RemoteTimeout: as `RemoteModel.open`.
    """

    frozen = True

    def __init__(self, bundle: Bundle, config: RemoteConfig) -> None:
        self._model = RemoteModel.open(bundle, RemoteServers(config, SystemClock()).connect)
        self.schema, self.calibration = self._model.schema, self._model.calibration
        # Rows of a log share no request, so context that is sent once makes a call of each.
        once = any(put.per_request for put in self._model.spec.inputs.values())
        self._step = 1 if once else self._model.spec.remote.max_rows

    def calibrated_logits(self, rows: Rows) -> F32:
        """Logits float32 `[n]` after calibration.

        Raises:
            RemoteUnavailable, RemoteTimeout, RemoteFault, NotFinite: the server does not score a row.
        """
        parts = [rows.slice(start, min(start + self._step, len(rows))) for start in range(0, len(rows), self._step)]
        scores = np.concatenate([np.zeros(0, np.float32), *map(self._scores, parts)]).astype(np.float64)
        within = np.clip(scores, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
        return np.log(within / (1 - within)).astype(np.float32)

    def logits(self, rows: Rows) -> F32:
        """Logits float32 `[n]` before calibration."""
        return ((self.calibrated_logits(rows) - self.calibration.beta) / self.calibration.alpha).astype(np.float32)

    def _scores(self, rows: Rows) -> F32:
        features = Features.from_rows(rows)
        for _ in range(TRIES - 1):
            try:
                return self._model.score(features)
            except (RemoteUnavailable, RemoteTimeout):
                time.sleep(PAUSE_S)
        return self._model.score(features)


def scorer_of(config: RemoteConfig, bundle: Bundle) -> AbstractContextManager[RowScorer]:
    """What scores the rows of a bundle: its network here, or its server, which whoever runs a command may ask.

    Raises:
        BundleError, RemoteUnavailable, RemoteTimeout: as `RemoteModel.open`.
    """
    from transfer.bundles.take_in import local_scorer

    if not bundle.manifest.remote:
        return local_scorer(bundle)
    target = bundle.remote_spec().remote.target
    return nullcontext(RemoteTeacher(bundle, config.model_copy(update={"addresses": (*config.addresses, target)})))


def teacher_of(
    path: Path, architectures: Architectures, config: Path, pool: int = 0
) -> ClickModel | FrozenTeacher | RemoteTeacher:
    """The teacher in a bundle's directory: one that learns, an imported one, or one on another server.

    Args:
        architectures: what the bundle may name.
        config: configuration file, for its section `remote`; its absence is fine.
        pool: processes that are to score.

    Raises:
        BundleError, InvalidInput: as `load_teacher`; or it is on another server, and a pool was asked for.
    """
    from transfer.bundles.frozen import load_teacher

    bundle = Bundle.open(path)
    if not bundle.manifest.remote:
        return load_teacher(path, architectures)
    if pool:
        raise InvalidInput(f"{path} is a model on another server, so --teachers has nothing to start", "teachers")
    return RemoteTeacher(bundle, (Config.load(config) if config.exists() else Config()).remote)

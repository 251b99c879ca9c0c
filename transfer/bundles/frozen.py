"""Frozen teacher: a published model that cannot be trained, scored as serving scores it.

It gives logits to learn from; it has no tables to project. `load_teacher` is the entry point.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from pipeline.arrays import F32
from pipeline.bundle.bundle import DENSE, Bundle, Calibration
from pipeline.embedding.hierarchy.store import EmbeddingStore
from pipeline.errors import BundleError
from pipeline.features import Features, Rows
from pipeline.inputs import Layout
from pipeline.model.model import Model
from pipeline.model.network import Network
from pipeline.model.probe import ProbeLimits, probe_bundle
from pipeline.schema import Schema
from transfer.architecture_names import IMPORTED
from transfer.bundles.publish import load
from transfer.click_model.model import ClickModel
from transfer.model_zoo import ZOO_ALONE, Architectures

__all__ = ["FrozenTeacher", "load_teacher"]

SCORING_ROWS = 8192


class FrozenTeacher:
    """The logits of a base bundle. One thread.

    Attributes:
        schema, calibration: as published.
        frozen: True: it cannot learn.

    Raises:
        BundleError: the bundle is damaged, or its network does not pass the probe.
    """

    frozen = True

    def __init__(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        verdict = probe_bundle(bundle, ProbeLimits())
        if verdict.reason:
            raise BundleError(f"{bundle.path}: {verdict.reason}", DENSE)
        self.schema: Schema = manifest.model_schema
        self.calibration: Calibration = manifest.calibration
        self._segments = TemporaryDirectory(prefix="baton-teacher-")
        store = EmbeddingStore.open([bundle], Path(self._segments.name))
        network = Network(bundle.file(DENSE), Layout.full(self.schema), linear=manifest.linear, device="cpu")
        self._model = Model(bundle, store, network)

    def logits(self, rows: Rows) -> F32:
        """Logits float32 `[n]`, before calibration."""
        out = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), SCORING_ROWS):
            part = rows.slice(start, min(start + SCORING_ROWS, len(rows)))
            out[start : start + len(part)] = self._model.whole.run(self._model.embed(Features.from_rows(part)))
        return out

    def calibrated_logits(self, rows: Rows) -> F32:
        """Logits float32 `[n]` after calibration."""
        return (self.calibration.alpha * self.logits(rows) + self.calibration.beta).astype(np.float32)


def load_teacher(path: Path, architectures: Architectures = ZOO_ALONE) -> ClickModel | FrozenTeacher:
    """The teacher in a bundle's directory: a model that can learn on, or an imported one that only scores.

    Args:
        architectures: what the bundle may name.

    Raises:
        BundleError: it is no bundle, or damaged.
        InvalidInput: its architecture is not among `architectures`, or it is a delta, which needs the repository that holds its base.
    """
    bundle = Bundle.open(path)
    return FrozenTeacher(bundle) if bundle.manifest.architecture == IMPORTED else load(bundle, architectures)

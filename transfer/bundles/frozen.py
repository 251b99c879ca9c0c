"""Frozen teacher: a published model that cannot be trained, scored as serving scores it.

It gives logits to learn from, and lends its tables where they hold vectors. `load_teacher` is the entry point.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.arrays import F32
from pipeline.bundle.bundle import Bundle, Calibration
from pipeline.errors import BundleError
from pipeline.features import Rows
from pipeline.model.scorer import Scorer
from pipeline.schema import Schema
from transfer.architecture_names import IMPORTED
from transfer.bundles.lent_tables import LentTables
from transfer.bundles.publish import load
from transfer.click_model.model import ClickModel
from transfer.model_zoo import ZOO_ALONE, Architectures

__all__ = ["FrozenTeacher", "load_teacher"]


class FrozenTeacher:
    """The logits of a base bundle. One thread.

    Attributes:
        schema, calibration: as published.
        frozen: True: it cannot learn.
        tables: those that hold vectors, for a student to start from; tables of codes are not among them.

    Raises:
        BundleError: the bundle is damaged, or its network does not pass the probe.
    """

    frozen = True

    def __init__(self, bundle: Bundle) -> None:
        self._scorer = Scorer(bundle)
        self.schema: Schema = self._scorer.schema
        self.calibration: Calibration = self._scorer.calibration
        self.tables = LentTables(bundle)

    def logits(self, rows: Rows) -> F32:
        """Logits float32 `[n]`, before calibration."""
        return self._scorer.logits(rows)

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
    if bundle.manifest.remote:
        raise BundleError(f"{path} is a model on another server: rows are scored there, not here", "architecture")
    return FrozenTeacher(bundle) if bundle.manifest.architecture == IMPORTED else load(bundle, architectures)

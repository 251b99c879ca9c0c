"""A lineage of versions: one model in training, and the calibration, judgement and publication of its next version.

A version is published from a committed checkpoint only: as a delta of the rows touched since the last one, or as a new
base when there are many deltas. A refused version keeps its number and its report; training goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.arrays import F32
from pipeline.bundle.bundle import GateReport
from pipeline.bundle.verified import NOTES
from pipeline.bundle.versions import Repository
from pipeline.calibration import probabilities, sigmoid
from pipeline.errors import BatonError, InvalidInput
from pipeline.features import Features, Rows
from pipeline.metrics import auc, bias, logloss
from pipeline.model.model import Model
from transfer.bundles.export import DenseGraph
from transfer.bundles.publish import Provenance, save
from transfer.click_model.model import ClickModel
from transfer.online.recalibrate import HeldRows, Ring, recalibrate, window_for
from transfer.quality.gate import GateLimits, bias_error_of, judge

__all__ = ["LOGGED", "Lineage"]

LOGGED = "logged"
"""Name in `HeldRows` of the teacher's calibrated logits as serving has logged them."""

PUBLISHER = "worker"
"""Of the versions of a lineage, in their manifests."""
RECENT_ROWS = 200_000
# Fewer positives than this make AUC and LogLoss too noisy for margins of a few thousandths.
LEAST_POSITIVES = 500

log = logging.getLogger(__name__)


@dataclass
class Lineage:
    """The versions of one bundle name.

    Args:
        role: `teacher` or `student`; also the name of its logits in `HeldRows`.
        name: bundle name.
        chain: [base, delta, ...] of the last published version.
        published_batch: number of the batch after which that was.
        refused: versions that did not pass the gate.
        healed: how often the model diverged and was set back to a good state.
    """

    role: str
    name: str
    model: ClickModel
    repository: Repository
    segments: Path
    limits: GateLimits
    compact_after: int
    chain: list[str]
    published_batch: int = 0
    refused: list[str] = field(default_factory=list)
    healed: int = 0
    recent: Ring = field(default_factory=lambda: Ring(RECENT_ROWS))
    _graphs: dict[str, DenseGraph] = field(default_factory=dict, init=False)

    @property
    def version(self) -> str:
        """The last published version, which serves."""
        return self.chain[-1]

    def publish(self, held: HeldRows, passed: int, batch: int, anchor: str | None, now_ms: int) -> GateReport:
        """Calibrate, judge and write the next version. The caller has committed a checkpoint of the model just before.

        Args:
            held: held-out rows.
            passed: rows trained on so far, to tell the age of held-out rows.
            batch: number of the last batch in the model.
            anchor: version at which the current rollout step began; a second reference of the gate.
            now_ms: Unix time, written into the manifest.

        Raises:
            NotReady: the disk is full or fails; the lineage is as before.
        """
        current = self.model.calibration
        # Rows from before the base rate moved say nothing of how good a version is now.
        window = window_for(current, self.recent)
        held = held.newest(passed - window, max(LEAST_POSITIVES, self.limits.min_positives))
        rebase = len(self.chain) > self.compact_after or not self._takes_delta()
        unfit = self._unfit(rebase)
        logits = self._calibrated(held, window, rounded=not unfit)
        report, metrics = self._judged(logits, held, anchor, unfit)
        try:
            version = self.repository.reserve(self.name)
            save(
                self.model, self.repository, self.name, version=version, chain=() if rebase else self.chain,
                provenance=Provenance(self.version, metrics, report, now_ms, PUBLISHER, self.version), graphs=self._graphs,
            )  # fmt: skip
        except BatonError:
            self.model.calibration = current
            raise
        if report.passed:
            self.chain = [version] if rebase else [*self.chain, version]
            log.info("published %s %s", self.name, version)
        else:
            self.model.calibration = current
            self.refused.append(version)
            log.warning("%s %s refused: %s", self.name, version, "; ".join(report.reasons))
        self.published_batch = batch
        return report

    def _calibrated(self, held: HeldRows, window: int, *, rounded: bool) -> F32:
        """Give the model a new calibration; its logits of the held-out rows, not calibrated.

        With `rounded`, they are of the rows as they will serve; the difference to the weights of their time covers what
        rounding changes.
        """
        model = self.model
        assert held.rows is not None
        logits = model.served_logits(held.rows) if rounded else model.logits(held.rows)
        if np.isfinite(logits).all():
            before, counts = held.logits[self.role], held.stands_for
            model.calibration = recalibrate(model.calibration, self.recent, window, before, logits, counts)
        return logits

    def _judged(
        self, logits: F32, held: HeldRows, anchor: str | None, unfit: str
    ) -> tuple[GateReport, dict[str, float | None]]:
        """The gate's report of the model on the held-out rows, and its metrics at birth."""
        assert held.rows is not None
        scores = probabilities(logits, self.model.calibration.alpha, self.model.calibration.beta)
        references = self._references(held.rows, anchor)
        counts = held.stands_for
        error = bias_error_of(scores, held.labels, counts)
        report = judge(logits, scores, held.labels, references, self.limits, bias_error=error, stands_for=counts)
        if self.role == "student":
            report = report.model_copy(update={"figures": {**report.figures, **_of_teacher(held)}})
        if unfit:
            report = report.model_copy(update={"passed": False, "reasons": (*report.reasons, unfit)})
        metrics: dict[str, float | None] = {
            key: report.figures.get(key) for key in ("auc", "logloss", "bias", "rows", "positives")
        }
        if "serving" in references and np.isfinite(logits).all():
            # The rollout starts its evidence anew when a version moves the mean score.
            metrics["score_shift"] = float(counts @ scores / (counts @ references["serving"]) - 1)
        return report, metrics

    def _takes_delta(self) -> bool:
        """Whether a delta may build on the version that serves: it is complete and has the row format of the next one."""
        notes = self.segments / self.name / NOTES
        try:
            serving = self.repository.open(self.name, self.version, verify=True, notes=notes)
            self.repository.chain(serving, verify=True, notes=notes)
        except BatonError as error:
            log.warning("the next version of %s is a base: %s", self.name, error)
            return False
        return all(info.dtype == self.model.stored for info in serving.manifest.tables.values())

    def _unfit(self, rebase: bool) -> str:
        """Why the rows of the next version cannot be stored in their format; empty: they can."""
        try:
            self.model.tables.check_stored(self.model.stored, None if rebase else self.model.tables.touched())
        except InvalidInput as error:
            return str(error)
        return ""

    def _references(self, rows: Rows, anchor: str | None) -> dict[str, F32]:
        """Scores of the version that serves, and of the one at which the rollout step began, on the held-out rows."""
        versions = {"serving": self.version}
        if anchor is not None and anchor != self.version:
            versions["step"] = anchor
        scores = {}
        for name, version in versions.items():
            try:
                model = Model.load(self.repository, self.name, version, segments=self.segments)
                scores[name] = model.score(Features.from_rows(rows))
            except BatonError as error:
                # Retired versions may be gone from disk; the other reference still holds.
                log.warning("%s %s cannot be compared with: %s", self.name, version, error)
        return scores

    def state(self) -> dict[str, Any]:
        """The state that `restore` takes, as JSON values."""
        return {
            "name": self.name,
            "chain": self.chain,
            "published_batch": self.published_batch,
            "refused": self.refused,
            "healed": self.healed,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.chain = list(state["chain"])
        self.published_batch = int(state["published_batch"])
        self.refused = list(state["refused"])
        self.healed = int(state["healed"])


def _of_teacher(held: HeldRows) -> dict[str, float | None]:
    """Figures of the teacher by its logged scores, on the held-out rows that have one; none without both classes."""
    logged = held.logits.get(LOGGED)
    if logged is None:
        return {}
    known = np.isfinite(logged)
    labels, scores, counts = held.labels[known], sigmoid(logged[known].astype(np.float64)), held.stands_for[known]
    if not 0 < labels.sum() < len(labels):
        return {}
    return {
        "teacher_rows": float(len(labels)),
        "teacher_auc": auc(labels, scores, counts),
        "teacher_logloss": logloss(labels, scores, counts),
        "teacher_bias": bias(labels, scores, counts),
    }

"""Recovery of the worker: going on after a kill, and setting a diverged model back to its last good state.

Models, versions, held-out rows, calibration windows, adaptation and the place in the log are committed together. Next
stop: `transfer.online.checkpoint`, the files.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from pipeline.bundle.versions import Repository
from pipeline.errors import InvalidInput
from transfer.bundles.publish import load
from transfer.click_model.state import load_state, state_of
from transfer.model_zoo import ZOO_ALONE, Architectures
from transfer.online.checkpoint import Checkpoints, Place
from transfer.online.codistill import CoDistiller
from transfer.online.lineage import Lineage
from transfer.online.recalibrate import HeldRows

__all__ = ["Recovery"]

log = logging.getLogger(__name__)


class Recovery:
    """Commits and restores the parts of a worker.

    Args:
        checkpoints: the files.
        repository: of the versions that the lineages go on from.
        lineages, held, distiller: the parts; `restore` and `heal` write into them.
        architectures: what a version may name that a model is set back to.
        held_by_teacher: the held-out rows as the teacher reads them; None: as the student does.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        repository: Repository,
        lineages: Sequence[Lineage],
        held: HeldRows,
        distiller: CoDistiller,
        architectures: Architectures = ZOO_ALONE,
        held_by_teacher: HeldRows | None = None,
    ) -> None:
        self._checkpoints, self._repository = checkpoints, repository
        self._lineages, self._held, self._distiller = lineages, held, distiller
        self._architectures = architectures
        self._held_by_teacher = held_by_teacher

    def commit(self, place: Place) -> None:
        """Write a checkpoint: what changed since the last one, or everything where that is due.

        Raises:
            NotReady: the disk is full or fails; the last checkpoint still counts.
        """
        changes = not self._checkpoints.whole_due
        place.extra["lines"] = {lineage.role: lineage.state() for lineage in self._lineages}
        place.extra["adaptation"] = self._distiller.adaptation.state()
        arrays: dict[str, Any] = {"held": self._held.state()}
        if self._held_by_teacher is not None:
            arrays["held_by_teacher"] = self._held_by_teacher.state()
        for lineage in self._lineages:
            header, tensors = state_of(lineage.model, changes=changes)
            place.extra[f"{lineage.role}_model"] = header
            arrays[lineage.role] = tensors
            arrays[f"{lineage.role}_recent"] = lineage.recent.state()
        self._checkpoints.save(place, arrays, changes=changes)
        for lineage in self._lineages:
            lineage.model.tables.saved()

    def restore(self) -> Place | None:
        """Give all parts the state of the newest checkpoint; its place, or None where there is none.

        Raises:
            InvalidInput: it is of other models, or goes on from versions that are gone.
        """
        checkpoint = self._checkpoints.load()
        if checkpoint is None:
            return None
        place, arrays = checkpoint
        self._check(place.extra["lines"])
        self._held.restore(arrays.get("held", {}))
        if self._held_by_teacher is not None:
            self._held_by_teacher.restore(arrays.get("held_by_teacher", {}))
        self._distiller.adaptation.restore(place.extra["adaptation"])
        for lineage in self._lineages:
            if lineage.role not in arrays:  # a teacher that has learned to learn since: from its newest version on
                self._checkpoints.begin_anew()
                continue
            load_state(lineage.model, place.extra[f"{lineage.role}_model"], arrays[lineage.role])
            lineage.recent.restore(arrays[f"{lineage.role}_recent"])
            lineage.restore(place.extra["lines"][lineage.role])
        for lineage in self._lineages:
            lineage.model.tables.saved()
        log.info("going on from position %d after %d batches", place.position, place.batches)
        return place

    def heal(self, lineage: Lineage, reason: str) -> None:
        """Set a diverged model back to the last checkpoint, or to its last version where there is none.

        Rows that it learned since then are lost to it; the place in the log stays.
        """
        lineage.healed += 1
        checkpoint = self._checkpoints.load()
        if checkpoint is not None and lineage.role in checkpoint[1]:
            place, arrays = checkpoint
            load_state(lineage.model, place.extra[f"{lineage.role}_model"], arrays[lineage.role])
            back = f"the state at position {place.position} of the log"
        if checkpoint is None or lineage.role not in checkpoint[1] or not lineage.model.finite():
            chain = [self._repository.open(lineage.name, version) for version in lineage.chain]
            load_state(lineage.model, *state_of(load(chain, self._architectures)))
            back = f"version {lineage.version}"
        log.error(
            "%s has diverged (%s) and goes back to %s; %d times so far", lineage.name, reason, back, lineage.healed
        )

    def _check(self, lineages: dict[str, Any]) -> None:
        for lineage in self._lineages:
            state = lineages.get(lineage.role)
            if state is None and lineage.role == "teacher":
                continue
            if state is None or state["name"] != lineage.name:
                raise InvalidInput(
                    f"{self._checkpoints.folder} holds the state of another pair of models ({lineages}); "
                    "give this worker a folder of its own or remove that one"
                )
            versions = self._repository.versions(lineage.name)
            gone = [version for version in state["chain"] if version not in versions]
            if gone:
                raise InvalidInput(
                    f"{self._checkpoints.folder} goes on from versions {', '.join(gone)} of {lineage.name}, which are not "
                    "in the repository any more; bring them back, or remove that folder to start from the newest version"
                )

"""Statuses of this machine's processes, as admin verbs need them."""

from __future__ import annotations

from pathlib import Path

from pipeline.clock import Clock
from serving.runtime import status
from serving.runtime.status import LaneStatus, Statuses

__all__ = ["ProcessReports"]


class ProcessReports:
    """Reader of the status files; every call reads them again.

    Args:
        folder: of the files.
        lanes: number of lanes that should run.
    """

    def __init__(self, folder: Path, clock: Clock, lanes: int) -> None:
        self._folder = folder
        self._clock = clock
        self._lanes = lanes

    def all(self) -> Statuses:
        """Every status, those of dead processes too."""
        return status.read(self._folder, self._clock.wall_ms())

    def lanes(self) -> dict[str, LaneStatus]:
        """Lanes that still report, by name."""
        return {name: lane.status for name, lane in self.all().fresh().lanes.items()}

    def ready(self) -> tuple[bool, list[str]]:
        """Whether all lanes and the shadow lane answer, and the names of those that do not."""
        fresh = self.all().fresh()
        # Counted, since lanes of replicas that come and go are not numbered from 0.
        ready = {name for name, lane in fresh.lanes.items() if lane.status.state == "ready"}
        names = [f"lane-{index}" for index in range(self._lanes)] if len(ready) < self._lanes else []
        missing = [name for name in names if name not in ready]
        if fresh.shadow is None:
            missing.append("shadow")
        return not missing, missing

"""What the processes of this machine report in their status files, as admin verbs need it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.clock import Clock
from serving.wiring.observe import read_status

__all__ = ["ProcessReports"]

Status = dict[str, Any]


class ProcessReports:
    """Reads the status files anew at every question.

    Args:
        folder: of the files.
        lanes: how many there should be.
    """

    def __init__(self, folder: Path, clock: Clock, lanes: int) -> None:
        self._folder = folder
        self._clock = clock
        self._lanes = lanes

    def all(self) -> dict[str, Status]:
        """Every report, of the dead too: see its `fresh`."""
        return read_status(self._folder, self._clock.wall_ms())

    def fresh(self) -> dict[str, Status]:
        """Reports of processes that live."""
        return {name: status for name, status in self.all().items() if status.get("fresh")}

    def lanes(self) -> dict[str, Status]:
        """Reports of lanes that live."""
        return {name: status for name, status in self.fresh().items() if name.startswith("lane-")}

    def ready(self) -> tuple[bool, list[str]]:
        """Whether all lanes and the shadow lane answer, and which do not."""
        fresh = self.fresh()
        # Counted, for where replicas come and go their lanes are not numbered from 0.
        ready = {name for name, status in fresh.items() if name.startswith("lane-") and status["state"] == "ready"}
        names = [f"lane-{index}" for index in range(self._lanes)] if len(ready) < self._lanes else []
        missing = [name for name in names if name not in ready]
        if "shadow" not in fresh:
            missing.append("shadow")
        return not missing, missing

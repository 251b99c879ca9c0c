"""The worker's records of what it saw and how it steered, one line of JSON per batch, bounded on disk.

Each line is a `transfer.online.adapt.Adapted`. For people and plots; nothing goes on from it.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path

from pipeline.disk import replacing
from transfer.online.adapt import Adapted

__all__ = ["WeightSchedule"]

KEPT_BYTES = 4 << 20
"""Of the file, and of the older one beside it."""

log = logging.getLogger(__name__)


class WeightSchedule:
    """Appends records to `path`; when it is full it becomes `<path>.1` in place of the one before.

    Args:
        path: the file; its folder may be absent.
        batches: done so far. Records of later ones are from before a crash and come again.
    """

    def __init__(self, path: Path, batches: int) -> None:
        self._path, self._done = path, batches
        self._cut = not path.exists()

    def add(self, record: Adapted) -> None:
        """Append a record. A disk that fails costs the record, not the training."""
        try:
            if not self._cut:
                self._forget_later()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.exists() and self._path.stat().st_size > KEPT_BYTES:
                self._path.rename(self._path.with_name(f"{self._path.name}.1"))
            with self._path.open("a") as file:
                file.write(json.dumps(asdict(record)) + "\n")
        except OSError as error:
            log.warning("%s cannot be written: %s", self._path, error.strerror)

    def _forget_later(self) -> None:
        kept = []
        for line in self._path.read_text().splitlines():
            try:
                if json.loads(line)["batch"] <= self._done:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue  # a crash cut it off
        with replacing(self._path) as staging:
            staging.write_text("".join(kept))
        self._cut = True

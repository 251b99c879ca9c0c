"""Log of the loss weights of the online stage: one line of JSON per batch, bounded on disk.

Each line is a `transfer.online.adapt.Adapted`. It is for people and plots; the worker does not read it back.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from pipeline.disk import replacing
from transfer.online.adapt import Adapted

__all__ = ["WeightSchedule"]

KEPT_BYTES = 4 << 20
"""Of the file, and of the older one beside it."""

log = logging.getLogger(__name__)


class WeightSchedule:
    """Appends records to `path`. A full file becomes `<path>.1` and replaces the one before.

    Args:
        path: the file; its folder may be absent.
        batches: done so far. Records of later batches are from before a crash and are written again.
    """

    def __init__(self, path: Path, batches: int) -> None:
        self._path, self._done = path, batches
        self._cut = not path.exists()

    def add(self, record: Adapted) -> None:
        """Append a record. A failing disk loses the record and does not stop training."""
        try:
            if not self._cut:
                self._cut_later()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.exists() and self._path.stat().st_size > KEPT_BYTES:
                self._path.rename(self._path.with_name(f"{self._path.name}.1"))
            with self._path.open("a") as file:
                file.write(json.dumps(record.as_json()) + "\n")
        except OSError as error:
            log.warning("%s cannot be written: %s", self._path, error.strerror)

    def _cut_later(self) -> None:
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

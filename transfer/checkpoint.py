"""Where the worker stands, on disk: model states and the place in the labelled log, committed in one rename.

`<folder>/<number>/state.json` and one safetensors file per model. The newest complete one counts; a crash at any moment
leaves either the old or the new place, never a mix, so that no labelled row is trained on twice or left out.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from pipeline.disk import sync, writing

__all__ = ["Checkpoints", "Place"]

KEEP = 2

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass
class Place:
    """What is known of the work done up to a position of the labelled log.

    Args:
        position: last seq of the labelled log that is in the models.
        batches, trained_rows, held_rows: done since the very start.
        extra: JSON values of other parts (the lines of versions, the heads of the models' states).
    """

    position: int = 0
    batches: int = 0
    trained_rows: int = 0
    held_rows: int = 0
    extra: dict[str, Any] = field(default_factory=dict)


class Checkpoints:
    """The worker's checkpoints in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, place: Place, arrays: Mapping[str, Arrays]) -> None:
        """Commit. `arrays`: file name -> named arrays.

        Raises:
            NotReady: the disk is full or fails; the last checkpoint is still the one to go on from.
        """
        number = max(self._numbers(), default=0) + 1
        staging = self._folder / f".{number}.{os.getpid()}"
        try:
            with writing(self._folder / str(number)):
                shutil.rmtree(staging, ignore_errors=True)
                staging.mkdir(parents=True)
                for name, tensors in arrays.items():
                    path = staging / f"{name}.safetensors"
                    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, path)
                    sync(path)
                (staging / "state.json").write_text(json.dumps(asdict(place)))
                sync(staging / "state.json")
                sync(staging)
                os.rename(staging, self._folder / str(number))
                sync(self._folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        for old in self._numbers()[:-KEEP]:
            shutil.rmtree(self._folder / str(old), ignore_errors=True)

    def load(self) -> tuple[Place, dict[str, dict[str, npt.NDArray[Any]]]] | None:
        """The newest complete checkpoint, or None at the very start; what a crash left half-written is removed."""
        for stale in self._folder.glob(".[0-9]*"):
            shutil.rmtree(stale, ignore_errors=True)
        for number in reversed(self._numbers()):
            folder = self._folder / str(number)
            place = Place(**json.loads((folder / "state.json").read_text()))
            return place, {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
        return None

    def _numbers(self) -> list[int]:
        if not self._folder.is_dir():
            return []
        return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdecimal())

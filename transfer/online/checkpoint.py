"""Checkpoints of the worker: model states and the place in the labelled log, committed in one rename.

`<folder>/<number>/state.json` and one safetensors file per model. The newest complete checkpoint counts. A crash at any
moment leaves either the old or the new one, never a mix, so that no labelled row is trained on twice or left out. A
checkpoint may hold only the rows that changed and name the checkpoints before it, so that committing costs what changed.
When these have become as large as a whole checkpoint, a whole one is due.
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
from safetensors.numpy import load_file, save_file

from pipeline.arrays import Array
from pipeline.disk import sync, writing
from transfer.click_model.state import merged_state

__all__ = ["Checkpoints", "Place"]

KEPT_CHECKPOINTS, MAX_CHANGES = 2, 32
"""Newest checkpoints that are kept, with those that they name; most changes on top of a whole one."""


@dataclass
class Place:
    """Progress of the worker: the work done up to a position of the labelled log.

    Args:
        position: last seq of the labelled log that is in the models.
        batches, trained_rows, held_rows: done since the very start.
        set_aside: batches that could not be learned from and were skipped.
        unguided_rows: trained rows that no teacher has a score for, which were learned from their labels alone.
        featureless: labelled rows whose features were not recorded, which nothing can be learned from.
        publishing: roles of the lineages whose next version is written from this state.
        extra: JSON values of other parts (the lineages, the headers of the models' states).
    """

    position: int = 0
    batches: int = 0
    trained_rows: int = 0
    held_rows: int = 0
    set_aside: int = 0
    unguided_rows: int = 0
    featureless: int = 0
    publishing: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


class Checkpoints:
    """The worker's checkpoints in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._chain: list[int] = []

    @property
    def whole_due(self) -> bool:
        """Whether the next checkpoint has to hold everything."""
        sizes = [_size(self.folder / str(number)) for number in self._chain]
        return not sizes or len(sizes) > MAX_CHANGES or sum(sizes[1:]) > sizes[0]

    def begin_anew(self) -> None:
        """Let the next checkpoint hold everything: a part is new that those before it have not."""
        self._chain = []

    def save(self, place: Place, arrays: Mapping[str, Mapping[str, Array]], *, changes: bool = False) -> None:
        """Commit a checkpoint.

        Args:
            place: progress.
            arrays: file name -> named arrays.
            changes: the models' arrays may be changes to the checkpoint before this one.

        Raises:
            NotReady: the disk is full or fails; the last checkpoint still counts.
        """
        number = max(self._numbers(), default=0) + 1
        staging = self.folder / f".{number}.{os.getpid()}"
        chain = [*self._chain, number] if changes else [number]
        try:
            with writing(self.folder / str(number)):
                shutil.rmtree(staging, ignore_errors=True)
                staging.mkdir(parents=True)
                for name, tensors in arrays.items():
                    path = staging / f"{name}.safetensors"
                    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, path)
                    sync(path)
                (staging / "state.json").write_text(json.dumps({"place": asdict(place), "chain": chain}))
                sync(staging / "state.json")
                sync(staging)
                os.rename(staging, self.folder / str(number))
                sync(self.folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        self._chain = chain
        numbers = self._numbers()
        needed = {older for kept in numbers[-KEPT_CHECKPOINTS:] for older in self._read(kept)["chain"]}
        for old in set(numbers) - needed:
            shutil.rmtree(self.folder / str(old), ignore_errors=True)

    def load(self) -> tuple[Place, dict[str, dict[str, Array]]] | None:
        """The newest complete checkpoint, or None at the very start; what a crash left half-written is removed."""
        for stale in self.folder.glob(".[0-9]*"):
            shutil.rmtree(stale, ignore_errors=True)
        numbers = self._numbers()
        if not numbers:
            return None
        newest = self._read(numbers[-1])
        self._chain = list(newest["chain"])
        arrays: dict[str, dict[str, Array]] = {}
        for number in self._chain:
            for path in sorted((self.folder / str(number)).glob("*.safetensors")):
                arrays[path.stem] = merged_state(arrays.get(path.stem, {}), load_file(path))
        return Place(**newest["place"]), arrays

    def _read(self, number: int) -> dict[str, Any]:
        state: dict[str, Any] = json.loads((self.folder / str(number) / "state.json").read_text())
        return state

    def _numbers(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))

"""Replay rows: a bounded uniform sample of the retained window on disk, drawn from by seed.

Written once by the offline stage (`baton transfer`), read by the online worker. A draw depends on the seed and the
number of the batch alone, so a resumed worker replays the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from pipeline.arrays import F32, Array, Arrays
from pipeline.disk import replacing
from pipeline.errors import DataError
from pipeline.features import Bag, Rows, concat_rows
from transfer.data.log import Log

__all__ = ["ReplayRows", "Reservoir", "keep_sample", "rows_from_arrays", "rows_to_arrays"]


class Reservoir:
    """A uniform sample of a stream of labelled rows, at most `capacity` of them."""

    def __init__(self, capacity: int, seed: int) -> None:
        self._capacity = capacity
        self._random = np.random.default_rng([seed, 0x5E5E])
        self._keys = np.empty(0)
        self._parts: list[tuple[Rows, F32, F32]] = []

    def add(self, rows: Rows, labels: F32, stands_for: F32 | None = None) -> None:
        """Offer rows with labels, float32 `[n]`; of a sampled log `stands_for`, float32 `[n]`, says how often each is to be drawn."""
        # Each row draws a key; the sample is the rows with the smallest keys, which is uniform for any chunking.
        keys = self._random.random(len(labels))
        self._parts.append((rows, labels, np.ones_like(labels) if stands_for is None else stands_for))
        self._keys = np.concatenate([self._keys, keys])
        if len(self._keys) > 2 * self._capacity:
            self._trim()

    def _trim(self) -> None:
        if len(self._keys) <= self._capacity and len(self._parts) == 1:
            return
        keep = (
            np.sort(np.argpartition(self._keys, self._capacity - 1)[: self._capacity])
            if (len(self._keys) > self._capacity)
            else np.arange(len(self._keys))
        )
        rows = concat_rows([part[0] for part in self._parts]).take(keep)
        labels, stands_for = (np.concatenate([part[at] for part in self._parts])[keep] for at in (1, 2))
        self._parts, self._keys = [(rows, labels, stands_for)], self._keys[keep]

    def save(self, path: Path, teacher: Callable[[Rows], F32], read: Callable[[Rows], Rows] = lambda rows: rows) -> int:
        """Write the sample to `path`, whole or not at all; the number of rows.

        Args:
            teacher: gives calibrated logits float32 `[n]`; run once, on the sample alone.
            read: what is written of the rows.
        """
        if not self._parts:
            raise DataError("the retained window has no rows to keep for replay")
        self._trim()
        rows, labels, stands_for = self._parts[0]
        tensors = {**rows_to_arrays(read(rows)), "labels": labels, "teacher": teacher(rows), "stands_for": stands_for}
        with replacing(path) as staging:
            save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, staging)
        return len(labels)


def keep_sample(
    log: Log,
    start: float,
    stop: float,
    path: Path,
    teacher: Callable[[Rows], F32],
    *,
    capacity: int,
    seed: int,
    read: Callable[[Rows], Rows] = lambda rows: rows,
) -> int:
    """Keep a uniform sample of a window of a log at `path`; the number of rows kept. Arguments as of `Reservoir`.

    Args:
        teacher: gives the logits of rows of the log.
        read: what is kept of them: the fields that the student reads.
    """
    sample = Reservoir(capacity, seed)
    for chunk in log.chunks(start, stop):
        sample.add(chunk.rows, chunk.labels, chunk.stands_for)
    return sample.save(path, teacher, read)


class ReplayRows:
    """A sample written by `Reservoir.save`, to draw from."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            DataError: the file is absent or not such a sample.
        """
        try:
            tensors = load_file(path)
            self.rows = rows_from_arrays(tensors)
            self.labels: F32 = tensors["labels"]
            self.teacher: F32 = tensors["teacher"]
            stands_for: F32 = tensors.get("stands_for", np.ones_like(self.labels))  # absent from older samples
        except (OSError, KeyError, ValueError) as error:
            raise DataError(
                f"{path} holds no replay rows ({error}); write it with `baton transfer`", "retained"
            ) from None

        bad = (
            ~(np.isfinite(stands_for) & (stands_for > 0))
            | ~np.isfinite(self.teacher)
            | ~((self.labels >= 0) & (self.labels <= 1))
            | np.isinf(self.rows.numbers).any(1)
        )
        if bad.any():
            raise DataError(
                f"{path}: {int(bad.sum())} of {len(self)} replay rows have a label outside 0..1, an infinite number, no "
                "share or no finite logit of the teacher; write it anew with `baton transfer`",
                "retained",
            )

        self._cumulated = None if (stands_for == stands_for[:1]).all() else np.cumsum(stands_for, dtype=np.float64)

    def __len__(self) -> int:
        return len(self.labels)

    def draw(self, count: int, *, seed: int, batch: int) -> tuple[Rows, F32, F32]:
        """`count` rows with replacement for batch number `batch`: rows, labels, teacher logits. Rows of a sampled log come as
        often as they stand for others, so what is drawn has the level of the traffic."""
        random = np.random.default_rng([seed, batch])
        if self._cumulated is None:
            index = random.integers(0, len(self), count)
        else:
            index = np.searchsorted(self._cumulated, random.random(count) * self._cumulated[-1], side="right")
        return self.rows.take(index), self.labels[index], self.teacher[index]


def rows_to_arrays(rows: Rows) -> Arrays:
    """Rows as named arrays, for a safetensors file."""
    arrays: Arrays = {"ids": rows.ids, "numbers": rows.numbers}
    for bag in rows.bags:
        arrays |= {f"bag{bag.column}.offsets": bag.offsets, f"bag{bag.column}.values": bag.values}
    return arrays


def rows_from_arrays(arrays: Mapping[str, Array]) -> Rows:
    """The rows of `rows_to_arrays`."""
    count = sum(name.startswith("bag") and name.endswith(".offsets") for name in arrays)
    bags = tuple(Bag(i, arrays[f"bag{i}.offsets"], arrays[f"bag{i}.values"]) for i in range(count))
    return Rows(arrays["ids"], arrays["numbers"], bags)

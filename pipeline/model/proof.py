"""Proof that a network scores each row by itself: the same logits alone, in any order and in batches of any size.

Serving batches requests of strangers. A mean over the batch, or a normalisation that was left in training mode, would make
a score depend on who else asks. The proof runs on rows that differ. It needs numpy alone, since `probe_process` runs it in
a process of its own; `probe` makes the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Finding", "Run", "Sample", "Unproved", "prove"]

Array = npt.NDArray[np.generic]
F32 = npt.NDArray[np.float32]
Index = npt.NDArray[np.int64]
Run = Callable[[dict[str, Array]], F32]
"""Runs a network on its inputs by name; gives logits float32 `[n]`."""

CLOSE_LOGIT = 4e-4
"""Largest difference of two logits of one row, relative beyond 1: a probability moves by at most 1e-4. Rounding in sums of
another order stays far below it."""
LARGE_BATCH_ROWS = 128
_KINDS = ("embeddings", "linear", "numbers")


class Unproved(Exception):
    """A network that must not serve; the text says why."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows to try networks with, in a form from which both layouts of inputs are made.

    Args:
        arrays: `context_KIND` `[c, ...]` and `candidate_KIND` `[n, ...]` of each kind of input (embeddings, linear,
            numbers); float32.
        places: by kind, where the columns of context and candidates, one after the other, stand in the full layout.
        request: int64 `[n]`, the context of each row.
        whole: the first so many rows have all their numbers; of each further one some are missing.
    """

    arrays: Mapping[str, F32]
    places: Mapping[str, Index]
    request: Index
    whole: int

    def feeds(self, names: Collection[str], rows: Index) -> dict[str, Array]:
        """Inputs of a network with these names for some rows, in that order."""
        contexts, request = np.unique(self.request[rows], return_inverse=True)
        made: dict[str, Array] = {"request": request.astype(np.int64).reshape(-1)}
        for kind in _KINDS:
            context, candidate = self.arrays[f"context_{kind}"], self.arrays[f"candidate_{kind}"][rows]
            made[f"context_{kind}"], made[f"candidate_{kind}"] = context[contexts], candidate
            joined = np.concatenate([context[self.request[rows]], candidate], axis=1)
            made[kind] = np.ascontiguousarray(joined[:, self.places[kind]])
        return {name: made[name] for name in names}


@dataclass(frozen=True, slots=True)
class Finding:
    """What a proof saw beside: `unanswered` rows of the sample have no finite logit."""

    unanswered: tuple[int, ...] = ()


def prove(networks: Mapping[str, tuple[Collection[str], Run]], sample: Sample) -> Finding:
    """Prove that the networks of a version score each row by itself, and say the same.

    Args:
        networks: by file, the names of a network's inputs, and what runs it.

    Raises:
        Unproved: a row's logit depends on other rows or on the run, no row has a finite one, or the networks differ.
    """
    every = np.arange(len(sample.request))
    first: F32 | None = None
    for file, (names, run) in networks.items():

        def logits(rows: Index, file: str = file, names: Collection[str] = names, run: Run = run) -> F32:
            return _logits(file, run(sample.feeds(names, rows)), len(rows))

        alone = np.concatenate([logits(every[at : at + 1]) for at in every])
        again = logits(every[:1])
        if not _same(alone[:1], again):
            raise Unproved(
                f"{file} answers the same row with logit {alone[0]:.4g} and then {again[0]:.4g}: it draws at "
                "random, or keeps something from one run to the next (BatchNormalization or Dropout in training_mode)"
            )
        for rows in _batches(sample.whole, len(every)):
            _compare(file, logits(rows), alone[rows], rows)
        if not np.isfinite(alone[: sample.whole]).any():
            raise Unproved(f"{file} has no finite logit for any of {sample.whole} rows, all of whose numbers are there")
        if first is None:
            first = alone
        elif not _same(first, alone):
            at = int(np.argmax(~_close(first, alone)))
            raise Unproved(
                f"{file} answers row {at} with logit {alone[at]:.4g}, and {next(iter(networks))} with {first[at]:.4g}"
            )
    assert first is not None
    return Finding(tuple(np.flatnonzero(~np.isfinite(first)).tolist()))


def _batches(whole: int, rows: int) -> list[Index]:
    """Batches to compare: whole rows first, so that a fault is not taken for one of missing numbers."""
    order = np.arange(whole)
    return [
        order,
        order[::-1].copy(),
        order[:3],
        order[3:],
        np.resize(np.random.default_rng(0).permutation(whole), LARGE_BATCH_ROWS),
        np.arange(rows)[::-1].copy(),
    ]


def _logits(file: str, found: F32, rows: int) -> F32:
    if found.shape != (rows,) or found.dtype != np.float32:
        raise Unproved(
            f"{file} answers {found.dtype} {list(found.shape)} for {rows} rows where float32 [{rows}] is needed"
        )
    return found


def _compare(file: str, found: F32, alone: F32, rows: Index) -> None:
    if _same(found, alone):
        return
    at = int(np.argmax(~_close(found, alone)))
    raise Unproved(
        f"in {file} rows influence each other: row {rows[at]} has logit {alone[at]:.4g} alone and {found[at]:.4g} in a batch of "
        f"{len(rows)} rows. A score must not depend on who else asks: take no mean over the batch, and export "
        "BatchNormalization without training_mode"
    )


def _close(a: F32, b: F32) -> npt.NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):
        near = np.abs(a - b) <= CLOSE_LOGIT * np.maximum(1.0, np.abs(b))
    close: npt.NDArray[np.bool_] = near | (~np.isfinite(a) & ~np.isfinite(b))
    return close


def _same(a: F32, b: F32) -> bool:
    return bool(_close(a, b).all())

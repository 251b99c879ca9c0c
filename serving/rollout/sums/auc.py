"""Histograms behind the AUC difference of the newest blocks: integer counts, so that labels can still change them.

The difference of a block is computed from them until the block is no longer among the newest REVISABLE_BLOCKS; then the
histograms go, and the difference stays in the table as a sum over one block, which merges by addition.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pipeline.arrays import I64, Array, Index
from pipeline.metrics import BinnedAuc
from serving.rollout.sums.blocks import REVISABLE_BLOCKS, BlockTable
from serving.rollout.sums.scale import UNITS

__all__ = ["BLOCK_BINS", "BlockAuc"]

BLOCK_BINS = 1024
"""Bins of the histograms of one block and arm: 1/32 of log-odds each. Ties hit both arms alike."""


class BlockAuc:
    """Histograms of the newest blocks of a table: int64 `[2 arms, rows and clicks, BLOCK_BINS]` each."""

    def __init__(self, table: BlockTable) -> None:
        self._table = table
        self._histograms: dict[int, I64] = {}
        self._touched: set[int] = set()

    def add(self, block: int, bins: tuple[Index, Index], sign: I64, clicks: I64) -> None:
        """Add rows of a block: bins of stable's and the candidate's scores, `sign` and `sign` times clicks, all `[n]`."""
        pair = self._histograms.get(block)
        if pair is None:
            if block <= self._table.open - REVISABLE_BLOCKS:
                return  # a late label gets no empty histogram
            pair = self._histograms[block] = np.zeros((2, 2, BLOCK_BINS), np.int64)
        self._touched.add(block)
        for (rows, positives), at in zip(pair, bins, strict=True):
            np.add.at(rows, at, sign)
            np.add.at(positives, at, clicks)

    def settle(self, newest: int) -> None:
        """Compute for the last time the differences of blocks that are not among the newest once this one is opened."""
        old = [block for block in self._histograms if block <= newest - REVISABLE_BLOCKS]
        for block in old:
            self._table.set_auc(block, _difference(self._histograms.pop(block)))
            self._touched.discard(block)

    def refresh(self) -> None:
        """Compute the differences of blocks that have changed."""
        for block in self._touched:
            self._table.set_auc(block, _difference(self._histograms[block]))
        self._touched.clear()

    def save(self) -> dict[str, Array]:
        """All of it, as arrays for `restore`."""
        blocks = sorted(self._histograms)
        shape = (len(blocks), 2, 2, BLOCK_BINS)
        histograms = np.array([self._histograms[block] for block in blocks], np.int64).reshape(shape)
        return {"auc_blocks": np.array(blocks, np.int64), "auc": histograms}

    def restore(self, arrays: Mapping[str, Array]) -> None:
        """Continue from `save`; all differences are computed anew."""
        blocks = arrays["auc_blocks"].tolist()
        self._histograms = {block: pair.copy() for block, pair in zip(blocks, arrays["auc"], strict=True)}
        self._touched = set(blocks)


def _difference(pair: I64) -> float:
    """The candidate's AUC minus stable's; NaN with one class only."""
    found = []
    for rows, positives in pair:
        histogram = BinnedAuc(bins=BLOCK_BINS)
        histogram.positives = positives / UNITS
        histogram.negatives = rows - histogram.positives
        found.append(histogram.value())
    return found[1] - found[0]

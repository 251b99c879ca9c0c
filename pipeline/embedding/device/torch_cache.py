"""Device cache in the memory of a GPU, with the methods of `pipeline.embedding.device.cache.DeviceCache`.

Ids are copied to the GPU, and rows back to the lookup's arrays. All calls of a cache use one CUDA stream. A lock is held
while a call enqueues its operations, so that calls do not interleave, but not while the GPU works. Rows that are offered
while another call has the lock are dropped. It also runs on torch's CPU device, for tests on machines without a GPU.

`pipeline.embedding.device.torch_sets` has the operations.
"""

from __future__ import annotations

import threading

import numpy as np
import torch

from pipeline.arrays import F32, I64, U8, Array
from pipeline.compiled import njit
from pipeline.embedding.device.cache import CacheShape
from pipeline.embedding.device.torch_sets import ENTERED, HELD, REFUSED, WAYS, Sets, find_rows, keep_rows
from pipeline.embedding.tier import DEFAULT_STATUS, STALE_STATUS, Wanted, is_open

__all__ = ["TorchCache", "has_card"]


def has_card() -> bool:
    """Whether torch sees a GPU."""
    return torch.cuda.is_available()


class TorchCache:
    """Rows of one width by key. Any number of threads may find and keep at once.

    Args:
        shape: capacity and format.
        device: of torch: `cuda`, `cuda:1`, or `cpu`.
    """

    def __init__(self, shape: CacheShape, device: str = "cuda") -> None:
        self.shape = shape
        self._device = torch.device(device)
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._sets = Sets.empty(
            -(-shape.rows // WAYS), shape.width, shape.format, linear=shape.linear, device=self._device
        )
        if self._stream is not None:
            torch.cuda.synchronize(self._device)
        self._lock = threading.Lock()
        self._contended = 0

    @property
    def bytes(self) -> int:
        """Bytes of device memory."""
        return self._sets.bytes

    def find(self, wanted: Wanted, mark: int, tick: int = -1) -> None:
        """Fill open ids that are held (`Tier.find`). `tick`: the time; -1: rows do not age."""
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            sent = (self._send(wanted.keys), self._send(is_open(wanted.found)), self._tick(tick))
            with self._lock:
                found = find_rows(self._sets, *sent)
            rows, weights, marks = (
                t.cpu().numpy() for t in (found.rows, found.weights, found.held * mark + found.old * STALE_STATUS)
            )
        _place(
            *(marks.astype(np.uint8), rows, weights, wanted.at, wanted.linear_at),
            *(wanted.rows, wanted.linear, wanted.found),
        )

    def keep(self, wanted: Wanted, mark: int, tick: int = -1, *, overwrite: bool = False) -> None:
        """Take rows that lower tiers found (`Tier.offer`); with `overwrite` replace held rows, and wait for the lock."""
        chosen = np.flatnonzero((wanted.found > mark) & (wanted.found < DEFAULT_STATUS))
        if not len(chosen):
            return
        rows = wanted.rows[wanted.at[chosen][:, None] + np.arange(wanted.width)]
        weights = wanted.linear[wanted.linear_at[chosen]] if len(wanted.linear) else wanted.linear
        if not self._lock.acquire(blocking=overwrite):
            self._contended += len(chosen)
            return
        try:
            with torch.inference_mode(), torch.cuda.stream(self._stream):
                keys = self._send(wanted.keys[chosen])
                every = torch.ones_like(keys, dtype=torch.bool)
                keep_rows(
                    *(self._sets, keys, self._send(rows), self._send(weights), every, self._tick(tick)),
                    overwrite=overwrite,
                )
        finally:
            self._lock.release()

    def keys(self, limit: int | None = None) -> I64:
        """Keys held, int64, the most recently used of every set first."""
        sets = self._sets
        with torch.inference_mode(), torch.cuda.stream(self._stream), self._lock:
            taken = sets.taken[:-1].view(-1, WAYS)
            idle = torch.where(taken, sets.now - sets.stamps[:-1].view(-1, WAYS), torch.iinfo(torch.int32).max)
            ways = idle.argsort(dim=1, stable=True)
            held = sets.keys[:-1].view(-1, WAYS).gather(1, ways).T[taken.gather(1, ways).T]
            return held[:limit].cpu().numpy()

    def counts(self) -> dict[str, int]:
        """`rows` held, and since the start: `entered`, `refused` by admission, `contended` (dropped: the cache was locked)."""
        with torch.inference_mode(), torch.cuda.stream(self._stream), self._lock:
            tally = self._sets.tally.tolist()
        return {
            "rows": tally[HELD],
            "entered": tally[ENTERED],
            "refused": tally[REFUSED],
            "contended": self._contended,
        }

    def _send(self, array: Array) -> torch.Tensor:
        # A copy also on torch's CPU device: the caller may change its arrays later.
        return torch.tensor(array, device=self._device)

    def _tick(self, tick: int) -> torch.Tensor:
        return torch.tensor([tick], dtype=torch.int32, device=self._device)


@njit(nogil=True, cache=True)
def _place(
    marks: U8,
    rows: F32,
    weights: F32,
    at: I64,
    linear_at: I64,
    out: F32,
    linear: F32,
    found: U8,
) -> None:
    """Copy rows `[m, d]` to their places; ids whose mark is 0 are skipped."""
    for i in range(len(marks)):
        if marks[i] != 0:
            for c in range(rows.shape[1]):
                out[at[i] + c] = rows[i, c]
            if len(linear) > 0:
                linear[linear_at[i]] = weights[i]
            found[i] = marks[i]

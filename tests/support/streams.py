"""Random streams for measured error rates, in chunks that all cores share: numpy holds no lock while it draws."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pipeline.arrays import F64
from pipeline.host import cores

__all__ = ["share_of_streams"]


def share_of_streams(
    count: Callable[[np.random.Generator, int], F64], streams: int, seed: int, chunk: int = 500
) -> F64:
    """Shares of `streams` for which `count` finds something, `[k]`.

    Args:
        count: (generator, number of streams) -> how many of that many fresh streams are found, `[k]`. Each chunk has a
            generator of its own, so that the number of cores changes no figure.
    """
    sizes = [min(chunk, streams - start) for start in range(0, streams, chunk)]
    with ThreadPoolExecutor(cores().amount) as pool:
        found = list(pool.map(count, np.random.default_rng(seed).spawn(len(sizes)), sizes))
    shares: F64 = np.sum(found, axis=0) / streams
    return shares

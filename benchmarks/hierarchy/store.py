"""Whole lookup as in a lane: from hashed features to the network's inputs, through `EmbeddingStore`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from benchmarks.hierarchy.stacks import PATIENCE_S, Lookup, Request
from benchmarks.hierarchy.tables import FIELDS, Tables
from pipeline.arrays import F32
from pipeline.embedding.hierarchy.hierarchy import Hierarchy
from pipeline.embedding.hierarchy.store import EmbeddingStore
from pipeline.embedding.tier import TierSource
from pipeline.features import Features, IdPart
from pipeline.inputs import Block, DenseInputs, Layout

__all__ = ["store_lookup"]


@contextmanager
def store_lookup(tables: Tables, tiers: Sequence[TierSource | str]) -> Iterator[Lookup]:
    """Lookups in the base version, of requests whose fields are all of candidates."""
    store = EmbeddingStore.open(tables.chain(0), tables.folder / "segments", Hierarchy(tiers, budget=PATIENCE_S))
    layout = Layout.full(tables.base.manifest.model_schema)
    columns = np.arange(FIELDS, dtype=np.int32)
    no_weights: F32 = np.zeros((0, FIELDS), np.float32)

    def lookup(request: Request, out: F32) -> None:
        n = len(out) // FIELDS
        block = Block(layout.blocks[0], out.reshape(n, -1), no_weights, np.zeros((n, 0), np.float32))
        features = Features(n, (IdPart(columns, request.ids.reshape(n, FIELDS)),))
        store.lookup(features, DenseInputs(layout, (block,), np.zeros(n, np.int64)))

    try:
        yield lookup
    finally:
        store.close()

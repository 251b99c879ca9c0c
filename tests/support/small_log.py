"""A small stationary click log in memory, with known click probabilities."""

from dataclasses import replace

import numpy as np
import torch

from pipeline.features import Bag, Rows
from pipeline.schema import FieldSpec, Schema
from transfer.data.log import LogChunk, row_range

torch.set_num_threads(1)  # the models here are too small for more

SCHEMA = Schema(
    fields=(
        FieldSpec(name="user", role="context"),
        FieldSpec(name="age", role="context", kind="number", transform="log1p"),
        FieldSpec(name="tags", role="candidate", kind="bag", separator=","),
        FieldSpec(name="item", role="candidate"),
        FieldSpec(name="price", role="candidate", kind="number"),
    )
)


class SmallLog:
    name = "small"
    schema = SCHEMA
    label_offset = 0.0

    def __init__(self, rows=20_000, *, seed=0, level=-1.6, labels=None, keep=None, said="keep", weight=None):
        """`keep`: share of the negatives that the log kept, which its rows say as `said` ("": not at all); `weight`: of positives."""
        rng = np.random.default_rng(seed)
        user, item = rng.integers(0, 150, rows), rng.integers(0, 60, rows)
        sizes = rng.integers(0, 4, rows)
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
        tags = rng.integers(0, 20, offsets[-1])
        numbers = np.stack([rng.exponential(20, rows), rng.normal(size=rows)], 1).astype(np.float32)
        numbers[rng.random((rows, 2)) < 0.1] = np.nan
        users, items = rng.normal(size=(150, 3)), rng.normal(size=(60, 3))
        logit = level + 0.7 * users[user, 0] + 0.7 * items[item, 0] + 0.5 * (users[user, 1:] * items[item, 1:]).sum(1)
        logit += 0.3 * np.nan_to_num(numbers[:, 1])
        truth = 1 / (1 + np.exp(-logit))
        y = (rng.random(rows) < truth).astype(np.float32) if labels is None else np.full(rows, labels, np.float32)
        ids = np.stack([user + 1_000_003, -(item + 17)], 1).astype(np.int64)
        values = Rows(ids, numbers, (Bag(0, offsets, tags.astype(np.int64) + (1 << 40)),))
        none = np.full(rows, "", object)
        self._all = LogChunk(
            values, y, np.arange(rows), np.arange(rows), none, np.zeros(rows, np.int32), truth.astype(np.float32)
        )
        if keep is not None:
            index = np.flatnonzero((y > 0.5) | (rng.random(rows) < keep))
            rows, y = len(index), y[index]
            self.label_offset = {"keep": -float(np.log(keep)), "column": None, "": 0.0}[said]
            probability = np.where(y > 0.5, 1, keep).astype(np.float32) if said else np.ones(rows, np.float32)
            self._all = LogChunk(
                values.take(index), y, index, np.arange(rows), none[index], np.zeros(rows, np.int32),
                truth[index].astype(np.float32), probability=probability,
            )  # fmt: skip
        if weight is not None:
            self._all = replace(self._all, weight=np.where(y > 0.5, weight, 1).astype(np.float32))
        self.rows = self.request_count = rows
        self.positives = int(y.sum())

    def rows_between(self, start, stop):
        first, last = row_range(start, stop, self.rows)
        return last - first

    def chunks(self, start=0.0, stop=1.0, chunk_rows=65_536):
        first, last = row_range(start, stop, self.rows)
        for at in range(first, last, chunk_rows):
            yield self._all.slice(at, min(at + chunk_rows, last))

    def requests(self, start=0.0, stop=1.0):
        raise NotImplementedError

    def window(self, start, stop):
        return self._all.slice(*row_range(start, stop, self.rows))

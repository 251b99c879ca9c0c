"""Input arrays of a network, and the columns of each field in them.

In the full layout every candidate has a row of all fields. In the split layout the context fields of a request have one
row in a block of their own, and `request` holds the context row of each candidate, so that one run can score several
requests. It knows nothing of ids or tables. Written by `pipeline.embedding.hierarchy.store`, read by
`pipeline.model.network`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from pipeline.arrays import F32, I32, I64
from pipeline.features import KEPT_ARRANGEMENTS, NumberPart, Role
from pipeline.schema import FieldSpec, Schema

__all__ = ["ARRAYS", "KEPT_ROWS", "LACKS_ROWS", "REQUEST", "Block", "Columns", "DenseInputs", "Layout", "Waiting"]


ARRAYS = ("embeddings", "linear", "numbers")
"""Names of a block's arrays."""
REQUEST = "request"
LACKS_ROWS = "embedding: "
"""Begins each reason of `DenseInputs.degraded`."""

KEPT_ROWS = 4096
"""Candidates up to which the memory of a run is kept for the next; that of a larger run is freed."""


class Waiting(Protocol):
    """Who waits for the scores of a window: until when, and whether still. A call to elsewhere sets `abandon`, which is
    called when `cancelled` has become true."""

    deadline: float
    cancelled: bool
    abandon: Callable[[], None] | None


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """Columns of the fields in one block of arrays; -1 for a field of another block.

    Attributes:
        prefix: of the names of the block's arrays in the network: empty, `context_` or `candidate_`.
        offsets: int64 `[fields with vectors]`, first column of `embeddings`.
        places: int64 `[fields with vectors]`, column of `linear`.
        numbers: int64 `[number fields]`, column of `numbers`.
        widths: columns of `embeddings`, `linear` and `numbers`.
    """

    prefix: str
    offsets: I64
    places: I64
    numbers: I64
    widths: tuple[int, int, int]
    _known: dict[bytes, slice | I64] = field(default_factory=dict)

    def numbers_at(self, columns: I32) -> slice | I64:
        """Columns of `numbers` for number fields; a slice where they are adjacent, which is copied faster."""
        key = columns.tobytes()
        known = self._known.get(key)
        if known is None:
            known = at = self.numbers[columns]
            if len(at) and (np.diff(at) == 1).all():
                known = slice(int(at[0]), int(at[0]) + len(at))
            if len(self._known) < KEPT_ARRANGEMENTS:
                self._known[key] = known
        return known

    @classmethod
    def of(cls, schema: Schema, prefix: str = "", roles: Iterable[Role] = ("context", "candidate")) -> Columns:
        """Columns of a block that holds the fields of some roles, in schema order."""
        inside = set(roles)

        def place(fields: tuple[FieldSpec, ...], widths: list[int]) -> tuple[I64, int]:
            sizes = np.array([w if f.role in inside else 0 for f, w in zip(fields, widths, strict=True)], np.int64)
            starts = np.cumsum(sizes) - sizes
            mine = np.array([f.role in inside for f in fields], np.bool_)
            return np.where(mine, starts, -1), int(sizes.sum())

        offsets, width = place(schema.embedded, [f.width or 0 for f in schema.embedded])
        places, fields = place(schema.embedded, [1] * len(schema.embedded))
        numbers, count = place(schema.numbers, [1] * len(schema.numbers))
        return cls(prefix, offsets, places, numbers, (width, fields, count))


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Blocks of a network's inputs: one of all fields (full), or one of the context and one of the candidates (split)."""

    blocks: tuple[Columns, ...]

    @classmethod
    def full(cls, schema: Schema) -> Layout:
        return cls((Columns.of(schema),))

    @classmethod
    def split(cls, schema: Schema) -> Layout:
        return cls((Columns.of(schema, "context_", ["context"]), Columns.of(schema, "candidate_", ["candidate"])))

    @property
    def is_split(self) -> bool:
        return len(self.blocks) > 1


class Block:
    """Rows of some fields: `embeddings` float32 `[n, W]`, `linear` `[n, F]`, `numbers` `[n, M]`, each C-contiguous.

    `linear` has no rows where the network has no weight per id.
    """

    __slots__ = ("columns", "embeddings", "linear", "n", "numbers")

    def __init__(self, columns: Columns, embeddings: F32, linear: F32, numbers: F32) -> None:
        self.columns = columns
        self.n = len(embeddings)
        self.embeddings, self.linear, self.numbers = embeddings, linear, numbers

    @classmethod
    def zeros(cls, columns: Columns, rows: int, *, linear: bool) -> Block:
        width, fields, numbers = columns.widths
        return cls(
            columns,
            np.zeros((rows, width), np.float32),
            np.zeros((rows if linear and fields else 0, fields), np.float32),
            np.zeros((rows, numbers), np.float32),
        )

    def rows(self, start: int, stop: int) -> Block:
        """Views of rows start..stop."""
        return Block(self.columns, self.embeddings[start:stop], self.linear[start:stop], self.numbers[start:stop])


class DenseInputs:
    """Inputs of a network for n candidates: one block in the full layout, context and candidates in the split one.

    Attributes:
        n: rows of candidates.
        blocks: as `layout.blocks`; in the split layout the first has one row per request.
        request: int64 `[n]`, the context row of each candidate; used in the split layout only.
        whole: the inputs that this is a window of, else itself; one run of the network scores all windows of `whole`.
        start: first row of the window in `whole`.
        degraded: reasons why rows are missing or stale; normally empty.
        tiers: seconds that each embedding tier took, by name, where there are several.
    """

    __slots__ = ("blocks", "degraded", "layout", "n", "request", "start", "tiers", "whole")

    def __init__(self, layout: Layout, blocks: tuple[Block, ...], request: I64) -> None:
        self.layout = layout
        self.blocks = blocks
        self.request = request
        self.n = blocks[-1].n
        self.whole = self
        self.start = 0
        self.degraded: Sequence[str] = ()
        self.tiers: dict[str, float] = {}

    @classmethod
    def zeros(cls, layout: Layout, rows: int, *, linear: bool, requests: int = 1) -> DenseInputs:
        """Arrays for `rows` candidates of `requests` requests."""
        sizes = (requests, rows) if layout.is_split else (rows,)
        blocks = zip(layout.blocks, sizes, strict=True)
        return cls(
            layout,
            tuple(Block.zeros(columns, size, linear=linear) for columns, size in blocks),
            np.zeros(rows, np.int64),
        )

    def holds(self, rows: int, requests: int) -> bool:
        """Whether the arrays have room for that many rows and requests."""
        return self.n >= rows and (not self.layout.is_split or self.blocks[0].n >= requests)

    def first(self, rows: int, requests: int = 1) -> DenseInputs:
        """Views of the first rows and requests; all rows belong to the first request until `window` assigns them."""
        request = self.request[:rows]
        request[:] = 0
        candidates = self.blocks[-1].rows(0, rows)
        blocks = (self.blocks[0].rows(0, requests), candidates) if self.layout.is_split else (candidates,)
        return DenseInputs(self.layout, blocks, request)

    def window(self, start: int, stop: int, request: int = 0) -> DenseInputs:
        """Views for one request: candidates start..stop, and in the split layout row `request` of the context."""
        self.request[start:stop] = request
        candidates = self.blocks[-1].rows(start, stop)
        blocks = (self.blocks[0].rows(request, request + 1), candidates) if self.layout.is_split else (candidates,)
        window = DenseInputs(self.layout, blocks, np.zeros(stop - start, np.int64))
        window.whole, window.start = self, start
        return window

    def block_of(self, role: Role) -> Block:
        """The block that holds the fields of a role."""
        return self.blocks[0 if role == "context" else -1]

    def missing_numbers(self, row: int) -> list[int]:
        """Number fields that a candidate has no value of, as indices of `Schema.numbers`."""
        found = []
        for block in self.blocks:
            at = row if block is self.blocks[-1] else int(self.request[row])
            columns = block.columns.numbers
            found += [
                field
                for field, column in enumerate(columns.tolist())
                if column >= 0 and np.isnan(block.numbers[at, column])
            ]
        return sorted(found)

    def put_numbers(self, part: NumberPart, role: Role) -> None:
        """Write number columns of one role; a single row is written to all rows."""
        block = self.block_of(role)
        block.numbers[:, block.columns.numbers_at(part.columns)] = part.values

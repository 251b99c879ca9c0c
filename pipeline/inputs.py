"""The arrays that a network reads, and where in them each field's values stand.

In the full layout every candidate has a row of all fields. In the split layout the context fields of a request have one
row in a block of their own, and `request` says to which of its rows each candidate belongs, so that several requests can
be scored in one run. It knows nothing of ids or tables. Written by `pipeline.embedding.store`, read by
`pipeline.network`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.schema import FieldSpec, Schema

__all__ = ["ARRAYS", "REQUEST", "Block", "Columns", "DenseInputs", "Layout"]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

ARRAYS = ("embeddings", "linear", "numbers")
"""Names of a block's arrays."""
REQUEST = "request"

Role = Literal["context", "candidate"]


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """Where fields stand in one block of arrays; -1 for a field that stands in another one.

    Attributes:
        prefix: of the names of the block's arrays as the network knows them: empty, `context_` or `candidate_`.
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
    """The blocks of a network's inputs: one of all fields (full), or one of the context and one of the candidates (split)."""

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
    """What a network reads for n candidates: one block in the full layout, context and candidates in the split one.

    Attributes:
        n: rows of candidates.
        blocks: as `layout.blocks`; in the split layout the first has one row per request.
    """

    __slots__ = ("blocks", "layout", "n")

    def __init__(self, layout: Layout, blocks: tuple[Block, ...]) -> None:
        self.layout = layout
        self.blocks = blocks
        self.n = blocks[-1].n

    @classmethod
    def zeros(cls, layout: Layout, rows: int, *, linear: bool, requests: int = 1) -> DenseInputs:
        """Arrays for `rows` candidates of `requests` requests."""
        sizes = (requests, rows) if layout.is_split else (rows,)
        blocks = zip(layout.blocks, sizes, strict=True)
        return cls(layout, tuple(Block.zeros(columns, size, linear=linear) for columns, size in blocks))

    def window(self, start: int, stop: int, request: int = 0) -> DenseInputs:
        """Views for one request: candidates start..stop, and where the layout is split row `request` of the context."""
        candidates = self.blocks[-1].rows(start, stop)
        if not self.layout.is_split:
            return DenseInputs(self.layout, (candidates,))
        return DenseInputs(self.layout, (self.blocks[0].rows(request, request + 1), candidates))

    def block_of(self, role: Role) -> Block:
        """The block that holds the fields of a role."""
        return self.blocks[0 if role == "context" else -1]

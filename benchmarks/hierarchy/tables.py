"""Tables of any size as bundles, written in chunks, and streams of ids over them.

A bundle's safetensors file is written from its header on, so that no more than a chunk of rows is in memory. Ids are
random 64-bit numbers, as hashes are; row i is the same for all who ask, whatever the size of the chunks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.arrays import F32, I64
from pipeline.bundle.bundle import Bundle, BundleWriter, Manifest, TableInfo
from pipeline.bundle.versions import Repository
from pipeline.schema import FieldSpec, Schema

__all__ = ["BUNDLE", "FIELDS", "TABLE", "Distribution", "IdStream", "Tables", "chunks_of"]

Distribution = Literal["uniform", "zipf"]

BUNDLE, TABLE = "bench", "t"
FIELDS = 39
"""Of a request's candidate, as in Criteo's logs: 100 candidates are 3,900 ids."""
EXPONENT = 1.05
CHUNK = 1 << 18


class Tables:
    """One table of `count` rows and width `width` as the base version of a bundle, and a delta of some of its rows.

    Args:
        folder: of the repository and, later, of segments.
        touched: fraction of the rows that the delta holds as well, with other values.
    """

    def __init__(self, folder: Path, count: int, width: int, touched: float = 0.02) -> None:
        self.count, self.width, self.folder = count, width, folder
        self.repository = Repository(folder / "bundles")
        self.ids = _distinct(count)
        rng = np.random.default_rng(1)
        self.touched = np.sort(rng.choice(count, int(count * touched), replace=False))
        self._deltas: tuple[str, ...] = ()
        self.base = self._write(np.arange(count), 0, None)
        self.delta = self.publish(self.touched)

    @property
    def raw_bytes(self) -> int:
        """Bytes of ids and rows without any overhead."""
        return self.count * (8 + 4 * self.width)

    def rows(self) -> F32:
        """All rows of the base, float32 `[count, width]`, in memory of their own."""
        return np.array(self.base.stored_table(TABLE).rows)

    def rows_at(self, places: I64, version: int) -> F32:
        """Expected rows of a lookup of these places, float32 `[m, width]`; version 1: with the delta over the base."""
        found: F32 = self.base.stored_table(TABLE).rows[places]
        if version:
            at = np.searchsorted(self.touched, places).clip(max=len(self.touched) - 1)
            changed = self.touched[at] == places
            found[changed] = self.delta.stored_table(TABLE).rows[at[changed]]
        return found

    def publish(self, index: I64) -> Bundle:
        """Publish one more delta, of the rows at some places (sorted), with new values."""
        made = self._write(index, 1 + len(self._deltas), self.base.manifest.version)
        self._deltas += (made.manifest.version,)
        return made

    def chain(self, version: int) -> list[Bundle]:
        return [self.base, self.delta][: version + 1]

    def _write(self, index: I64, version: int, base: str | None) -> Bundle:
        fields = tuple(FieldSpec(name=f"f{i}", role="candidate", kind="id", table=TABLE) for i in range(FIELDS))
        schema = Schema(fields=fields).with_width(self.width)
        number = self.repository.reserve(BUNDLE)
        with BundleWriter(self.repository.path(BUNDLE, number)) as writer:
            onnx.save(_network(schema.embedding_width), str(writer.path("dense.onnx")))
            _stream(writer.path(f"tables/{TABLE}.safetensors"), self.ids[index], self.width, version)
            return writer.finish(
                Manifest(
                    name=BUNDLE,
                    version=number,
                    architecture="none",
                    schema=schema,
                    tables={TABLE: TableInfo(width=self.width, rows=len(index), default=(0.0,) * self.width)},
                    base=base,
                    deltas=(*self._deltas, number) if base else (),
                )
            )


@dataclass(frozen=True)
class IdStream:
    """Stream of requests' ids as places in a table. Popular ids lie anywhere in it, as hashed ids do."""

    count: int
    distribution: Distribution
    rng: np.random.Generator
    places: I64

    @classmethod
    def over(cls, count: int, distribution: Distribution, seed: int) -> IdStream:
        """Stream over `count` rows. Streams of two seeds have the same popular ids."""
        return cls(count, distribution, np.random.default_rng(seed), np.random.default_rng(7).permutation(count))

    def draw(self, size: int) -> I64:
        """Places int64 `[size]`: uniform, or Zipf's with exponent 1.05 cut off at the table's end."""
        if self.distribution == "uniform":
            return self.rng.integers(0, self.count, size)
        ranks = np.empty(0, np.int64)
        while len(ranks) < size:
            drawn = self.rng.zipf(EXPONENT, 2 * (size - len(ranks)) + 16)
            ranks = np.concatenate([ranks, drawn[drawn <= self.count]])
        return self.places[ranks[:size] - 1]


def chunks_of(count: int, size: int = CHUNK) -> Iterator[slice]:
    """Bounds of the chunks of 0 to `count`."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _distinct(count: int) -> I64:
    ids = np.unique(np.random.default_rng(0).integers(-(2**63), 2**63 - 1, count + count // 1000 + 16, np.int64))
    return np.sort(np.random.default_rng(2).permutation(ids)[:count])


def _stream(path: Path, ids: I64, width: int, version: int) -> None:
    """Content of a safetensors file of ids, rows and counts."""
    count, header, at = len(ids), {}, 0
    for name, dtype, shape, size in (
        ("ids", "I64", [count], 8 * count),
        ("counts", "I64", [count], 8 * count),
        ("rows", "F32", [count, width], 4 * count * width),
    ):
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(ids.data)
        for part in chunks_of(count):
            file.write(np.ones(part.stop - part.start, np.int64).data)
        for number, part in enumerate(chunks_of(count)):
            rng = np.random.default_rng((3, version, number))
            file.write(rng.random((part.stop - part.start, width), np.float32).data)


def _network(width: int) -> onnx.ModelProto:
    """Smallest network that a bundle may hold: the sum of all vectors."""
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["embeddings", "axes"], ["logit"], keepdims=0)],
        "sum",
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(np.array([1], np.int64), "axes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)

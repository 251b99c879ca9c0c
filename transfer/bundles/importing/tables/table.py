"""Embedding table of a team: an array, Parquet files or files of keys and vectors, read in batches and never as a whole."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.arrays import F32, Array
from pipeline.bundle.row_format import RowFormat
from pipeline.errors import DataError
from transfer.bundles.importing.tables.index import Modulo, TableIndex, Vocabulary

__all__ = ["Table"]

BATCH_BYTES = 16 << 20
PAIRS = (("*key", "*emb_vector"), ("*.key", "*.vec"), ("*keys*", "*values*"))
"""Names of a folder's files of keys and of vectors: HugeCTR's, their short form, dynamicemb's."""


@dataclass(frozen=True)
class Table:
    """Rows of one embedding table.

    Args:
        rows: an array or tensor `[V, d]`, or a `.npy` file of one (with an `index`); Parquet files with the columns `value` and
            `vector`, by name or glob; a pair of files (keys, vectors), or a folder with one or more of them: `.npy`, or plain
            int64 and float32 as HugeCTR and dynamicemb write them.
        index: which value has which row. For files with values or keys: None where these are the raw values, else what
            their numbers mean.
        default: the row of values that have none; None: the index's `oov` row, else zeros.
        stored: format of the bundle's rows.
    """

    rows: Any
    index: TableIndex | None = None
    default: Sequence[float] | None = None
    stored: RowFormat = "float32"

    @property
    def width(self) -> int:
        """Length d of a vector.

        Raises:
            DataError: the files cannot be read, or hold no vectors.
        """
        return self._source.width

    @property
    def count(self) -> int:
        """Number of rows."""
        return self._source.count

    def batches(self) -> Iterator[tuple[Any, F32]]:
        """Values (raw ones, or row numbers where the field has an index of buckets) and vectors float32 `[k, d]`.

        Raises:
            DataError: the files cannot be read, or the index does not fit the rows.
        """
        source = self._source
        if not isinstance(source, _Array):
            if isinstance(self.index, Vocabulary):
                raise DataError("a table with values of its own needs no vocabulary; leave `index` out", "index")
            yield from source.batches()
            return
        if self.index is None:
            raise DataError(
                "an array has rows and no values: say with `index` which value has which row (Vocabulary, Modulo or Ids)",
                "index",
            )
        size = source.batch
        for values, rows in self.index.rows(source.count):
            for start in range(0, len(rows), size):
                found = source.data[np.array(rows[start : start + size], np.int64)]
                yield values[start : start + size], np.asarray(found).astype(np.float32)

    def default_row(self) -> tuple[float, ...]:
        """The row of values that have none.

        Raises:
            DataError: it has another width, or the index's `oov` is no row.
        """
        source, oov = self._source, None if self.index is None else self.index.oov
        if self.default is not None:
            if len(self.default) != source.width:
                raise DataError(f"default has {len(self.default)} numbers where the width is {source.width}", "default")
            return tuple(float(number) for number in self.default)
        if oov is None:
            return (0.0,) * source.width
        if not isinstance(source, _Array):
            raise DataError("oov names a row of an array; give `default` for a table with values", "oov")
        if not 0 <= oov < source.count:
            raise DataError(f"oov is row {oov:,} of a table of {source.count:,} rows", "oov")
        return tuple(np.asarray(source.data[oov]).astype(np.float32).tolist())

    @property
    def field_index(self) -> TableIndex | None:
        """The index with its number of buckets, for the schema's fields."""
        if isinstance(self.index, Modulo) and self.index.buckets is None:
            return Modulo(self.index.hash, self.count, self.index.oov)
        return self.index

    @property
    def _source(self) -> _Array | _Parquet | _Pairs:
        known: _Array | _Parquet | _Pairs | None = self.__dict__.get("_opened")
        if known is None:
            try:
                known = self.__dict__["_opened"] = _opened(self.rows)
            except (OSError, ValueError, pa.ArrowException) as error:
                raise DataError(f"table {self.rows!r:.200} cannot be read: {error}", "rows") from None
        return known


def _opened(rows: Any) -> _Array | _Parquet | _Pairs:
    if hasattr(rows, "detach"):  # a tensor
        rows = rows.detach().cpu().numpy()
    if isinstance(rows, np.ndarray):
        return _Array(rows)
    if isinstance(rows, tuple | list) and len(rows) == 2 and not str(rows[0]).endswith(".parquet"):
        return _Pairs([(Path(rows[0]), Path(rows[1]))])
    if isinstance(rows, tuple | list):
        return _Parquet([Path(path) for path in rows])
    path = Path(rows)
    if path.is_dir():
        for keys, vectors in PAIRS:
            found = sorted(path.glob(keys)), sorted(path.glob(vectors))
            if found[0] and len(found[0]) == len(found[1]):
                return _Pairs(list(zip(*found, strict=True)))
        files = sorted(path.glob("*.parquet"))
        if not files:
            raise DataError(f"{path}: there are no Parquet files, and no files of keys beside files of vectors", "rows")
        return _Parquet(files)
    if path.suffix == ".npy":
        return _Array(np.load(path, mmap_mode="r", allow_pickle=False))
    files = [Path(name) for name in sorted(glob.glob(str(path)))]
    if not files:
        raise DataError(f"{path}: there is no such file", "rows")
    return _Parquet(files)


class _Array:
    """Rows by number."""

    def __init__(self, data: Array) -> None:
        if data.ndim != 2 or data.dtype.kind != "f" or not data.shape[1]:
            raise DataError(f"rows are {data.dtype} {list(data.shape)}; floats [V, d] are needed", "rows")
        self.data, self.count, self.width = data, len(data), data.shape[1]
        self.batch = max(1, BATCH_BYTES // (4 * self.width))


class _Parquet:
    """Files with the columns value and vector."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths, self.count, self.width = paths, 0, 0
        for path in paths:
            with pq.ParquetFile(path, memory_map=True) as file:
                lacking = [name for name in ("value", "vector") if name not in file.schema_arrow.names]
                if lacking:
                    raise DataError(
                        f"{path}: there is no column {lacking[0]!r}; value and vector are needed", lacking[0]
                    )
                self.count += file.metadata.num_rows
                kind = file.schema_arrow.field("vector").type
                if pa.types.is_fixed_size_list(kind):
                    self.width = kind.list_size
                elif not self.width and file.metadata.num_rows:
                    first = next(file.iter_batches(1, columns=["vector"])).column(0)
                    self.width = len(first[0]) if first[0].is_valid else 0
        if not self.width:
            raise DataError(f"{paths[0]}: column 'vector' holds no lists of numbers", "vector")

    def batches(self) -> Iterator[tuple[Any, F32]]:
        size = max(1, BATCH_BYTES // (4 * self.width))
        for path in self._paths:
            with pq.ParquetFile(path, memory_map=True, pre_buffer=False) as file:
                for batch in file.iter_batches(size, columns=["value", "vector"], use_threads=False):
                    yield batch.column("value"), self._vectors(batch.column("vector"), path)

    def _vectors(self, column: pa.Array, path: Path) -> F32:
        lengths = pc.list_value_length(column)
        wrong = pc.fill_null(pc.not_equal(lengths, self.width), True)
        if pc.any(wrong).as_py():
            raise DataError(
                f"{path}: a vector is missing or has another length than the first, {self.width} numbers", "vector"
            )
        flat = column.flatten().to_numpy(zero_copy_only=False)
        return np.ascontiguousarray(flat, np.float32).reshape(-1, self.width)


class _Pairs:
    """Files of keys beside files of vectors."""

    def __init__(self, pairs: Sequence[tuple[Path, Path]]) -> None:
        self._pairs = [self._pair(keys, vectors) for keys, vectors in pairs]
        self.count = sum(len(keys) for keys, _ in self._pairs)
        self.width = next((vectors.shape[1] for keys, vectors in self._pairs if len(keys)), 0)
        if not self.width or any(v.shape[1] != self.width for k, v in self._pairs if len(k)):
            raise DataError(f"{pairs[0][1]}: there are no vectors, or files hold vectors of different lengths", "rows")

    @staticmethod
    def _pair(keys_file: Path, vectors_file: Path) -> tuple[Array, Array]:
        keys = _mapped(keys_file, np.dtype("<i8"))
        vectors = _mapped(vectors_file, np.dtype("<f4"))
        if vectors.ndim == 1 and len(keys) and not len(vectors) % len(keys):
            vectors = vectors.reshape(len(keys), -1)
        if keys.ndim != 1 or keys.dtype.kind not in "iu" or vectors.ndim != 2 or len(keys) != len(vectors):
            raise DataError(
                f"{vectors_file}: {list(vectors.shape)} numbers for {list(keys.shape)} keys of {keys_file.name}; a vector for each "
                "key is needed",
                vectors_file.name,
            )
        return keys, vectors

    def batches(self) -> Iterator[tuple[Any, F32]]:
        size = max(1, BATCH_BYTES // (4 * self.width))
        for keys, vectors in self._pairs:
            for start in range(0, len(keys), size):
                part = slice(start, start + size)
                yield np.array(keys[part]), np.array(vectors[part], np.float32)


def _mapped(path: Path, dtype: np.dtype[Any]) -> Array:
    if path.suffix == ".npy":
        found: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        return found
    if path.stat().st_size % dtype.itemsize:
        raise DataError(f"{path}: its {path.stat().st_size:,} bytes are no whole number of {dtype.name}", path.name)
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)

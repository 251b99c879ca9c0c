"""Table file of a bundle, written from rows in any order in bounded memory.

A bundle's table is sorted by id, and ids are hashes, so rows arrive in random order. They are first dealt to files by the top
bits of their id, each small enough for memory, and then sorted file by file into place.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from pipeline.arrays import F32, I64
from pipeline.bundle.row_format import RowFormat, encode_rows
from pipeline.errors import DataError

__all__ = ["TableFile"]

PART_BYTES = 128 << 20
"""Of a file that is sorted in memory."""
MOST_PARTS_COUNT = 256


class TableFile:
    """A table's file in the making. Use it as a context manager: what is unfinished is removed.

    Args:
        path: of the file; parts lie beside it meanwhile.
        name: of the table, for messages.
        width: of its rows.
        expected: about how many rows will come.
        stored: format of the rows.
    """

    def __init__(self, path: Path, name: str, width: int, *, expected: int = 0, stored: RowFormat = "float32") -> None:
        self._path, self._name, self._width, self._stored = path, name, width, stored
        self._row = np.dtype([("id", "<i8"), ("row", "<f4", (width,))])
        wanted = -(-expected * self._row.itemsize // PART_BYTES)
        self._bits = min(MOST_PARTS_COUNT, 1 << max(0, wanted - 1).bit_length()).bit_length() - 1
        self._folder = path.with_name(path.name + ".parts")
        self._files = ExitStack()
        self._parts: list[BinaryIO] = []
        self.rows = 0

    def __enter__(self) -> TableFile:
        self._folder.mkdir(parents=True)
        for part in range(1 << self._bits):
            self._parts.append(self._files.enter_context(open(self._folder / str(part), "w+b")))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, ids: I64, rows: F32) -> None:
        """Add rows float32 `[k, width]` of ids int64 `[k]`.

        Raises:
            DataError: the rows have another width, or are not finite.
        """
        if rows.ndim != 2 or rows.shape[1] != self._width or len(rows) != len(ids):
            raise DataError(
                f"table {self._name!r}: rows of shape {list(rows.shape)} for {len(ids):,} values; its width is {self._width}",
                self._name,
            )
        if not np.isfinite(rows).all():
            raise DataError(f"table {self._name!r}: a vector holds NaN or infinity", self._name)
        self.rows += len(ids)
        packed = np.empty(len(ids), self._row)
        packed["id"], packed["row"] = ids, rows
        if not self._bits:
            packed.tofile(self._parts[0])
            return
        part = (ids.view(np.uint64) ^ np.uint64(1 << 63)) >> np.uint64(64 - self._bits)
        order = np.argsort(part, kind="stable")
        packed, ends = packed[order], np.searchsorted(part[order], np.arange(1 << self._bits), side="right")
        for number, (start, end) in enumerate(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)):
            if end > start:
                packed[start:end].tofile(self._parts[number])

    def finish(self) -> int:
        """Sort into the file; the number of rows.

        Raises:
            DataError: an id came twice.
            InvalidInput: a row cannot be stored in the format.
        """
        arrays: dict[str, tuple[str, tuple[int, ...]]] = {"ids": ("I64", (self.rows,)), "counts": ("I64", (self.rows,))}
        if self._stored == "int8":
            arrays["scales"] = ("F32", (self.rows,))
        arrays["rows"] = (_CODES[self._stored], (self.rows, self._width))  # last: the others stay aligned
        header, places, size = _header(arrays)
        with open(self._path, "wb") as file:
            file.write(header)
            file.truncate(size)  # the counts stay a hole of zeros
            done = 0
            for part in self._parts:
                part.seek(0)
                packed = np.fromfile(part, self._row)
                packed = packed[np.argsort(packed["id"], kind="stable")]
                ids = np.ascontiguousarray(packed["id"])
                if (ids[1:] == ids[:-1]).any():
                    raise DataError(
                        f"table {self._name!r}: {int((ids[1:] == ids[:-1]).sum()):,} of {self.rows:,} values come twice; give "
                        "each value one row",
                        self._name,
                    )
                rows, scales = encode_rows(np.ascontiguousarray(packed["row"]), self._stored)
                for name, array in (("ids", ids), ("rows", rows), ("scales", scales)):
                    if array is not None and len(array):
                        file.seek(places[name] + done * array[:1].nbytes)
                        array.tofile(file)
                done += len(ids)
                part.truncate(0)
            file.flush()
            os.fsync(file.fileno())
        return self.rows


_CODES = {"float32": "F32", "float16": "F16", "int8": "I8"}
_BYTES = {"I64": 8, "F32": 4, "F16": 2, "I8": 1}


def _header(arrays: dict[str, tuple[str, tuple[int, ...]]]) -> tuple[bytes, dict[str, int], int]:
    """The first bytes of a safetensors file of these arrays, the first byte of each, and the file's size."""
    said, begins, at = {}, {}, 0
    for name, (dtype, shape) in arrays.items():
        end = at + _BYTES[dtype] * int(np.prod(shape, dtype=np.int64))
        said[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        begins[name], at = at, end
    text = json.dumps(said, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    first = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {name: first + place for name, place in begins.items()}, first + at

"""Rows of label files from a place on, a few hundred at a time: Parquet by rows, CSV and JSON lines by bytes.

A file may grow while it is read: what is not a whole row yet is left for the next time. What a row means is in `labels`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.errors import InvalidInput

__all__ = ["Row", "label_files", "read_rows"]

_KINDS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "json", ".ndjson": "json", ".json": "json"}
_READ_BYTES = 1 << 20
_LONGEST_LINE_BYTES = 16 << 20
BATCH_ROWS = 500

Row = Mapping[str, Any]


def label_files(paths: Iterable[Path]) -> list[Path]:
    """The files of labels among paths: a folder stands for all files of a known kind in it, by name.

    Raises:
        InvalidInput: a path is not there, or a file of no known kind.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(p for p in path.iterdir() if p.suffix in _KINDS and not p.name.startswith("."))
        elif not path.exists():
            raise InvalidInput(f"{path} is not there", "files")
        elif path.suffix not in _KINDS:
            raise InvalidInput(f"{path} is none of {', '.join(sorted(_KINDS))}", "files")
        else:
            found.append(path)
    return found


def read_rows(path: Path, at: int, growing: bool) -> Iterator[tuple[list[tuple[int, Row]], int]]:
    """Rows of a file from a place on, each with its number, a batch at a time; and the place after them."""
    kind = _KINDS[path.suffix]
    try:
        if kind == "parquet":
            yield from _parquet(path, at, growing)
        else:
            yield from _lines(path, at, growing, kind)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror or error}", "files") from None


def _parquet(path: Path, at: int, growing: bool) -> Iterator[tuple[list[tuple[int, Row]], int]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if at > file.metadata.num_rows:
                at = 0  # another file of that name
            seen = 0
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                if seen + len(batch) > at:
                    rows = batch.slice(max(0, at - seen)).to_pylist()
                    first = max(at, seen)
                    yield list(enumerate(rows, first + 1)), seen + len(batch)
                seen += len(batch)
    except pa.ArrowInvalid as error:
        if not growing:  # else it is being written
            raise InvalidInput(f"{path} is no whole Parquet file: {error}", "files") from None


def _lines(path: Path, at: int, growing: bool, kind: str) -> Iterator[tuple[list[tuple[int, Row]], int]]:
    """Rows of a text file; the place is in bytes, and rows are numbered from it on."""
    with path.open("rb") as file:
        header: list[str] = []
        begin = 0
        if kind == "csv":
            first = file.readline()
            if not first.endswith(b"\n") and growing:
                return
            begin = len(first)
            header = next(csv.reader([_decoded(path, first).lstrip("\ufeff")]), [])
        size = file.seek(0, io.SEEK_END)
        at = begin if at < begin or at > size else at  # beyond the end: another file of that name
        file.seek(at)
        number, rest = 0, b""
        while True:
            read = file.read(_READ_BYTES)
            rest += read
            cut = len(rest) if not read and not growing else _whole(rest, kind)
            if cut == 0:
                if not read:
                    return
                if len(rest) > _LONGEST_LINE_BYTES:
                    raise InvalidInput(
                        f"{path}: a line from byte {at} on has more than {_LONGEST_LINE_BYTES} bytes", "files"
                    )
                continue
            text, rest = _decoded(path, rest[:cut]), rest[cut:]
            rows: list[tuple[int, Row]] = []
            for row in _parsed(path, text, kind, header):
                number += 1
                rows.append((number, row))
            at += cut
            # Places are kept per piece read: a row's end in bytes is known for whole pieces alone.
            for start in range(0, len(rows), BATCH_ROWS):
                some = rows[start : start + BATCH_ROWS]
                last = start + BATCH_ROWS >= len(rows)
                yield some, at if last else at - cut
            if not rows:
                yield [], at


def _whole(data: bytes, kind: str) -> int:
    """Bytes up to the end of the last whole row: a line, and in CSV one within no quotes."""
    end = data.rfind(b"\n") + 1
    while kind == "csv" and end and data.count(b'"', 0, end) % 2:
        end = data.rfind(b"\n", 0, end - 1) + 1
    return end


def _parsed(path: Path, text: str, kind: str, header: Sequence[str]) -> Iterator[Row]:
    if kind == "csv":
        for values in csv.reader(io.StringIO(text, newline="")):
            if values:
                yield dict(zip(header, values, strict=False))
        return
    for line in text.splitlines():
        if not line.strip():
            continue
        row: Any = None
        with suppress(ValueError):
            row = json.loads(line)
        yield row if isinstance(row, dict) else {}


def _decoded(path: Path, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is not UTF-8: {error}", "files") from None

"""Deletion in lanes' folders, by any process, beside the lanes that append.

A frame is overwritten in its place, so that the places of others stay; then its row goes. A crash in between leaves a row whose
frame is deleted, which reads as nothing, and deleting it again finishes the work.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

from pipeline.disk import writing
from pipeline.traffic.lanes.claim import lane_folder
from pipeline.traffic.lanes.files import file_numbers, file_path, write_all
from pipeline.traffic.lanes.frames import tombstone
from pipeline.traffic.lanes.index import Index, marks
from pipeline.traffic.lanes.rows import Row
from pipeline.traffic.requests import waiting_name

__all__ = ["delete", "drop_empty", "drop_scores", "scrub"]

_CHUNK_ROWS = 256
_Place = tuple[int, int, int]
"""File, offset and length."""


def delete(root: Path, lanes: Iterable[int], lane: int, rows: Sequence[Row], scrub: bool) -> None:
    """See `Lanes.delete`. `lanes`: those that hold scores or feedback, of whichever predictions."""
    ids = [row.prediction_id for row in rows]
    ids += [waiting_name(row.request_key) for row in rows if row.request_key]
    for other in lanes:
        with _opened(lane_folder(root, other)) as index:
            for start in range(0, len(ids), _CHUNK_ROWS):
                _delete_what_belongs(index, ids[start : start + _CHUNK_ROWS], scrub)
    with _opened(lane_folder(root, lane)) as index:
        for start in range(0, len(rows), _CHUNK_ROWS):
            some = rows[start : start + _CHUNK_ROWS]
            if scrub:
                _overwrite(index.path.parent, [(row.file, row.offset, row.length) for row in some])
            _delete_rows(index, "predictions", [row.seq for row in some], scrub)


def drop_scores(folder: Path, ids: Sequence[str]) -> None:
    """Delete the scores that a lane has of a few predictions, and overwrite their bytes."""
    if ids:
        with _opened(folder) as index:
            _delete_scores(index, ids, scrub=True)


def scrub(folder: Path) -> None:
    """Empty the write-ahead log of a lane; see `Lanes.scrub`."""
    with _opened(folder) as index:
        index.empty_log()


def drop_empty(folder: Path) -> int:
    """See `Lanes.drop_empty`."""
    with _opened(folder) as index:
        with index.write(durable=False) as db:
            db.execute("DELETE FROM files WHERE predictions = 0 AND scores = 0")
        # The lane begins a file within a transaction: in another one, a file that the index does not name is one deleted.
        with index.write(durable=False) as db, writing(folder):
            named = {number for (number,) in db.execute("SELECT number FROM files")}
            gone = [number for number in file_numbers(folder) if number not in named]
            for number in gone:
                file_path(folder, number).unlink(missing_ok=True)
    return len(gone)


def _delete_what_belongs(index: Index, ids: Sequence[str], scrub: bool) -> None:
    """Scores and feedback that a lane has of these predictions, which are mostly another lane's."""
    _delete_scores(index, ids, scrub)
    inbox = index.rows_in("SELECT seq FROM inbox WHERE prediction_id IN ({})", ids)
    if inbox:
        with index.write(durable=scrub) as db:
            db.executemany("DELETE FROM inbox WHERE seq = ?", inbox)


def _delete_scores(index: Index, ids: Sequence[str], scrub: bool) -> None:
    scores = index.rows_in("SELECT seq, file, offset, length FROM scores WHERE prediction_id IN ({})", ids)
    if scores:
        if scrub:
            _overwrite(index.path.parent, [place for _, *place in scores])
        _delete_rows(index, "scores", [seq for seq, *_ in scores], scrub)


def _overwrite(folder: Path, places: Iterable[Sequence[int]]) -> None:
    for number, group in groupby(sorted(tuple(place) for place in places), key=lambda place: place[0]):
        path = file_path(folder, number)
        with writing(path):
            try:
                handle = os.open(path, os.O_WRONLY)
            except FileNotFoundError:
                continue
            try:
                for _, offset, length in group:
                    write_all(handle, tombstone(length), offset)
                os.fdatasync(handle)
            finally:
                os.close(handle)


def _delete_rows(index: Index, table: str, seqs: Sequence[int], durable: bool) -> None:
    """Delete rows that point into record files, and count them off there."""
    with index.write(durable=durable) as db:
        query = f"DELETE FROM {table} WHERE seq IN ({marks(len(seqs))}) RETURNING file"
        left = Counter(file for (file,) in db.execute(query, seqs).fetchall())
        db.executemany(f"UPDATE files SET {table} = {table} - ? WHERE number = ?", [(n, f) for f, n in left.items()])


@contextmanager
def _opened(folder: Path) -> Iterator[Index]:
    """A connection of its own: a deletion takes its time, and readers of this process go on."""
    index = Index(folder)
    try:
        yield index
    finally:
        index.close()

"""Lanes: reader of all lanes' folders, in any process, and what is deleted from them.

Folders and files that come later are seen without being told. Only `delete`, `scrub` and `drop_empty` write, and they take
nothing away from a lane that appends at the same time (`erase`).
"""

from __future__ import annotations

import os
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import Damaged, NotReady
from pipeline.forks import ProcessLock
from pipeline.traffic.lanes import erase
from pipeline.traffic.lanes.claim import lane_folder
from pipeline.traffic.lanes.files import OpenFiles, file_path
from pipeline.traffic.lanes.frames import HEAD_BYTES, payload_of
from pipeline.traffic.lanes.index import Index, index_path
from pipeline.traffic.lanes.keys import Runs
from pipeline.traffic.lanes.rows import FileRow, InboxRow, Place, Row, ScoreRow, lane_of, signed, unsigned

__all__ = ["Lanes"]

_OPEN_ENTRIES = 64
_PAGE_IDS = 256
_SETTLED_S = 1.0
"""A folder whose time is as recent as this may change again without its time changing."""

_ROW = "@row"
"""Columns of a `Row` in a query. An index of format 1 has no request keys."""
_COLUMNS = "seq, prediction_id, file, offset, length, n, endpoint, arm, time_ms, routing_hash"
_NEWEST_ROWS = 16
"""Predictions of one request key that are looked at in a lane, from the newest on, for those that are not deleted."""
_SCORE = "seq, prediction_id, arm, bundle, version, file, offset, length"
_INBOX = "seq, prediction_id, received_ms, entry"


class Lanes:
    """All lanes beneath a root. Any thread may call it. A lane that is not there has no rows.

    Raises:
        NotReady: all methods, where a file cannot be read or is locked for too long.
        InvalidInput: an index is something else, or was written by a newer Baton.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = ProcessLock(f"traffic log {root}")
        self._files = OpenFiles(f"traffic log {root}")
        self._indexes: OrderedDict[int, Index] = OrderedDict()
        self._runs: dict[int, Runs] = {}
        self._numbers: list[int] = []
        self._listed_ns = 0
        self._closed = False

    def numbers(self) -> list[int]:
        """Lanes that have a folder with an index, ascending."""
        with self._lock:
            self._check()
            try:
                changed_ns = self._root.stat().st_mtime_ns
                if changed_ns != self._listed_ns:
                    names = [int(name) for name in os.listdir(self._root) if name.isdecimal()]
                    self._numbers = sorted(n for n in names if n in self._indexes or self._has_index(n))
                    settled = time.time_ns() - changed_ns > _SETTLED_S * 1e9 and len(names) == len(self._numbers)
                    self._listed_ns = changed_ns if settled else 0
            except FileNotFoundError:
                return []
            except OSError as error:
                raise NotReady(f"traffic log {self._root} cannot be read: {error.strerror}") from error
            return list(self._numbers)

    def rows(self, lane: int, after: int, limit: int) -> list[Row]:
        """Predictions with seq > after, in order."""
        query = f"SELECT {_ROW} FROM predictions WHERE seq > ? ORDER BY seq LIMIT ?"
        return [_row(found) for found in self._ask(lane, query, (after, limit))]

    def last_seq(self, lane: int) -> int:
        """Last seq that the lane gave to a prediction, deleted ones included; 0 before the first."""
        found = self._ask(lane, "SELECT seq FROM sqlite_sequence WHERE name = 'predictions'")
        return int(found[0][0]) if found else 0

    def find(self, prediction_id: str) -> tuple[int, Row] | None:
        """Lane and row of a prediction: the lane that the id names is asked first, then the others."""
        return self.find_all([prediction_id]).get(prediction_id)

    def find_all(self, prediction_ids: Sequence[str]) -> dict[str, tuple[int, Row]]:
        """`find` for many: those that are written."""
        query = f"SELECT {_ROW} FROM predictions WHERE prediction_id IN ({{}})"
        numbers = self.numbers()
        found: dict[str, tuple[int, Row]] = {}
        named: dict[int | None, list[str]] = {}
        for prediction_id in prediction_ids:
            named.setdefault(lane_of(prediction_id), []).append(prediction_id)
        for lane in numbers:
            found |= {r[1]: (lane, _row(r)) for r in self._ask_in(lane, query, named.get(lane, []))}
        left = [prediction_id for prediction_id in prediction_ids if prediction_id not in found]
        for lane in numbers:
            if not left:
                break
            found |= {r[1]: (lane, _row(r)) for r in self._ask_in(lane, query, left)}
            left = [prediction_id for prediction_id in left if prediction_id not in found]
        return found

    def rows_of_key(self, lane: int, routing_hash: int, limit: int) -> list[Row]:
        """Up to `limit` predictions of a routing hash (unsigned, not 0), the oldest first."""
        key = signed(routing_hash)
        query = f"SELECT {_ROW} FROM predictions WHERE seq IN ({{}}) AND routing_hash = {key} ORDER BY seq"
        rows: list[Row] = []
        with self._index(lane) as index:
            if index is not None:
                with _reading(index.path.parent):
                    seqs = Runs(index.path.parent).seqs(index, key)
                query = _with_columns(query, index)
                for start in range(0, len(seqs), limit):
                    rows += [_row(found) for found in index.rows_in(query, seqs[start : start + limit])]
                    if len(rows) >= limit:
                        break
        return rows[:limit]

    def requested(self, keys: Sequence[int], count: int = 2) -> dict[int, list[tuple[int, Row]]]:
        """Up to `count` predictions of each request key (unsigned, not 0), the newest first; keys without any are left out."""
        query = f"SELECT {_ROW} FROM predictions WHERE seq IN ({{}})"
        found: dict[int, list[tuple[int, Row]]] = {}
        for lane in self.numbers() if keys else ():
            with self._index(lane) as index:
                if index is None or not index.has_request_keys:
                    continue
                runs = self._runs.setdefault(lane, Runs(index.path.parent))
                rows = _newest(index, runs, _with_columns(query, index), keys, count)
            for row in rows:
                found.setdefault(row.request_key, []).append((lane, row))
        return {key: _newest_first(found[key])[:count] for key in keys if key in found}

    def rows_before(self, lane: int, before: str, after: str, limit: int) -> list[Row]:
        """Predictions with after < id < before, in order of their ids, which is that of their times."""
        query = f"SELECT {_ROW} FROM predictions WHERE prediction_id > ? AND prediction_id < ? ORDER BY prediction_id LIMIT ?"
        return [_row(found) for found in self._ask(lane, query, (after, before, limit))]

    def read(self, place: Place) -> bytes | None:
        """Payload of a frame; None where it was deleted.

        Raises:
            Damaged: the bytes are not those that were written.
        """
        try:
            return self._payload(place)
        except ValueError:  # it may just be deleted: a deletion has written its head before anything else
            try:
                return self._payload(place)
            except ValueError as error:
                path = file_path(lane_folder(self._root, place.lane), place.file)
                raise Damaged(f"{path}: the record at byte {place.offset} is damaged: {error}") from None

    def _payload(self, place: Place) -> bytes | None:
        """Payload of a frame. Raises: ValueError: the bytes are no whole frame. Damaged: the file is gone."""
        self._check()
        path = file_path(lane_folder(self._root, place.lane), place.file)
        try:
            with _reading(path):
                frame = self._files.read(path, place.offset, HEAD_BYTES + place.length)
        except FileNotFoundError:
            if not self._ask(place.lane, "SELECT 1 FROM files WHERE number = ?", (place.file,)):
                return None
            raise Damaged(f"{path} is gone, with records that the index names: restore it from a backup") from None
        return payload_of(frame, place.length)

    def inbox(self, lane: int, after: int, limit: int) -> list[InboxRow]:
        """Feedback of a lane with seq > after, in order."""
        query = f"SELECT {_INBOX} FROM inbox WHERE seq > ? ORDER BY seq LIMIT ?"
        return [InboxRow(*found) for found in self._ask(lane, query, (after, limit))]

    def last_inbox_seq(self, lane: int) -> int:
        """Last seq that the lane gave to feedback, trimmed entries included; 0 before the first."""
        found = self._ask(lane, "SELECT seq FROM sqlite_sequence WHERE name = 'inbox'")
        return int(found[0][0]) if found else 0

    def inbox_of(self, prediction_ids: Sequence[str]) -> list[tuple[int, InboxRow]]:
        """Feedback on these predictions in all lanes' inboxes: lane and row, in order of lane and seq."""
        query = f"SELECT {_INBOX} FROM inbox WHERE prediction_id IN ({{}})"
        return [
            (lane, InboxRow(*found))
            for lane in self.numbers()
            for found in sorted(self._ask_in(lane, query, prediction_ids))
        ]

    def scores(self, lane: int, after: int, limit: int) -> list[ScoreRow]:
        """Other arms' scores that a lane wrote, with seq > after, in order."""
        query = f"SELECT {_SCORE} FROM scores WHERE seq > ? ORDER BY seq LIMIT ?"
        return [ScoreRow(*found) for found in self._ask(lane, query, (after, limit))]

    def scores_of(self, prediction_ids: Sequence[str]) -> list[tuple[int, ScoreRow]]:
        """Other arms' scores of these predictions in all lanes: lane and row, in order of lane and seq."""
        query = f"SELECT {_SCORE} FROM scores WHERE prediction_id IN ({{}})"
        return [
            (lane, ScoreRow(*found))
            for lane in self.numbers()
            for found in sorted(self._ask_in(lane, query, prediction_ids))
        ]

    def files(self, lane: int) -> list[FileRow]:
        """Record files of a lane in the order in which they were begun."""
        query = "SELECT number, begun_ms, newest_ms, end, predictions, scores FROM files ORDER BY number"
        return [FileRow(*found) for found in self._ask(lane, query)]

    def bytes(self) -> int:
        """Size of all files of all lanes: records, pages of indexes in use, and runs of routing hashes."""
        return sum(self._bytes(lane) for lane in self.numbers())

    def delete(self, lane: int, rows: Sequence[Row], *, scrub: bool = False) -> None:
        """Delete predictions of a lane, with their scores and their feedback in every lane.

        Args:
            scrub: overwrite their bytes too, and flush. After `Lanes.scrub` nothing of them is in any file.

        Raises:
            NotReady: it may be half done; repeating it finishes it.
        """
        holds = "SELECT 1 WHERE EXISTS (SELECT 1 FROM scores) OR EXISTS (SELECT 1 FROM inbox)"
        holding = [number for number in self.numbers() if self._ask(number, holds)]
        erase.delete(self._root, holding, lane, rows, scrub)

    def scrub(self) -> None:
        """Empty the write-ahead logs of all indexes: what was deleted before is overwritten in the indexes themselves.

        Raises:
            NotReady: others were in the way all the time; repeat it.
        """
        for lane in self.numbers():
            erase.scrub(lane_folder(self._root, lane))

    def drop_scores(self, before: str, prediction_ids: Sequence[str] = ()) -> None:
        """Delete other arms' scores of predictions that no lane has written: those named, and those with ids below
        `before` (`prediction.smallest_id`)."""
        query = (
            "SELECT DISTINCT prediction_id FROM scores WHERE prediction_id > ? AND prediction_id < ? ORDER BY 1 LIMIT ?"
        )
        for lane in self.numbers():
            ids, after = list(prediction_ids), ""
            while True:
                written = self.find_all(ids)
                erase.drop_scores(lane_folder(self._root, lane), [i for i in ids if i not in written])
                ids = [i for (i,) in self._ask(lane, query, (after, before, _PAGE_IDS))]
                if not ids:
                    break
                after = ids[-1]

    def drop_empty(self, lane: int) -> int:
        """Remove record files to which no row points any more, the current one included; their number."""
        return erase.drop_empty(lane_folder(self._root, lane)) if lane in self.numbers() else 0

    def close(self) -> None:
        """Release all files; later use raises NotReady."""
        with self._lock:
            self._closed = True
            while self._indexes:
                self._indexes.popitem()[1].close()
            self._runs.clear()
        self._files.close()

    def _check(self) -> None:
        if self._closed:
            raise NotReady(f"traffic log {self._root} is closed")

    def _has_index(self, lane: int) -> bool:
        return index_path(lane_folder(self._root, lane)).exists()

    @contextmanager
    def _index(self, lane: int) -> Iterator[Index | None]:
        """The lane's index, None of a lane that is not there."""
        with self._lock:
            self._check()
            index = self._indexes.get(lane)
            if index is None and self._has_index(lane):
                index = self._indexes[lane] = Index(lane_folder(self._root, lane))
                if len(self._indexes) > _OPEN_ENTRIES:
                    self._indexes.popitem(last=False)[1].close()
            elif index is not None:
                self._indexes.move_to_end(lane)
            yield index

    def _ask(self, lane: int, query: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._index(lane) as index:
            return index.rows(_with_columns(query, index), values) if index is not None else []

    def _ask_in(self, lane: int, query: str, values: Sequence[Any]) -> list[Any]:
        if not values:
            return []
        with self._index(lane) as index:
            return index.rows_in(_with_columns(query, index), values) if index is not None else []

    def _bytes(self, lane: int) -> int:
        query = (
            "SELECT (SELECT ifnull(sum(end), 0) FROM files),"
            " (page_count - freelist_count) * page_size FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
        )
        with self._index(lane) as index:
            if index is None:
                return 0
            records, pages = index.rows(query)[0]
            with _reading(index.path.parent):
                return int(records + pages + Runs(index.path.parent).bytes())


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise NotReady for a disk that fails during a read. That a file is not there is another matter."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise NotReady(f"{path} cannot be read: {error.strerror or error}") from error


def _newest_first(rows: Sequence[tuple[int, Row]]) -> list[tuple[int, Row]]:
    """Rows by time. Two lanes that were told one prediction at the same moment may both have written it: that is one."""
    ordered = sorted(rows, key=lambda one: (one[1].time_ms, one), reverse=True)
    return list({row.prediction_id: (lane, row) for lane, row in ordered}.values())


def _newest(index: Index, runs: Runs, query: str, keys: Sequence[int], count: int) -> list[Row]:
    """The newest rows of each request key in one lane, `count` of them at least where there are as many."""
    most = _NEWEST_ROWS
    while True:
        with _reading(index.path.parent):
            seqs, whole = runs.newest(index, [signed(key) for key in keys], most)
        rows = [_row(row) for row in index.rows_in(query, sorted(set(seqs)))]
        rows = [row for row in rows if row.request_key in keys]
        # Those that were looked at may be deleted, or have the hash as that of a routing key.
        if whole or all(number >= count for number in Counter(row.request_key for row in rows).values()):
            return rows
        most *= 8


def _with_columns(query: str, index: Index) -> str:
    """A query whose `_ROW` is written out."""
    if _ROW not in query:
        return query
    return query.replace(_ROW, f"{_COLUMNS}, {'request_key' if index.has_request_keys else 0}")


def _row(found: Sequence[Any]) -> Row:
    *others, routing_hash, request_key = found
    return Row._make((*others, unsigned(routing_hash), unsigned(request_key)))

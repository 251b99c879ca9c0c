"""Lanes: reader of all lanes' folders, in any process, and what is deleted from them.

Folders and files that come later are seen without being told. Only `delete` and `drop_empty` write, and they take nothing
away from a lane that appends at the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.traffic.lanes.rows import FileRow, InboxRow, Place, Row, ScoreRow

__all__ = ["Lanes"]


class Lanes:
    """All lanes beneath a root. Any thread may call it. A lane that is not there has no rows.

    Raises:
        NotReady: all methods, where a file cannot be read or is locked for too long.
    """

    def __init__(self, root: Path) -> None:
        raise NotImplementedError

    def numbers(self) -> list[int]:
        """Lanes that have a folder with an index, ascending."""
        raise NotImplementedError

    def rows(self, lane: int, after: int, limit: int) -> list[Row]:
        """Predictions with seq > after, in order."""
        raise NotImplementedError

    def last_seq(self, lane: int) -> int:
        """Last seq that the lane gave to a prediction, deleted ones included; 0 before the first."""
        raise NotImplementedError

    def find(self, prediction_id: str) -> tuple[int, Row] | None:
        """Lane and row of a prediction: the lane that the id names is asked first, then the others."""
        raise NotImplementedError

    def find_all(self, prediction_ids: Sequence[str]) -> dict[str, tuple[int, Row]]:
        """`find` for many: those that are written."""
        raise NotImplementedError

    def rows_of_key(self, lane: int, routing_hash: int, limit: int) -> list[Row]:
        """Up to `limit` predictions of a routing hash (unsigned, not 0)."""
        raise NotImplementedError

    def rows_before(self, lane: int, before: str, after: str, limit: int) -> list[Row]:
        """Predictions with after < id < before, in order of their ids, which is that of their times."""
        raise NotImplementedError

    def read(self, place: Place) -> bytes | None:
        """Payload of a frame; None where it was deleted.

        Raises:
            Damaged: the bytes are not those that were written.
        """
        raise NotImplementedError

    def inbox(self, lane: int, after: int, limit: int) -> list[InboxRow]:
        """Feedback of a lane with seq > after, in order."""
        raise NotImplementedError

    def last_inbox_seq(self, lane: int) -> int:
        """Last seq that the lane gave to feedback, trimmed entries included; 0 before the first."""
        raise NotImplementedError

    def inbox_of(self, prediction_ids: Sequence[str]) -> list[tuple[int, InboxRow]]:
        """Feedback on these predictions in all lanes' inboxes: lane and row, in order of lane and seq."""
        raise NotImplementedError

    def scores(self, lane: int, after: int, limit: int) -> list[ScoreRow]:
        """Other arms' scores that a lane wrote, with seq > after, in order."""
        raise NotImplementedError

    def scores_of(self, prediction_ids: Sequence[str]) -> list[tuple[int, ScoreRow]]:
        """Other arms' scores of these predictions in all lanes: lane and row, in order of lane and seq."""
        raise NotImplementedError

    def files(self, lane: int) -> list[FileRow]:
        """Record files of a lane in the order in which they were begun."""
        raise NotImplementedError

    def bytes(self) -> int:
        """Size of all files of all lanes: records, and pages of indexes in use."""
        raise NotImplementedError

    def delete(self, lane: int, rows: Sequence[Row], *, scrub: bool = False) -> None:
        """Delete predictions of a lane, with their scores and their feedback in every lane.

        Args:
            scrub: overwrite their bytes too, and flush; then nothing of them is in any file. With no rows it finishes a
                scrub that was interrupted.

        Raises:
            NotReady: it may be half done; repeating it finishes it.
        """
        raise NotImplementedError

    def drop_scores(self, before: str, prediction_ids: Sequence[str] = ()) -> None:
        """Delete other arms' scores of predictions that no lane has written: those named, and those with ids below
        `before` (`prediction.smallest_id`)."""
        raise NotImplementedError

    def drop_empty(self, lane: int) -> int:
        """Remove record files to which no row points any more, the current one included; their number."""
        raise NotImplementedError

    def close(self) -> None:
        """Release all files; later use raises NotReady."""
        raise NotImplementedError

"""Rows of a lane's index, as readers get them, and the place of a frame in a lane's record files.

Rows are narrow: what they point at is in the record files and is read by `lanes.Lanes.read`.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["FileRow", "InboxRow", "Place", "Row", "ScoreRow", "ScoresEntry", "lane_of", "signed", "unsigned"]

_LETTERS_COUNT = 13  # of 5 bits: 48 of time, 16 of the lane, and one more


class Place(NamedTuple):
    """Where a frame lies: lane, number of the file, offset of the frame in bytes, length of its payload in bytes."""

    lane: int
    file: int
    offset: int
    length: int


class Row(NamedTuple):
    """A prediction in a lane's index.

    `seq` counts within the lane and is never reused; `n` candidates; `time_ms`, `endpoint`, `arm`, `routing_hash` and
    `request_key` (both unsigned, 0 without a routing key or a request id) are those of the record's head.
    """

    seq: int
    prediction_id: str
    file: int
    offset: int
    length: int
    n: int
    endpoint: str
    arm: str
    time_ms: int
    routing_hash: int
    request_key: int = 0

    def place(self, lane: int) -> Place:
        """Place of the record."""
        return Place(lane, self.file, self.offset, self.length)


class ScoresEntry(NamedTuple):
    """Another arm's scores to be written: of which prediction, by which version, packed as the caller packs them."""

    prediction_id: str
    arm: str
    bundle: str
    version: int
    scores: bytes


class ScoreRow(NamedTuple):
    """Another arm's scores in the index of the lane that wrote them; `seq` counts them within that lane."""

    seq: int
    prediction_id: str
    arm: str
    bundle: str
    version: int
    file: int
    offset: int
    length: int

    def place(self, lane: int) -> Place:
        """Place of the scores."""
        return Place(lane, self.file, self.offset, self.length)


class InboxRow(NamedTuple):
    """Feedback that a lane took and the join has not applied yet; `entry` is the text that the caller gave."""

    seq: int
    prediction_id: str
    received_ms: int
    entry: str


class FileRow(NamedTuple):
    """A record file of a lane.

    Args:
        begun_ms: when it was begun; newest_ms: latest time of a prediction in it, 0 without one; Unix milliseconds.
        end: bytes that the index knows.
        predictions, scores: rows of the index that point into it.
    """

    number: int
    begun_ms: int
    newest_ms: int
    end: int
    predictions: int
    scores: int


def lane_of(prediction_id: str) -> int | None:
    """Lane that a prediction id names (`pipeline.traffic.prediction`), whoever made it; None of what is no id."""
    try:
        return int(prediction_id[:_LETTERS_COUNT], 32) >> 1 & 0xFFFF
    except ValueError:
        return None


def signed(value: int) -> int:
    """An unsigned 64-bit hash as SQLite stores it."""
    return value - (1 << 64) if value >= 1 << 63 else value


def unsigned(value: int) -> int:
    """What `signed` was given."""
    return value & (1 << 64) - 1

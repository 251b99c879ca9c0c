"""Small records for the tests of lanes: opaque bytes with a head."""

from __future__ import annotations

import random
import resource
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.traffic.lanes.lanes import Lanes
from pipeline.traffic.lanes.rows import Row
from pipeline.traffic.prediction import PredictionIds
from pipeline.traffic.record import RecordHead

KEY = b"k" * 32
START_MS = 1_000_000

USER = 0xFEDC_BA98_7654_3210
"""Routing hash of the user to forget."""
SECRET = b"candidate-of-one-user-24"

Sample = tuple[RecordHead, bytes]


def samples(
    count: int, lane: int = 3, *, size: int = 100, time_ms: int = START_MS, routing_hash: int = 0, seed: int = 0
) -> list[Sample]:
    """Records of a lane, a millisecond apart."""
    ids, rng = PredictionIds(KEY, lane), random.Random(seed)
    return [
        (
            RecordHead(ids.new(time_ms + i), time_ms + i, "ranker", 4, routing_hash, "stable"),
            rng.randbytes(size),
        )
        for i in range(count)
    ]


def all_rows(lanes: Lanes, lane: int, at_once: int = 100) -> list[Row]:
    """Rows of a lane, read in pieces."""
    rows: list[Row] = []
    while some := lanes.rows(lane, rows[-1].seq if rows else 0, at_once):
        rows += some
    return rows


def content(lanes: Lanes, lane: int) -> list[tuple[str, bytes | None]]:
    """Ids and payloads of a lane in order."""
    return [(row.prediction_id, lanes.read(row.place(lane))) for row in all_rows(lanes, lane)]


def as_written(records: Sequence[Sample]) -> list[tuple[str, bytes | None]]:
    """What `content` gives of records that are all there."""
    return [(head.prediction_id, blob) for head, blob in records]


def crash_image(root: Path, image: Path) -> None:
    """Copy what a machine's disk would show if all processes were killed now. SQLite's shared memory dies with them."""
    shutil.rmtree(image, ignore_errors=True)
    shutil.copytree(root, image, ignore=shutil.ignore_patterns("*-shm"), copy_function=_copy)


def _copy(source: str, target: str) -> None:
    with suppress(FileNotFoundError):  # a lane's keeper has replaced it meanwhile
        shutil.copyfile(source, target)


def files_with(root: Path, needle: bytes) -> list[str]:
    """Files beneath a folder that hold some bytes."""
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file() and needle in p.read_bytes())


def planted(count: int, lane: int = 3, seed: int = 0) -> list[Sample]:
    """Records of which every third is one user's, with the secret in it."""
    records = samples(count, lane, seed=seed)
    return [
        (head._replace(routing_hash=USER), blob[:40] + SECRET + blob[64:]) if i % 3 == 0 else (head, blob)
        for i, (head, blob) in enumerate(records)
    ]


def forget(lanes: Lanes) -> int:
    """What the log does for one user; how many predictions were deleted."""
    deleted = 0
    for lane in lanes.numbers():
        while rows := lanes.rows_of_key(lane, USER, 50):
            lanes.delete(lane, rows, scrub=True)
            deleted += len(rows)
    lanes.scrub()
    return deleted


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file of this process may grow beyond a size: the system's error is that of a disk that fills in a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

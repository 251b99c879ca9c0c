"""Copies of the log of one machine: one state of it, made while lanes and the join go on.

What refers is copied before what it refers to: positions of readers, labels, each lane's index, then the records that the
index knows. Feedback that the join takes in meanwhile is not in the copied labels, so lanes keep it in their inboxes until
the copy is made.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from pipeline.disk import asking, copy_database, sync, writing
from pipeline.traffic.lanes.files import file_path
from pipeline.traffic.lanes.index import index_path

__all__ = ["copy_log", "trimming"]


def copy_log(path: Path, folder: Path) -> None:
    """Copy the log at `path` into a folder, under the same name; nothing where there is none.

    Raises:
        NotReady: it cannot be read or written now. InvalidInput: a database of it is damaged.
    """
    if not (path / "labels.db").exists():
        return
    target = folder / path.name
    with _locked(path, fcntl.LOCK_SH), writing(target):
        target.mkdir(mode=0o700, parents=True)
        if (path / "readers").is_dir():
            shutil.copytree(path / "readers", target / "readers", ignore=shutil.ignore_patterns(".*"))
        copy_database(path / "labels.db", target)
        for lane in sorted(path.glob("lanes/*")):
            if index_path(lane).exists():
                _copy_lane(lane, target / "lanes" / lane.name)


@contextmanager
def trimming(path: Path) -> Iterator[bool]:
    """Whether a lane may remove feedback that the join has taken in: not while the log is copied."""
    try:
        with _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB):
            yield True
    except BlockingIOError:
        yield False


@contextmanager
def _locked(path: Path, kind: int) -> Iterator[None]:
    handle = os.open(path / "copy.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, kind)
        yield
    finally:
        os.close(handle)


def _copy_lane(folder: Path, target: Path) -> None:
    target.mkdir(mode=0o700, parents=True)
    # Before the index: a run of hashes must not name rows that the copied index does not have.
    for run in folder.glob("*.keys"):
        with suppress(FileNotFoundError):  # it became part of a longer one
            shutil.copy2(run, target / run.name)
    copy_database(index_path(folder), target)
    with asking(f"traffic log {target}"), closing(sqlite3.connect(index_path(target), isolation_level=None)) as db:
        for number, end in db.execute("SELECT number, end FROM files ORDER BY number").fetchall():
            copied = file_path(target, number)
            try:
                shutil.copyfile(file_path(folder, number), copied)
            except FileNotFoundError:  # retention has removed it since, with the predictions in it
                for table in ("predictions", "scores"):
                    db.execute(f"DELETE FROM {table} WHERE file = ?", (number,))
                db.execute("DELETE FROM files WHERE number = ?", (number,))
                continue
            copied.chmod(0o600)
            os.truncate(copied, end)
            sync(copied)

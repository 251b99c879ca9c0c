"""File of the traffic log in SQLite."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from traffic_samples import IDS, WINDOW_MS, sample

from pipeline.errors import InvalidInput, NotReady
from pipeline.traffic.log import FeedbackEntry
from pipeline.traffic.sqlite.file import SCHEMA_VERSION
from pipeline.traffic.sqlite.log import SqliteTrafficLog

START = 1_000_000


def test_a_user_is_forgotten_down_to_the_bytes(tmp_path: Path) -> None:
    log = SqliteTrafficLog(tmp_path / "traffic.db", IDS, WINDOW_MS)
    secret = 0x1122334455667788
    theirs = IDS.new(START)
    log.append_predictions([sample(theirs, START, 300, routing_hash=(1 << 64) - 5, fill=secret)])
    log.append_feedback([FeedbackEntry(theirs, exposed_all=True)], START)
    log.join(START + WINDOW_MS)
    assert log.forget((1 << 64) - 5, START) == 1
    for path in tmp_path.iterdir():
        assert secret.to_bytes(8, "little") not in path.read_bytes(), f"still in {path.name}"
    log.close()


def test_a_file_of_the_first_format_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "traffic.db"
    SqliteTrafficLog(path, IDS).close()
    db = sqlite3.connect(path)
    db.execute("DROP TABLE forgotten")
    db.execute("PRAGMA user_version=1")
    db.close()
    log = SqliteTrafficLog(path, IDS)
    assert log.forget(5, START) == 0
    log.close()
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    db.close()


def test_a_file_of_a_newer_baton_or_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "traffic.db"
    SqliteTrafficLog(path, IDS).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(InvalidInput, match=r"newer Baton \(format 99"):
        SqliteTrafficLog(path, IDS)
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE cakes (name TEXT)")
    db.close()
    with pytest.raises(InvalidInput, match="another program's"):
        SqliteTrafficLog(other, IDS)
    text = tmp_path / "text.db"
    text.write_bytes(b"not a database at all" * 100)
    with pytest.raises(InvalidInput, match="not a traffic log"):
        SqliteTrafficLog(text, IDS)


def test_an_unusable_place_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotReady, match="cannot be opened"):
        SqliteTrafficLog(tmp_path / "file" / "traffic.db", IDS)

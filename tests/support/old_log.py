"""Traffic log of version 0.1, written from one of this version: what `upgrade` has to bring back."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from pipeline.traffic.lanes.lanes import Lanes
from pipeline.traffic.lanes.rows import signed
from pipeline.traffic.local.ceilings import Ceilings

TABLES = """
CREATE TABLE predictions (seq INTEGER PRIMARY KEY AUTOINCREMENT, prediction_id TEXT NOT NULL UNIQUE,
    time_ms INTEGER NOT NULL, endpoint TEXT NOT NULL, n INTEGER NOT NULL, routing_hash INTEGER NOT NULL,
    closes_ms INTEGER NOT NULL, scored INTEGER NOT NULL);
CREATE INDEX predictions_unscored ON predictions (seq) WHERE scored = 0;
CREATE TABLE records (seq INTEGER PRIMARY KEY, record BLOB NOT NULL);
CREATE TABLE scores (prediction_id TEXT NOT NULL, arm TEXT NOT NULL, bundle TEXT NOT NULL, version INTEGER NOT NULL,
    scores BLOB NOT NULL, PRIMARY KEY (prediction_id, arm, bundle, version));
CREATE TABLE feedback (seq INTEGER PRIMARY KEY AUTOINCREMENT, prediction INTEGER NOT NULL, received_ms INTEGER NOT NULL,
    change BLOB NOT NULL);
CREATE INDEX feedback_prediction ON feedback (prediction);
CREATE TABLE parked (seq INTEGER PRIMARY KEY AUTOINCREMENT, prediction_id TEXT NOT NULL, received_ms INTEGER NOT NULL,
    entry TEXT NOT NULL);
CREATE INDEX parked_prediction ON parked (prediction_id);
CREATE TABLE late (prediction INTEGER PRIMARY KEY, due_ms INTEGER NOT NULL);
CREATE INDEX late_due ON late (due_ms);
CREATE TABLE labelled (seq INTEGER PRIMARY KEY AUTOINCREMENT, prediction INTEGER NOT NULL, revision INTEGER NOT NULL,
    time_ms INTEGER NOT NULL, written_ms INTEGER NOT NULL, mature BLOB NOT NULL);
CREATE INDEX labelled_prediction ON labelled (prediction);
CREATE TABLE watermark (one INTEGER PRIMARY KEY CHECK (one = 1), seq INTEGER NOT NULL, time_ms INTEGER NOT NULL);
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE positions (reader TEXT PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID;
"""
FORGOTTEN = "CREATE TABLE forgotten (routing_hash INTEGER PRIMARY KEY, until_ms INTEGER NOT NULL)"


def write_old(path: Path, new: Path, lane: int, window_ms: int, file_format: int = 2) -> None:
    """Write the log of version 0.1 that has what one lane of a log of this version has, all of it taken in by the join."""
    with (
        closing(sqlite3.connect(path)) as old,
        closing(sqlite3.connect(new / "labels.db")) as db,
        closing(Lanes(new / "lanes")) as lanes,
    ):
        old.executescript(TABLES)
        old.execute("PRAGMA application_id=1112821297")
        old.execute(f"PRAGMA user_version={file_format}")
        closes = dict(db.execute("SELECT prediction, closes_ms FROM open"))
        ceilings = Ceilings(db)
        for row in lanes.rows(lane, 0, 1 << 30):
            time_ms = ceilings.time_of(lane, row)
            closes_ms = closes.get(row.seq, time_ms + window_ms)
            values = (row.seq, row.prediction_id, time_ms, row.endpoint, row.n, signed(row.routing_hash), closes_ms)
            scored = int(bool(lanes.scores_of([row.prediction_id])))
            old.execute("INSERT INTO predictions VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*values, scored))
            old.execute("INSERT INTO records VALUES (?, ?)", (row.seq, lanes.read(row.place(lane))))
        for score in lanes.scores(lane, 0, 1 << 30):
            old.execute("INSERT INTO scores VALUES (?, ?, ?, ?, ?)", (*score[1:5], lanes.read(score.place(lane))))
        for table, columns in (
            ("feedback", "seq, prediction, received_ms, change"),
            ("parked", "seq, prediction_id, received_ms, entry"),
            ("late", "prediction, due_ms"),
            ("labelled", "seq, prediction, revision, time_ms, written_ms, mature"),
        ):
            rows = db.execute(f"SELECT {columns} FROM {table}").fetchall()
            marks = ", ".join("?" * (columns.count(",") + 1))
            old.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", rows)
        for reader in (new / "readers").glob("reader-*"):
            values = (reader.name.removeprefix("reader-"), int(reader.read_text()))
            old.execute("INSERT INTO positions VALUES (?, ?)", values)
        counters = dict(db.execute("SELECT name, value FROM counters"))
        ((closed,),) = db.execute("SELECT closed FROM lanes WHERE lane = ?", (lane,)).fetchall()
        old.execute("INSERT INTO watermark VALUES (1, ?, ?)", (closed, counters.get("watermark_ms", 0)))
        totals = ("feedback", "labelled_entries", "labelled_rows", "parked_refused", "parked_expired")
        old.executemany("INSERT INTO counters VALUES (?, ?)", [(name, counters.get(name, 0)) for name in totals])
        old.execute("INSERT INTO counters VALUES ('predictions', ?)", (lanes.last_seq(lane),))
        for name, seq in (("predictions", lanes.last_seq(lane)), *db.execute("SELECT name, seq FROM sqlite_sequence")):
            old.execute("DELETE FROM sqlite_sequence WHERE name = ?", (name,))
            old.execute("INSERT INTO sqlite_sequence VALUES (?, ?)", (name, seq))
        if file_format >= 2:
            old.execute(FORGOTTEN)
            old.executemany("INSERT INTO forgotten VALUES (?, ?)", db.execute("SELECT * FROM forgotten").fetchall())
        old.commit()
        old.execute("PRAGMA journal_mode=WAL").fetchone()

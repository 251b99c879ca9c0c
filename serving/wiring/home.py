"""Condition of a home before anything opens it: parts that are missing, damaged, or not of one time.

What is absent is created, so a home that has lost a part would start as a new one: without weights, or with ids that
nobody can verify. Everything here reads; how a whole home is copied and brought back is `serving.wiring.backup`.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from pipeline.bundle.versions import Repository
from pipeline.errors import InvalidInput
from pipeline.traffic.prediction import given_out
from serving.config import Config

__all__ = ["check_home", "home_faults", "interrupted_restore", "learned_place"]

CHECK_S = 2.0
"""Time at a start for reading a database for damage; what is not read by then is not checked."""
RECENT_ROWS = 10_000
_ADVICE = "bring it back with `baton restore`"
_CONTROL_TABLES = frozenset({"endpoints", "rollouts", "audit"})
_TRAFFIC_TABLES = frozenset(
    {"predictions", "records", "scores", "feedback", "parked", "labelled", "watermark", "counters", "positions"}
)


def check_home(config: Config) -> None:
    """Refuse a home that is half there.

    Raises:
        InvalidInput: it is; the message names what is missing and what to do.
    """
    faults = home_faults(config, CHECK_S)
    if faults:
        raise InvalidInput(f"home {config.home} is not whole: " + "; ".join(faults), "home")


def interrupted_restore(home: Path) -> Path:
    """File that is there while a backup is brought back into a home."""
    return home / "run" / "restoring"


def home_faults(config: Config, check_s: float) -> list[str]:
    """What is wrong with a home, each with what to do; empty: it is whole, or new.

    Args:
        check_s: longest time for the pages of each database, in seconds.
    """
    if not config.home.is_dir():
        return []
    if interrupted_restore(config.home).exists():
        return ["a restore into it was interrupted: run `baton restore` again with --replace"]
    control = None if config.state.url else _Database(config.control_db, _CONTROL_TABLES)
    traffic = None if config.traffic.url else _Database(config.traffic_db, _TRAFFIC_TABLES)
    faults = [fault for database in (control, traffic) if database is not None for fault in database.faults(check_s)]
    if not faults:
        faults = [*_secret(config, control, traffic), *_missing(config, control, traffic)]
    return faults


class _Database:
    """One SQLite database of a home, read only."""

    def __init__(self, path: Path, tables: frozenset[str]) -> None:
        self.path, self._tables = path, tables
        self.there = path.exists()

    def faults(self, check_s: float) -> Iterator[str]:
        journal = self.path.with_name(f"{self.path.name}-wal")
        if not self.there:
            if journal.exists() and journal.stat().st_size:
                yield f"{journal.name} is there without {self.path.name}: {_ADVICE}, or remove both"
            return
        try:
            with closing(self._open()) as db:
                yield from self._read(db, check_s)
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                yield f"{self.path.name} cannot be read ({error}): {_ADVICE}"
        except sqlite3.DatabaseError as error:
            yield f"{self.path.name} is damaged ({error}): {_ADVICE}"

    def _read(self, db: sqlite3.Connection, check_s: float) -> Iterator[str]:
        found = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        missing = sorted(self._tables - found)
        if missing and (not found or found & self._tables):  # else it is another program's, which its reader says
            yield f"{self.path.name} lacks {', '.join(missing)}: {_ADVICE}, or remove it if this home is new"
            return
        until = time.monotonic() + check_s
        db.set_progress_handler(lambda: time.monotonic() > until, 1000)
        try:
            (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.OperationalError as error:
            if "interrupted" not in str(error):
                raise
        else:
            if verdict != "ok":
                yield f"{self.path.name} is damaged ({' '.join(verdict.split())}): {_ADVICE}"

    def rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        """Answer of a query; nothing where there is no database."""
        if not self.there:
            return []
        with closing(self._open()) as db:
            return db.execute(query, values).fetchall()

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(f"file:{quote(str(self.path))}?mode=rw", uri=True, timeout=5.0)


def _secret(config: Config, control: _Database | None, traffic: _Database | None) -> Iterator[str]:
    if config.state.url or config.secret.exists():
        return
    # Commands that only write into the audit (the first token of a new home) make a control.db before there is a secret.
    used = ((control, "SELECT 1 FROM endpoints LIMIT 1"), (traffic, "SELECT 1 FROM predictions LIMIT 1"))
    present = [database.path.name for database, query in used if database is not None and database.rows(query)]
    if present:
        yield (
            f"secret.key is missing, and {' and '.join(present)} was made with it (a new one would refuse the labels of all "
            f"predictions and move users between the arms): {_ADVICE}, or write 32 bytes of your own into {config.secret}"
        )


def _missing(config: Config, control: _Database | None, traffic: _Database | None) -> Iterator[str]:
    answered = set() if traffic is None else _answered(traffic)
    learned = learned_place(config.home / "worker")
    if control is not None and not control.there and (learned or answered):
        yield f"control.db is missing, with weights, rollouts and audit: {_ADVICE}, or move the whole home away"
    if control is not None and traffic is not None and control.there and not traffic.there:
        if learned or control.rows("SELECT 1 FROM rollouts LIMIT 1"):
            yield f"traffic.db is missing, with the evidence of rollouts and the worker's place: {_ADVICE}, or move control.db and worker/ away, too"
        return
    if traffic is not None:
        ends = traffic.rows("SELECT seq FROM sqlite_sequence WHERE name = 'labelled'")
        last = int(str(ends[0][0])) if ends else 0
        if learned > last:
            yield f"worker/ has learned up to entry {learned} of a log that ends at {last}: bring back both from one backup"
    if control is not None and not config.bundles_url:
        yield from _bundles(config, control, answered)


def _answered(traffic: _Database) -> set[object]:
    """Endpoints that lanes of this home have answered lately; imported predictions do not count."""
    rows = traffic.rows("SELECT endpoint, prediction_id FROM predictions ORDER BY seq DESC LIMIT ?", RECENT_ROWS)
    return {endpoint for endpoint, prediction_id in rows if given_out(str(prediction_id))}


def _bundles(config: Config, control: _Database, answered: set[object]) -> Iterator[str]:
    """Bundles of endpoints that have answered and cannot any more."""
    repository = Repository(config.repository)
    for name, body in control.rows("SELECT name, body FROM endpoints"):
        stable = json.loads(str(body))["stable"]["bundle"]
        if name in answered and not repository.versions(stable):
            yield f"{config.repository / stable} has no version, and endpoint {name} answers with it: {_ADVICE}, or publish one"


def learned_place(folder: Path) -> int:
    """Highest place in the log of the worker's checkpoints; 0 where there is none."""
    places = [0]
    for path in folder.glob("*/*/state.json"):
        try:
            places.append(int(json.loads(path.read_text())["place"]["position"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return max(places)

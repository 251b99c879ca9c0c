"""Control store in one SQLite file, for all processes of one machine.

The audit can only grow: the database itself refuses to change or delete an entry. A file that is removed or replaced while
a process has it open is noticed at the next call, and the file that comes back is opened by itself.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any, TypeVar

from pipeline.disk import asking, clear_staging, creating, sync, transaction, writing
from pipeline.errors import Conflict, InvalidInput
from pipeline.forks import ProcessLock
from serving.rollout.document import StateDocument
from serving.rollout.identity import HomeIdentity, StateLost, new_identity, shown_identity
from serving.rollout.routing import Endpoint
from serving.rollout.spec import Rollout
from serving.rollout.state import RolloutState
from serving.rollout.store import AuditEntry, ControlStore, StoredRollout, Transaction, Who

__all__ = ["FORMAT_VERSION", "SqliteControlStore", "endpoint_names"]

FORMAT_VERSION = 1
"""Form of the database, in its `user_version`; 0: of a version that did not note it, which reads the same."""

T = TypeVar("T")

_OPEN_TRIES = 50
_OPENED_BITS = 40
_IDENTITY = "identity"
"""Name of the setting that holds the identity of the file."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS endpoints (
    name TEXT PRIMARY KEY, body TEXT NOT NULL, resource_version INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS rollouts (
    id TEXT PRIMARY KEY, endpoint TEXT NOT NULL, spec TEXT NOT NULL, state TEXT NOT NULL, status TEXT NOT NULL,
    active INTEGER NOT NULL, created_ms INTEGER NOT NULL, resource_version INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS one_active_rollout ON rollouts (endpoint) WHERE active = 1;
CREATE TABLE IF NOT EXISTS audit (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, time_ms INTEGER NOT NULL, endpoint TEXT NOT NULL, rollout TEXT NOT NULL,
    actor TEXT NOT NULL, reason TEXT NOT NULL, verb TEXT NOT NULL,
    before TEXT NOT NULL, after TEXT NOT NULL, evidence TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS audit_by_endpoint ON audit (endpoint, seq);
CREATE TABLE IF NOT EXISTS sums (rollout TEXT PRIMARY KEY, packed BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS audit_basis (seq INTEGER PRIMARY KEY, packed BLOB NOT NULL) STRICT;
CREATE TRIGGER IF NOT EXISTS audit_keeps BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
CREATE TRIGGER IF NOT EXISTS audit_stays BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
CREATE TRIGGER IF NOT EXISTS basis_keeps BEFORE UPDATE ON audit_basis
    BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
CREATE TRIGGER IF NOT EXISTS basis_stays BEFORE DELETE ON audit_basis
    BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
"""


class SqliteControlStore(ControlStore):
    """Control store in the file `control.db`.

    The leader on one machine holds a lock on a file (`serving.state.leader`), so there is no fencing token to check.

    Args:
        path: of the database; created with its folder where it does not exist, unless `identity` knows of one.
        identity: that the home knows; None: whatever is there is the state.

    Raises:
        InvalidInput: a newer Baton wrote it. NotReady: it cannot be opened now.
    """

    def __init__(self, path: Path, identity: HomeIdentity | None = None) -> None:
        super().__init__()
        self._path, self._identity = path, identity
        self._what = f"state {path}"
        self._lock = ProcessLock(self._what)
        self._db: sqlite3.Connection | None = None
        self._file, self._opened, self._is_ours = (0, 0), 0, identity is None
        if identity is not None and identity.known and not path.exists():
            return  # an empty one would pass for the state; every call says so until it is back
        with writing(path), asking(self._what):
            if not path.exists():  # whoever is killed now leaves no database without its tables
                with creating(path) as staging, closing(sqlite3.connect(staging, isolation_level=None)) as db:
                    db.executescript("PRAGMA synchronous=OFF; BEGIN;" + _SCHEMA + "COMMIT;")
            clear_staging(path)
            db = self._connect()
            self._check_format(db)
            db.executescript("BEGIN IMMEDIATE;" + _SCHEMA + "COMMIT;")
            if identity is not None and not identity.known:
                identity.adopt(self.identify())

    def _check_format(self, db: sqlite3.Connection) -> None:
        (found,) = db.execute("PRAGMA user_version").fetchone()
        if found > FORMAT_VERSION:
            db.close()
            raise InvalidInput(
                f"{self._path} was written by a newer Baton (format {found}; this one knows {FORMAT_VERSION}): install that "
                "version again, or bring back a backup that this version has written",
                "home",
            )
        if found < FORMAT_VERSION:
            # The disk is full, or another process writes: the next one notes it.
            with suppress(sqlite3.OperationalError):
                db.execute(f"PRAGMA user_version = {FORMAT_VERSION}")

    def identify(self) -> str:
        """The identity of the file, given to it now where it has none."""
        with self._lock, asking(self._what):
            db = self._db or self._connect()
            row = json.dumps({"id": new_identity()})
            db.execute("INSERT OR IGNORE INTO settings VALUES (?, ?)", (_IDENTITY, row))
            return self._identity_of(db)

    def _connect(self) -> sqlite3.Connection:
        found = os.stat(self._path)
        db = sqlite3.connect(self._path, timeout=10.0, isolation_level=None, check_same_thread=False)
        self._db, self._file = db, (found.st_dev, found.st_ino)
        self._opened += 1
        # Turning the write-ahead log on needs an exclusive lock, for which SQLite does not wait as for other locks.
        for attempt in range(_OPEN_TRIES):
            try:
                db.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError:
                if attempt == _OPEN_TRIES - 1:
                    raise
                time.sleep(0.02)
        db.execute("PRAGMA synchronous = FULL")
        return db

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Context with the connection to the file that has the name now, which must be the state that the home knows."""
        with self._lock, asking(self._what):
            if self._identity is None:
                assert self._db is not None
                yield self._db
                return
            try:
                found = os.stat(self._path)
            except FileNotFoundError:
                self._is_ours = False
                raise StateLost(
                    f"{self._what} is gone: it was removed, or its disk was. Lanes go on with what they know. Bring it "
                    "back: baton state restore",
                    "gone",
                ) from None
            if self._db is None or self._file != (found.st_dev, found.st_ino):
                if self._db is not None:
                    self._db.close()
                self._db, self._is_ours = None, False
                self._connect()
            assert self._db is not None
            if not self._is_ours:
                self._identity.check(self._identity_of(self._db), self._what)
                self._is_ours = True
            yield self._db

    @staticmethod
    def _identity_of(db: sqlite3.Connection) -> str:
        row = db.execute("SELECT body FROM settings WHERE name = ?", (_IDENTITY,)).fetchone()
        return "" if row is None else str(json.loads(row[0]).get("id", ""))

    def close(self) -> None:
        with self._lock:
            if self._db is not None:
                self._db.close()

    def data_version(self) -> int:
        with self._open() as db:
            (others,) = db.execute("PRAGMA data_version").fetchone()
            return int(others) + db.total_changes + (self._opened << _OPENED_BITS)

    def endpoints(self) -> dict[str, Endpoint]:
        with self._open() as db:
            rows = db.execute("SELECT name, body FROM endpoints ORDER BY name").fetchall()
        return {name: Endpoint.model_validate_json(body) for name, body in rows}

    def find_endpoint(self, name: str) -> Endpoint | None:
        with self._open() as db:
            return _Transaction(db).endpoint(name)

    def rollouts(self, *, active: bool = False, endpoint: str = "") -> list[StoredRollout]:
        with self._open() as db:
            rows = db.execute(
                "SELECT id, spec, state, created_ms, resource_version, status FROM rollouts "
                f"WHERE {'active = 1 AND ' if active else ''}(?1 = '' OR endpoint = ?1) ORDER BY created_ms, rowid",
                (endpoint,),
            ).fetchall()
        return [_rollout(row) for row in rows]

    def find_rollout(self, name: str) -> StoredRollout | None:
        with self._open() as db:
            row = db.execute(
                "SELECT id, spec, state, created_ms, resource_version, status FROM rollouts "
                "WHERE id = ?1 OR endpoint = ?1 ORDER BY id = ?1 DESC, active DESC, created_ms DESC, rowid DESC LIMIT 1",
                (name,),
            ).fetchone()
        return None if row is None else _rollout(row)

    def audit(self, endpoint: str = "", after: int = 0, limit: int = 1000) -> list[AuditEntry]:
        return self._entries("seq > ?1", after, endpoint, "ASC", limit)

    def latest_audit(self, endpoint: str = "", before: int | None = None, limit: int = 1000) -> list[AuditEntry]:
        return self._entries("(?1 IS NULL OR seq < ?1)", before, endpoint, "DESC", limit)

    def _entries(self, where: str, seq: int | None, endpoint: str, order: str, limit: int) -> list[AuditEntry]:
        with self._open() as db:
            rows = db.execute(
                f"SELECT * FROM audit WHERE {where} AND (?2 = '' OR endpoint = ?2) ORDER BY seq {order} LIMIT ?3",
                (seq, endpoint, limit),
            ).fetchall()
        return [AuditEntry(*row[:7], *(json.loads(text) for text in row[7:])) for row in rows]

    def sums(self, rollout: str) -> bytes | None:
        return self._packed("SELECT packed FROM sums WHERE rollout = ?", rollout)

    def audit_basis(self, seq: int) -> bytes | None:
        return self._packed("SELECT packed FROM audit_basis WHERE seq = ?", seq)

    def _packed(self, query: str, key: str | int) -> bytes | None:
        with self._open() as db:
            row = db.execute(query, (key,)).fetchone()
        return None if row is None else bytes(row[0])

    def setting(self, name: str) -> dict[str, Any]:
        with self._open() as db:
            row = db.execute("SELECT body FROM settings WHERE name = ?", (name,)).fetchone()
        return {} if row is None else dict(json.loads(row[0]))

    def transact(self, change: Callable[[Transaction], T]) -> T:
        with self._open() as db, transaction(db, "BEGIN IMMEDIATE", "COMMIT", self._what):
            return change(_Transaction(db))

    def document(self, *, whole: bool = False) -> StateDocument:
        with self._open() as db, transaction(db, "BEGIN", "COMMIT", self._what):
            (version,) = db.execute("SELECT coalesce(max(seq), 0) FROM audit").fetchone()
            made = StateDocument(
                identity=self._identity_of(db),
                version=int(version),
                endpoints=self.endpoints(),
                rollouts=[replaced(stored, status={}) for stored in self.rollouts(active=not whole)],
                settings={
                    name: json.loads(body)
                    for name, body in db.execute("SELECT name, body FROM settings WHERE name <> ?", (_IDENTITY,))
                },
                audit_seq=int(version),
            )
            if not whole:
                return made
            return replaced(
                made,
                audit=self.audit(limit=-1),
                sums=dict(db.execute("SELECT rollout, packed FROM sums")),
                bases=dict(db.execute("SELECT seq, packed FROM audit_basis")),
            )

    def fill(self, document: StateDocument, who: Who, evidence: Mapping[str, Any], *, replace: bool = False) -> None:
        self._refuse_fill(document, replace)
        with self._lock, writing(self._path), asking(self._what):
            if self._db is not None:
                self._db.close()
            self._db = None
            for end in ("", "-wal", "-shm"):
                old = self._path.with_name(f"{self._path.name}{end}")
                if old.exists():
                    os.rename(old, old.with_name(f"{self._path.name}.replaced-{who.time_ms}{end}"))
            with creating(self._path) as staging:
                with closing(sqlite3.connect(staging, isolation_level=None)) as db:
                    db.executescript(_SCHEMA + f"PRAGMA user_version = {FORMAT_VERSION}; BEGIN;")
                    tx = _Transaction(db)
                    for endpoint in document.endpoints.values():
                        tx.put_endpoint(endpoint)
                    for stored in sorted(document.rollouts, key=lambda kept: kept.state.active):
                        tx.insert_rollout(stored)
                        tx.update_rollout(stored)
                    for name, body in document.settings.items():
                        tx.put_setting(name, body)
                    tx.put_setting(_IDENTITY, {"id": document.identity})
                    for name, packed in document.sums.items():
                        tx.put_sums(name, packed)
                    for entry in (*document.audit, self.restored_entry(document, who, evidence)):
                        tx.append_audit(entry, document.bases.get(entry.seq), seq=entry.seq)
                    db.execute("COMMIT")
                sync(staging)

    def _refuse_fill(self, document: StateDocument, replace: bool) -> None:
        """Raises: Conflict: it is the state already, or another's."""
        try:
            with self._open() as db:
                found = self._identity_of(db)
        except StateLost as lost:
            found = lost.found
        if found == document.identity:
            raise Conflict(f"{self._what} is there and is this home's: there is nothing to restore")
        if found and not replace:
            raise Conflict(
                f"{self._what} is another's, {shown_identity(found)}: --replace moves it aside, `baton state adopt` follows it"
            )


def endpoint_names(path: Path) -> list[str]:
    """Names of the endpoints in `control.db`, read without writing or waiting; empty where that fails."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=0.5)) as db:
            return [name for (name,) in db.execute("SELECT name FROM endpoints ORDER BY name")]
    except sqlite3.Error:
        return []


class _Transaction:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def endpoint(self, name: str) -> Endpoint | None:
        row = self._db.execute("SELECT body FROM endpoints WHERE name = ?", (name,)).fetchone()
        return Endpoint.model_validate_json(row[0]) if row else None

    def owner(self, endpoint: str) -> str | None:
        row = self._db.execute("SELECT id FROM rollouts WHERE endpoint = ? AND active = 1", (endpoint,)).fetchone()
        return str(row[0]) if row else None

    def rollout_version(self, rollout: str) -> int | None:
        row = self._db.execute("SELECT resource_version FROM rollouts WHERE id = ?", (rollout,)).fetchone()
        return int(row[0]) if row else None

    def put_endpoint(self, endpoint: Endpoint) -> None:
        self._db.execute(
            "INSERT INTO endpoints VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET "
            "body = excluded.body, resource_version = excluded.resource_version",
            (endpoint.name, endpoint.model_dump_json(), endpoint.resource_version),
        )

    def insert_rollout(self, made: StoredRollout) -> None:
        self._db.execute(
            "INSERT INTO rollouts VALUES (?, ?, ?, ?, '{}', 1, ?, ?)",
            (
                made.id,
                made.spec.endpoint,
                made.spec.model_dump_json(),
                json.dumps(made.state.to_json()),
                made.created_ms,
                made.resource_version,
            ),
        )

    def update_rollout(self, saved: StoredRollout) -> None:
        self._db.execute(
            "UPDATE rollouts SET state = ?, active = ?, resource_version = ? WHERE id = ?",
            (json.dumps(saved.state.to_json()), int(saved.state.active), saved.resource_version, saved.id),
        )

    def put_status(self, rollout: str, status: Mapping[str, Any]) -> None:
        self._db.execute("UPDATE rollouts SET status = ? WHERE id = ?", (json.dumps(status), rollout))

    def put_sums(self, rollout: str, packed: bytes) -> None:
        self._db.execute("INSERT OR REPLACE INTO sums VALUES (?, ?)", (rollout, packed))

    def put_setting(self, name: str, body: Mapping[str, Any]) -> None:
        self._db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, json.dumps(body)))

    def append_audit(self, entry: AuditEntry, basis: bytes | None = None, *, seq: int | None = None) -> None:
        done = self._db.execute(
            "INSERT INTO audit (seq, time_ms, endpoint, rollout, actor, reason, verb, before, after, evidence) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                seq, entry.time_ms, entry.endpoint, entry.rollout, entry.actor, entry.reason, entry.verb,
                json.dumps(entry.before), json.dumps(entry.after), json.dumps(entry.evidence),
            ),
        )  # fmt: skip
        if basis is not None:
            self._db.execute("INSERT INTO audit_basis VALUES (?, ?)", (done.lastrowid, basis))


def _rollout(row: tuple[Any, ...]) -> StoredRollout:
    name, spec, state, created_ms, version, status = row
    return StoredRollout(
        id=name,
        spec=Rollout.model_validate_json(spec),
        state=RolloutState.from_json(json.loads(state)),
        created_ms=created_ms,
        resource_version=version,
        status=json.loads(status),
    )

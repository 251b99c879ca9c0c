"""Endpoints, rollouts and the audit in one SQLite file: every change and its audit entry are one transaction.

Written by the control process, polled by the lanes (`data_version` is one cheap call). A writer says which resource
version it looked at; if that is not the stored one any more it is told so and nothing is written. The audit can only
grow: the database itself refuses to change or delete an entry.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.errors import Conflict, NotFound, StaleVersion
from serving.rollout.spec import Rollout
from serving.rollout.state import RolloutState
from serving.routing import Endpoint

__all__ = ["AuditEntry", "ControlStore", "StoredRollout", "Who"]

_OPEN_TRIES = 50
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
CREATE TRIGGER IF NOT EXISTS audit_keeps BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
CREATE TRIGGER IF NOT EXISTS audit_stays BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
"""


@dataclass(frozen=True, slots=True)
class Who:
    """Who changes something, why and when (Unix milliseconds)."""

    actor: str
    reason: str
    time_ms: int


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One change: `before` and `after` are the endpoint's and the rollout's state around it."""

    seq: int
    time_ms: int
    endpoint: str
    rollout: str
    actor: str
    reason: str
    verb: str
    before: dict[str, Any]
    after: dict[str, Any]
    evidence: dict[str, Any]


@dataclass(frozen=True, slots=True)
class StoredRollout:
    """A rollout as stored. `status` says why it waits; it is display, not state, and not audited."""

    id: str
    spec: Rollout
    state: RolloutState
    created_ms: int
    resource_version: int
    status: dict[str, Any] = field(default_factory=dict)


class ControlStore:
    """The file `control.db`. Safe for several threads and processes.

    Args:
        path: of the database; made with its folder if it is not there.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path, timeout=10.0, isolation_level=None, check_same_thread=False)
        self._write_ahead()
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript("BEGIN IMMEDIATE;" + _SCHEMA + "COMMIT;")

    def _write_ahead(self) -> None:
        # Turning the log on needs the file alone, and SQLite does not wait for that as it waits for other locks.
        for attempt in range(_OPEN_TRIES):
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError:
                if attempt == _OPEN_TRIES - 1:
                    raise
                time.sleep(0.02)

    def close(self) -> None:
        """Release the file."""
        with self._lock:
            self._db.close()

    def data_version(self) -> int:
        """A number that changes whenever anything was written, by whichever process; a few microseconds."""
        with self._lock:
            (others,) = self._db.execute("PRAGMA data_version").fetchone()
            return int(others) + self._db.total_changes

    # Endpoints

    def endpoints(self) -> dict[str, Endpoint]:
        """All endpoints by name."""
        with self._lock:
            rows = self._db.execute("SELECT name, body FROM endpoints ORDER BY name").fetchall()
        return {name: Endpoint.model_validate_json(body) for name, body in rows}

    def endpoint(self, name: str) -> Endpoint:
        """One endpoint.

        Raises:
            NotFound: there is none of that name.
        """
        with self._lock:
            row = self._db.execute("SELECT body FROM endpoints WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise NotFound(f"endpoint {name!r} is not known")
        return Endpoint.model_validate_json(row[0])

    def put_endpoint(
        self, endpoint: Endpoint, who: Who, expected: int | None = None, verb: str = "set_endpoint"
    ) -> Endpoint:
        """Create or replace an endpoint; the stored one (with its new resource version) comes back.

        Args:
            expected: resource version that the writer looked at, 0 for "must not exist", None for whatever is there.

        Raises:
            StaleVersion: the stored one is another.
            Conflict: a rollout owns the endpoint, and the change touches its arms or weight.
        """
        with self._write():
            stored = self._endpoint_row(endpoint.name)
            version = stored.resource_version if stored else 0
            if expected is not None and expected != version:
                raise StaleVersion(
                    f"endpoint {endpoint.name!r} is at resource version {version}, not {expected}; read it again"
                )
            if stored is not None and self._owned(endpoint.name) and _routes(stored) != _routes(endpoint):
                raise Conflict(
                    f"a rollout owns the arms and the weight of {endpoint.name!r}; use its verbs or abort it"
                )
            saved = self._put(endpoint, version)
            before = stored.model_dump() if stored else {}
            self._audit(endpoint.name, "", who, verb, {"endpoint": before}, {"endpoint": saved.model_dump()}, {})
        return saved

    # Rollouts

    def start_rollout(self, spec: Rollout, state: RolloutState, endpoint: Endpoint, who: Who) -> StoredRollout:
        """Store a new rollout and the endpoint that goes with it.

        Raises:
            Conflict: the endpoint has an active rollout.
            StaleVersion: the endpoint changed since it was read.
        """
        made = StoredRollout(f"{spec.endpoint}-{secrets.token_hex(4)}", spec, state, who.time_ms, 1)
        with self._write():
            if self._owned(spec.endpoint):
                raise Conflict(f"endpoint {spec.endpoint!r} has an active rollout; abort it or wait for its end")
            before = self._fresh(endpoint)
            self._db.execute(
                "INSERT INTO rollouts VALUES (?, ?, ?, ?, '{}', 1, ?, 1)",
                (made.id, spec.endpoint, spec.model_dump_json(), json.dumps(state.to_json()), who.time_ms),
            )
            saved = self._put(endpoint, endpoint.resource_version)
            after = {"endpoint": saved.model_dump(), "state": brief(state), "spec": spec.model_dump(mode="json")}
            self._audit(spec.endpoint, made.id, who, "start", {"endpoint": before.model_dump()}, after, {})
        return made

    def save_rollout(
        self,
        stored: StoredRollout,
        state: RolloutState,
        endpoint: Endpoint,
        who: Who,
        verb: str,
        evidence: Mapping[str, Any] | None = None,
    ) -> StoredRollout:
        """Store a rollout's next state, its endpoint and the audit entry, all or nothing.

        Args:
            stored: as it was read; its resource version must still be the stored one.
            endpoint: with the resource version that was read.

        Raises:
            StaleVersion: one of the two changed since it was read.
        """
        saved = replace(stored, state=state, resource_version=stored.resource_version + 1)
        with self._write():
            before = self._fresh(endpoint)
            changed = self._db.execute(
                "UPDATE rollouts SET state = ?, active = ?, resource_version = ? WHERE id = ? AND resource_version = ?",
                (
                    json.dumps(state.to_json()),
                    int(state.active),
                    saved.resource_version,
                    stored.id,
                    stored.resource_version,
                ),
            ).rowcount
            if not changed:
                raise StaleVersion(
                    f"rollout {stored.id!r} is not at resource version {stored.resource_version} any more"
                )
            after = endpoint
            if _body(before) != _body(endpoint):
                after = self._put(endpoint, endpoint.resource_version)
            self._audit(
                endpoint.name,
                stored.id,
                who,
                verb,
                {"endpoint": before.model_dump(), "state": brief(stored.state)},
                {"endpoint": after.model_dump(), "state": brief(state)},
                evidence or {},
            )
        return saved

    def put_status(self, rollout: str, status: Mapping[str, Any]) -> None:
        """Say why a rollout waits and when it looks next."""
        with self._write():
            self._db.execute("UPDATE rollouts SET status = ? WHERE id = ?", (json.dumps(status), rollout))

    def rollouts(self, *, active: bool = False, endpoint: str = "") -> list[StoredRollout]:
        """Rollouts in the order of their start; `active` ones only, of one `endpoint` only."""
        with self._lock:
            rows = self._db.execute(
                "SELECT id, spec, state, created_ms, resource_version, status FROM rollouts "
                "WHERE active >= ? AND (? = '' OR endpoint = ?) ORDER BY created_ms, rowid",
                (int(active), endpoint, endpoint),
            ).fetchall()
        return [_rollout(row) for row in rows]

    def rollout(self, name: str) -> StoredRollout:
        """A rollout by id, or the newest one of the endpoint of that name.

        Raises:
            NotFound: there is none.
        """
        with self._lock:
            row = self._db.execute(
                "SELECT id, spec, state, created_ms, resource_version, status FROM rollouts "
                "WHERE id = ?1 OR endpoint = ?1 ORDER BY id = ?1 DESC, active DESC, created_ms DESC, rowid DESC LIMIT 1",
                (name,),
            ).fetchone()
        if row is None:
            raise NotFound(f"no rollout and no endpoint with a rollout is called {name!r}")
        return _rollout(row)

    # Audit

    def audit(self, endpoint: str = "", after: int = 0, limit: int = 1000) -> list[AuditEntry]:
        """Entries with seq > after, oldest first."""
        with self._lock:
            rows = self._db.execute(
                "SELECT * FROM audit WHERE seq > ? AND (? = '' OR endpoint = ?) ORDER BY seq LIMIT ?",
                (after, endpoint, endpoint, limit),
            ).fetchall()
        return [AuditEntry(*row[:7], *(json.loads(text) for text in row[7:])) for row in rows]

    def note(self, verb: str, who: Who, after: Mapping[str, Any]) -> None:
        """An entry about what is neither an endpoint nor a rollout: who may enter, say."""
        with self._write():
            self._audit("", "", who, verb, {}, after, {})

    def audit_entry(self, seq: int) -> AuditEntry:
        """One entry.

        Raises:
            NotFound: there is none of that number.
        """
        found = self.audit(after=seq - 1, limit=1)
        if not found or found[0].seq != seq:
            raise NotFound(f"the audit has no entry {seq}")
        return found[0]

    @contextmanager
    def _write(self) -> Iterator[None]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise

    def _endpoint_row(self, name: str) -> Endpoint | None:
        row = self._db.execute("SELECT body FROM endpoints WHERE name = ?", (name,)).fetchone()
        return Endpoint.model_validate_json(row[0]) if row else None

    def _fresh(self, endpoint: Endpoint) -> Endpoint:
        stored = self._endpoint_row(endpoint.name)
        if stored is None:
            raise NotFound(f"endpoint {endpoint.name!r} is not known")
        if stored.resource_version != endpoint.resource_version:
            raise StaleVersion(
                f"endpoint {endpoint.name!r} is at resource version {stored.resource_version}, "
                f"not {endpoint.resource_version}; read it again"
            )
        return stored

    def _put(self, endpoint: Endpoint, version: int) -> Endpoint:
        # Validated again: model_copy(update=...) of a caller checks nothing.
        saved = Endpoint.model_validate({**endpoint.model_dump(), "resource_version": version + 1})
        self._db.execute(
            "INSERT INTO endpoints VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET "
            "body = excluded.body, resource_version = excluded.resource_version",
            (saved.name, saved.model_dump_json(), saved.resource_version),
        )
        return saved

    def _owned(self, endpoint: str) -> bool:
        return (
            self._db.execute("SELECT 1 FROM rollouts WHERE endpoint = ? AND active = 1", (endpoint,)).fetchone()
            is not None
        )

    def _audit(
        self,
        endpoint: str,
        rollout: str,
        who: Who,
        verb: str,
        before: Mapping[str, Any],
        after: Mapping[str, Any],
        evidence: Mapping[str, Any],
    ) -> None:
        self._db.execute(
            "INSERT INTO audit (time_ms, endpoint, rollout, actor, reason, verb, before, after, evidence) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                who.time_ms, endpoint, rollout, who.actor, who.reason, verb,
                json.dumps(before), json.dumps(after), json.dumps(evidence),
            ),
        )  # fmt: skip


def brief(state: RolloutState) -> dict[str, Any]:
    """A state without its history."""
    told = state.to_json()
    del told["marks"]
    return told


def _routes(endpoint: Endpoint) -> tuple[Any, ...]:
    return endpoint.stable, endpoint.candidate, endpoint.weight, endpoint.salt, endpoint.holdout


def _body(endpoint: Endpoint) -> dict[str, Any]:
    return endpoint.model_dump(exclude={"resource_version"})


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

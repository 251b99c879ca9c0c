"""Idempotency keys: a mutating call that is sent twice with one key happens once, and both get the first answer.

A key is written down before the verb runs and its answer after it, in `control.db`, so that a caller who lost the answer
to a crash may ask again. Where the crash fell between the two nobody knows what happened, and the second call is told so
instead of doing it again. Refused calls changed nothing: their keys are free again.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pipeline.clock import Clock
from pipeline.errors import Conflict, InvalidInput
from serving.admin.answers import Answer
from serving.admin.requests import Request

__all__ = ["Once"]

A = TypeVar("A", bound=Answer)
KEPT = 1000
KEPT_MS = 24 * 3600 * 1000
_KEY = re.compile(r"[!-~]{1,200}")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    caller TEXT NOT NULL, key TEXT NOT NULL, digest TEXT NOT NULL, answer TEXT, time_ms INTEGER NOT NULL,
    PRIMARY KEY (caller, key)
) STRICT;
"""


class Once:
    """The keys of the last 24 hours, the newest 1,000 at most. Safe for several threads of one process.

    Args:
        path: `control.db`.
    """

    def __init__(self, path: Path, clock: Clock, *, kept: int = KEPT, kept_ms: int = KEPT_MS) -> None:
        self._clock = clock
        self._kept = kept
        self._kept_ms = kept_ms
        self._lock = threading.Lock()
        self._running: set[tuple[str, str]] = set()
        self._db = sqlite3.connect(path, timeout=10.0, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript(_SCHEMA)

    def run(self, caller: str, key: str, verb: str, request: Request, answer: type[A], act: Callable[[], A]) -> A:
        """Do it, or give the answer of the time that it was done.

        Args:
            caller: whose key it is; two callers' keys are two.
            act: what is to be done once.

        Raises:
            InvalidInput: no such key can be, or it was used for another request.
            Conflict: the first call with this key is still under way, or was cut off. And whatever `act` raises.
        """
        if not _KEY.fullmatch(key):
            raise InvalidInput("idempotency-key: use 1 to 200 printable ASCII characters", "idempotency-key")
        digest = hashlib.sha256(f"{verb} {request.model_dump_json()}".encode()).hexdigest()
        told = self._begin(caller, key, digest)
        if told is not None:
            return answer.model_validate_json(told)
        try:
            done = act()
        except BaseException:
            self._write("DELETE FROM answers WHERE caller = ? AND key = ?", caller, key)
            raise
        else:
            text = done.model_dump_json()
            self._write("UPDATE answers SET answer = ? WHERE caller = ? AND key = ?", text, caller, key)
            return done
        finally:
            with self._lock:
                self._running.discard((caller, key))

    def close(self) -> None:
        """Release the file."""
        with self._lock:
            self._db.close()

    def _begin(self, caller: str, key: str, digest: str) -> str | None:
        """The answer that there is; None: it is to be found, and the key is taken."""
        with self._lock:
            row = self._db.execute(
                "SELECT digest, answer FROM answers WHERE caller = ? AND key = ? AND time_ms > ?",
                (caller, key, self._clock.wall_ms() - self._kept_ms),
            ).fetchone()
            if row is not None:
                return self._known(caller, key, digest, *row)
            now = self._clock.wall_ms()
            self._db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, NULL, ?)", (caller, key, digest, now))
            self._db.execute(
                "DELETE FROM answers WHERE time_ms <= ? OR rowid IN "
                "(SELECT rowid FROM answers ORDER BY time_ms DESC, rowid DESC LIMIT -1 OFFSET ?)",
                (now - self._kept_ms, self._kept),
            )
            self._running.add((caller, key))
        return None

    def _known(self, caller: str, key: str, digest: str, stored: str, answer: str | None) -> str:
        if stored != digest:
            raise InvalidInput(
                f"idempotency-key {key!r} was used for another request; use a new key", "idempotency-key"
            )
        if answer is not None:
            return answer
        if (caller, key) in self._running:
            raise Conflict(f"the first call with idempotency-key {key!r} is still under way; ask again in a moment")
        raise Conflict(
            f"the first call with idempotency-key {key!r} was cut off and may have been carried out; "
            "look at what is there, then use a new key"
        )

    def _write(self, statement: str, *values: str) -> None:
        with self._lock:
            self._db.execute(statement, values)

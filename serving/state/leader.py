"""Leader election between control processes that share one state. The leader acts; the others answer and stand by.

On one machine by a lock on a file, which the kernel releases when its holder dies. Between machines by a lease with
fencing tokens: `serving.state.redis.leader`.
"""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO, Protocol

__all__ = ["FileLead", "Lead"]


class Lead(Protocol):
    """Leader election as one thread of one process sees it."""

    @property
    def token(self) -> int | None:
        """Fencing token that the store checks writes against; None where no other process can take the lead while we live."""

    def hold(self) -> bool:
        """Take or keep the lead; whether this process has it. Call it at least every second, and before acting."""

    def holder(self) -> str:
        """Name of the leader, for operators; "": none is known."""

    def release(self) -> None:
        """Give the lead up, so that another process can take it at once."""


class FileLead:
    """Leader election between processes of one machine, by a lock on a file."""

    token: int | None = None

    def __init__(self, path: Path, owner: str) -> None:
        self._path = path
        self._owner = owner
        self._file: IO[str] | None = None

    def hold(self) -> bool:
        if self._file is not None:
            return True
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = open(self._path, "a+")  # noqa: SIM115  kept open for as long as we lead
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        file.truncate(0)
        file.write(self._owner)
        file.flush()
        self._file = file
        return True

    def holder(self) -> str:
        try:
            return self._path.read_text()
        except OSError:
            return ""

    def release(self) -> None:
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
            self._file = None

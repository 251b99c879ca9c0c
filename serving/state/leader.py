"""Which control process acts: of all that share one state, the one that has the lead. The others stand by and answer.

On one machine the lead is a lock on a file, which the kernel takes back when its holder dies. Among several it is a
lease with a token: `serving.state.redis.leader`.
"""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO, Protocol

from pipeline.errors import NotReady

__all__ = ["FileLead", "Lead", "LeadLost"]


class LeadLost(NotReady):
    """A write by a process that has the lead no more."""


class Lead(Protocol):
    """The lead, for one thread of one process."""

    @property
    def token(self) -> int | None:
        """What the store checks writes against; None where nobody can have taken the lead from us alive."""

    def hold(self) -> bool:
        """Take it or keep it; whether we have it. Call it at least every second, and before acting."""

    def holder(self) -> str:
        """Who has it, for operators; "" where nobody is known to."""

    def release(self) -> None:
        """Let another have it at once."""


class FileLead:
    """The lead among processes of one machine: a lock on a file."""

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

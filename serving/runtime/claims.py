"""Claims: locks on files that name their holder, so that one process at a time has a home, a role or a port.

The kernel holds a lock (flock) and drops it when its holder ends, however that ends. The name in the file counts only
while the lock is held, so a file that is left over is harmless. Claims of ports: `serving.runtime.ports`.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from pipeline.errors import Conflict, NotReady

__all__ = [
    "SERVE",
    "SPARE",
    "Claim",
    "Holder",
    "alone_in",
    "holder_of",
    "holders",
    "process_of",
    "role_lock",
    "role_on",
    "spelled",
    "supervisors",
    "using",
]

SERVE = "serve"
"""Role of the supervisor of `baton serve`."""
SPARE = ".spare"
"""Ending of the role of a process that began beside another one of its name, to follow it."""
PATIENCE_S = 0.3
"""Time for which a claim waits for a lock that somebody only looks at."""
RETRY_S = 0.02
UNNAMED = "another process"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Process that holds a claim. `role`: its name on its home; `since_ms`: Unix time of the claim; `host`: of a port."""

    pid: int
    command: str
    role: str
    home: str
    since_ms: int
    host: str = ""

    @classmethod
    def here(cls, home: Path, role: str, host: str = "") -> Holder:
        """This process, now."""
        return cls(
            pid=os.getpid(),
            command=spelled(sys.argv),
            role=role,
            home=str(home.resolve()),
            since_ms=time.time_ns() // 1_000_000,
            host=host,
        )

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"`{self.command}` (pid {self.pid}, since {since}, home {self.home})"


class Claim:
    """Lock on a file, held from `take` to `release` or to the end of the process.

    Args:
        file: locked, and kept open for as long as the claim lasts.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    @classmethod
    def take(cls, path: Path, what: str, holder: Holder | None = None, *, patience_s: float = PATIENCE_S) -> Claim:
        """Claim `path`.

        Args:
            what: is claimed, for the message.
            holder: written into the file; None: the claim is shared with others that name none.
            patience_s: longest wait for the present holder.

        Raises:
            Conflict: somebody else holds it; the message names it. NotReady: the file cannot be opened.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - open for as long as the claim lasts
        except OSError as error:
            raise NotReady(f"{path} cannot be locked: {error.strerror}") from error
        deadline = time.monotonic() + patience_s
        kind = fcntl.LOCK_SH if holder is None else fcntl.LOCK_EX
        while not _locked(file, kind):
            if time.monotonic() >= deadline:
                file.close()
                raise Conflict(f"{what} is in use by {holder_of(path) or UNNAMED}; end that one first")
            time.sleep(RETRY_S)
        if holder is not None:
            with suppress(OSError):  # on a full disk the holder has no name, and the lock holds all the same
                file.truncate(0)
                file.write(json.dumps(asdict(holder)))
                file.flush()
        return cls(file)

    def release(self) -> None:
        """Give it up. A second call does nothing."""
        with suppress(OSError):
            self._file.close()


def holder_of(path: Path) -> Holder | None:
    """Present holder of a claim; None where nobody holds it. One that left no name has pid 0."""
    try:
        with open(path, encoding="utf-8") as file:
            if _locked(file, fcntl.LOCK_SH):
                return None
            text = file.read()
    except OSError:
        return None
    try:
        return Holder(**json.loads(text))
    except (ValueError, TypeError):
        return Holder(pid=0, command=UNNAMED, role=path.stem, home="", since_ms=0)


def supervisors(home: Path) -> list[Holder]:
    """All supervisors that work on a home."""
    return _present(path for path in sorted((home / "run").glob("*.lock")) if path != _use(home))


def holders(home: Path) -> list[Holder]:
    """All supervisors and processes that work on a home."""
    return [*supervisors(home), *_present(sorted(role_lock(home, "*").parent.glob("*.lock")))]


def role_lock(home: Path, role: str) -> Path:
    """File of the claim of a role on a home."""
    return home / "run" / "locks" / f"{role}.lock"


def process_of(home: Path, name: str) -> Holder | None:
    """Process of a name that works on a home; None where none does. Of two, one of which follows the other, either."""
    return holder_of(role_lock(home, name)) or holder_of(role_lock(home, name + SPARE))


@contextmanager
def using(home: Path) -> Iterator[None]:
    """Keep others from replacing the home (`alone_in`) while it lasts.

    Raises:
        Conflict: it is being replaced.
    """
    claim = Claim.take(_use(home), f"home {home}")
    try:
        yield
    finally:
        claim.release()


@contextmanager
def alone_in(home: Path, role: str) -> Iterator[None]:
    """Keep every other process out of a home while it lasts.

    Raises:
        Conflict: a process works on it; the message names it.
    """
    present = holders(home)
    if present:
        raise Conflict(f"home {home} is in use by {', '.join(map(str, present))}; end that first")
    claim = Claim.take(_use(home), f"home {home}", Holder.here(home, role))
    try:
        yield
    finally:
        claim.release()


@contextmanager
def role_on(home: Path, role: str, *, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Be the one process of this role (`lane-0`, `control`, `worker`, ...) on a home while it lasts.

    Args:
        patience_s: longest wait for a predecessor that is ending.

    Raises:
        Conflict: another process has the role; the message names it.
    """
    path = role_lock(home, role)
    with ExitStack() as stack:
        stack.enter_context(using(home))
        before = holder_of(path)
        if before is not None and patience_s > PATIENCE_S:
            log.warning("%s waits until another one has ended: %s", role, before)
        claim = Claim.take(path, f"{role} of home {home}", Holder.here(home, role), patience_s=patience_s)
        stack.callback(claim.release)
        yield


def spelled(argv: Sequence[str]) -> str:
    """Command line as a person would type it.

    >>> spelled(["/opt/venv/bin/baton", "worker", "--config", "baton.yaml"])
    'baton worker --config baton.yaml'
    """
    program = Path(argv[0]).name if argv else "python"
    return " ".join(["baton" if program == "main.py" else program, *argv[1:]])


def _present(paths: Iterable[Path]) -> list[Holder]:
    return [holder for path in paths if (holder := holder_of(path)) is not None]


def _use(home: Path) -> Path:
    return home / "run" / "use.lock"


def _locked(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

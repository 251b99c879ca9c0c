"""Endings: why a process ended, in words of the cause, in a file for its supervisor, `baton status` and `baton doctor`.

A supervisor starts a process that cannot start again and again. Its reason is logged when it is new, not at each try.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.disk import replacing
from pipeline.errors import BatonError

__all__ = ["ENDING", "Ending", "ending", "ending_path", "note_ending", "read_ending"]

ENDING = "BATON_ENDING"
"""Environment variable with the file of a supervisor's child."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """End of a process by an error. `time_ms`: Unix time."""

    pid: int
    time_ms: int
    reason: str


def ending_path(home: Path, process: str) -> Path:
    """File of a process's last ending by an error."""
    return home / "run" / "endings" / f"{process}.json"


def read_ending(path: Path) -> Ending | None:
    """Last ending by an error; None where there is none."""
    try:
        return Ending(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def note_ending(reason: str, path: Path | None = None) -> bool:
    """Write why this process ends; whether the reason is new. `path`: by default the one that the supervisor named."""
    named = path or os.environ.get(ENDING)
    if not named:
        return True
    last = read_ending(Path(named))
    now = Ending(pid=os.getpid(), time_ms=time.time_ns() // 1_000_000, reason=reason)
    # On a full disk the reason is in the log alone.
    with suppress(OSError), replacing(Path(named)) as staging:
        staging.write_text(json.dumps(asdict(now)))
    return last is None or last.reason != reason


@contextmanager
def ending(path: Path) -> Iterator[None]:
    """Turn an error that ends the process into a reason in a file, an entry of the log and exit code 1."""
    errors = _LastError()
    logging.getLogger().addHandler(errors)
    try:
        yield
    except BatonError as error:
        if note_ending(str(error), path) or ENDING not in os.environ:
            log.critical("the process ends: %s", error)
        raise SystemExit(1) from None
    except SystemExit as end:
        if end.code:
            note_ending(errors.message or f"exit code {end.code}", path)
        raise
    except Exception as error:
        if note_ending(_spelled(error), path) or ENDING not in os.environ:
            log.critical("the process ends by an exception", exc_info=error)
        raise SystemExit(1) from None
    finally:
        logging.getLogger().removeHandler(errors)


class _LastError(logging.Handler):
    """Last error that was logged: the reason of a library that logs it and exits."""

    message = ""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)

    def emit(self, record: logging.LogRecord) -> None:
        self.message = record.getMessage()


def _spelled(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}"

"""Orders to the supervisor of a home, as files: which processes to start again, who wants it and why.

The control process writes them for callers of the admin API, and `baton restart` and `baton process restart --home` write
them without it. The supervisor takes an order within a second and reports its progress in one file.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pipeline.disk import replacing
from pipeline.errors import NotReady

__all__ = ["EVERYTHING", "Order", "Progress", "give", "progress", "report", "take", "withdraw"]

EVERYTHING = "all"
"""In place of a process's name: all of them, one after another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Restart of a process. `process`: its name, or `EVERYTHING`. `audited`: the control process has noted it already."""

    id: str
    process: str
    by: str = ""
    reason: str = ""
    audited: bool = False
    time_ms: int = 0

    @classmethod
    def new(cls, process: str, by: str, reason: str, *, audited: bool = False) -> Order:
        """An order with an id of its own, now."""
        now_ms = time.time_ns() // 1_000_000
        return cls(id=secrets.token_hex(8), process=process, by=by, reason=reason, audited=audited, time_ms=now_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Progress of the last order.

    Args:
        state: running, done or failed.
        doing: what it waits for now. why: it failed.
        seconds: that each process took which has been started again, by name.
    """

    order: Order
    state: str = "running"
    doing: str = ""
    why: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether nothing more happens."""
        return self.state != "running"


def give(home: Path, order: Order) -> None:
    """Leave an order for the supervisor. Raises: NotReady: it cannot be written."""
    folder = _folder(home)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / f"{order.id}.json") as staging:
            staging.write_text(json.dumps(asdict(order)))
    except OSError as error:
        raise NotReady(f"the order cannot be written into {folder}: {error.strerror}") from None


def withdraw(home: Path, order: Order) -> bool:
    """Take an order back; False: the supervisor has it already."""
    try:
        (_folder(home) / f"{order.id}.json").unlink()
    except OSError:
        return False
    return True


def take(home: Path) -> list[Order]:
    """All orders that wait, oldest first; they wait no more."""
    found = []
    for path in sorted(_folder(home).glob("*.json")):
        with suppress(OSError, ValueError, TypeError):  # else it is no order of this version
            found.append(Order(**json.loads(path.read_text(encoding="utf-8"))))
        path.unlink(missing_ok=True)
    return sorted(found, key=lambda order: order.time_ms)


def report(home: Path, now: Progress) -> None:
    """Write the progress of an order. Raises: OSError."""
    path = _progress_path(home)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as staging:
        staging.write_text(json.dumps(asdict(now)))


def progress(home: Path) -> Progress | None:
    """Progress of the last order; None before the first one."""
    try:
        found = json.loads(_progress_path(home).read_text(encoding="utf-8"))
        return Progress(**{**found, "order": Order(**found["order"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _folder(home: Path) -> Path:
    return home / "run" / "orders"


def _progress_path(home: Path) -> Path:
    return home / "run" / "restart.json"

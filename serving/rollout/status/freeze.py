"""A freeze: until a time nothing moves in any rollout of the installation but kill, abort and step back.

It is a setting of the control store, so all machines that share the state have it, and it outlives restarts.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Protocol, Self

__all__ = ["FREEZE", "Freeze", "freeze_of"]

log = logging.getLogger(__name__)

FREEZE = "freeze"
"""Name of the setting."""


@dataclass(frozen=True, slots=True)
class Freeze:
    """A freeze until a time, who ordered it, why and when; times in Unix milliseconds."""

    until_ms: int
    actor: str
    reason: str
    since_ms: int

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(**data)

    def __str__(self) -> str:
        end = datetime.fromtimestamp(self.until_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"frozen until {end} by {self.actor}: {self.reason}"


class _Settings(Protocol):
    def setting(self, name: str) -> dict[str, Any]: ...


def freeze_of(store: _Settings, now_ms: int) -> Freeze | None:
    """The freeze that holds now, None without one."""
    kept = store.setting(FREEZE)
    try:
        found = Freeze.from_json(kept) if kept else None
    except TypeError as error:  # of a foreign hand; it must not keep rollouts from stepping back
        log.error("the setting %r is not one that Baton wrote and is passed over: %s", FREEZE, error)
        return None
    return found if found is not None and now_ms < found.until_ms else None

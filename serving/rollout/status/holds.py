"""Legal holds: routing keys whose records stay in the traffic log, whatever retention says, and cannot be forgotten.

A hold is a setting of the control store, so all machines that share the state have it. It names the key by its hash, as the
log does, and the case by the reason that was given: the key itself is kept nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Protocol, Self

from pipeline.errors import NotReady

__all__ = ["HOLDS", "Hold", "holds_of", "key_name"]

HOLDS = "holds"
"""Name of the setting: by name of the key, who holds it, why and since when."""


@dataclass(frozen=True, slots=True)
class Hold:
    """A hold: who ordered it, why, and since when (Unix milliseconds)."""

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
        since = datetime.fromtimestamp(self.since_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"held since {since} by {self.actor}: {self.reason}"


class _Settings(Protocol):
    def setting(self, name: str) -> dict[str, Any]: ...


def key_name(routing_hash: int) -> str:
    """Name of a routing key: its hash in 16 hexadecimal digits.

    >>> key_name(255)
    '00000000000000ff'
    """
    return f"{routing_hash:016x}"


def holds_of(store: _Settings) -> Mapping[int, Hold]:
    """Holds by routing hash.

    Raises:
        NotReady: one of them cannot be read: then nothing may be deleted.
    """
    try:
        return {int(name, 16): Hold.from_json(body) for name, body in store.setting(HOLDS).items()}
    except (TypeError, ValueError) as error:
        raise NotReady(f"the setting {HOLDS!r} is not one that Baton wrote, so nothing is deleted: {error}") from None

"""Retired versions: no arm that follows the newest takes them any more. They stay in the repository, and can be taken back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

__all__ = ["RETIRED", "retired_of"]

RETIRED = "retired"
"""Name of the setting: by BUNDLE/VERSION, who retired it and why."""


class _Settings(Protocol):
    def setting(self, name: str) -> dict[str, Any]: ...


def retired_of(store: _Settings) -> Mapping[str, str]:
    """By BUNDLE/VERSION: who retired it and why."""
    return {str(key): str(why) for key, why in store.setting(RETIRED).items()}

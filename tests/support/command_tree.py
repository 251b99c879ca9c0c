"""Commands below a command of the command line, which imports each when it is asked for."""

from __future__ import annotations

from typing import Any

__all__ = ["below"]


def below(command: Any) -> dict[str, Any]:
    """Commands of a group by name; none of a single command."""
    if not hasattr(command, "list_commands"):
        return {}
    return {name: command.get_command(None, name) for name in command.list_commands(None)}

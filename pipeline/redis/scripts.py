"""Lua scripts of Redis: files in the folder `lua` beside the module that runs them."""

from __future__ import annotations

from pathlib import Path

__all__ = ["script"]


def script(module: str, *names: str) -> str:
    """The text of one or more scripts, one after the other. `module`: `__file__` of the module that runs them."""
    return "\n".join((Path(module).parent / "lua" / f"{name}.lua").read_text() for name in names)

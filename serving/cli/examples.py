"""Examples in help: the paragraph of a command's docstring that begins with `Example:` is shown last, below its options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import typer

__all__ = ["put_last"]

_BEGIN = "\n\nExample: "


def put_last(app: typer.Typer) -> None:
    """Move the example of every command, those of groups included, below its options."""
    for command in app.registered_commands:
        if command.callback is not None:
            command.help, command.epilog = _parted(command.callback)
    for group in app.registered_groups:
        if group.typer_instance is None:
            continue
        main = group.typer_instance.registered_callback
        if main is not None and main.callback is not None:
            main.help, main.epilog = _parted(main.callback)
        put_last(group.typer_instance)


def _parted(callback: Callable[..., Any]) -> tuple[str, str | None]:
    text = inspect.getdoc(callback) or ""
    help, begin, example = text.partition(_BEGIN)
    return help, f"Example: {example}" if begin else None

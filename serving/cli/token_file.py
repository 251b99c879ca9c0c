"""`--token-file` of every command that takes a token: other users of the machine see `--token` in the list of processes."""

from __future__ import annotations

import functools
import inspect
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.errors import InvalidInput

__all__ = ["read_token", "with_token_file"]

TOKEN_BYTES = 4096
"""Longest file; a token has about 60."""
TokenFile = Annotated[
    str,
    typer.Option(
        "--token-file",
        envvar="BATON_TOKEN_FILE",
        metavar="FILE",
        help="File with the bearer token, which its owner alone can read",
    ),
]
_CONTEXT = "token_context"


def read_token(path: Path) -> str:
    """The token in a file, without the white space around it; a pipe will do.

    Raises:
        InvalidInput: it cannot be read, other users can read it, or it does not hold one token.
    """
    try:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
            mode = stat.S_IMODE(found.st_mode)
            # The group of a file that is another user's is how that user lets us read it, as volumes of secrets do.
            closed = stat.S_IRWXO | (stat.S_IRWXG if found.st_uid == os.geteuid() else stat.S_IWGRP)
            if stat.S_ISREG(found.st_mode) and mode & closed:
                raise InvalidInput(
                    f"--token-file {path} is open to others (mode {mode:04o}): chmod 600 {path}", "token_file"
                )
            text = file.read(TOKEN_BYTES + 1)
    except OSError as error:
        raise InvalidInput(f"--token-file {path} cannot be read: {error.strerror}", "token_file") from None
    words = text.split()
    if len(words) != 1 or len(text) > TOKEN_BYTES or not words[0].isascii():
        raise InvalidInput(f"--token-file {path} must hold one token and nothing else", "token_file")
    return words[0].decode()


def with_token_file(callback: Callable[..., Any]) -> Callable[..., Any]:
    """A command with `--token-file` beside its `--token`; one that takes no token stays as it is."""
    found = inspect.signature(callback, eval_str=True).parameters
    if "token" not in found:
        return callback
    context = next((name for name, one in found.items() if one.annotation is typer.Context), "")
    parameters = []
    for one in found.values():
        parameters.append(one.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        if one.name == "token":
            parameters += [
                _keyword("token_file", TokenFile, ""),
                *([] if context else [_keyword(_CONTEXT, typer.Context)]),
            ]

    @functools.wraps(callback)
    def command(*, token: str, token_file: str, **given: Any) -> Any:
        ctx = given[context] if context else given.pop(_CONTEXT)
        return callback(token=_chosen(ctx, token, token_file), **given)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


def _keyword(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _chosen(ctx: typer.Context, token: str, file: str) -> str:
    """The token to use: what is on the command line counts before the environment, and there the token before its file."""
    said, said_file = (_said(ctx, name) for name in ("token", "token_file"))
    if said and said_file:
        raise InvalidInput("--token and --token-file are two ways to say one thing; give one", "token")
    return read_token(Path(file)) if file and (said_file or not token) else token


def _said(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"

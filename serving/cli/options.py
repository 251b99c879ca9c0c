"""Common options of the commands over the admin API, and completion of names from the server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import BatonError
from serving.cli.api import DEFAULT_SERVER, AdminClient
from serving.cli.output import Output
from serving.cli.token_file import read_token
from serving.runtime.visible import visible

__all__ = ["Bundle", "Endpoint", "Expected", "Format", "Reason", "Server", "Token", "Why"]


def _names(path: str, field: str, name: str, incomplete: str) -> list[str]:
    server, token = os.environ.get("BATON_SERVER", DEFAULT_SERVER), os.environ.get("BATON_TOKEN", "")
    try:
        if not token and (file := os.environ.get("BATON_TOKEN_FILE")):
            token = read_token(Path(file))
        found = AdminClient(server, token=token, timeout=1.0).get(path, page_size=1000)[field]
    except BatonError:
        return []  # shell completion shows no errors
    names = {entry[name] for entry in found if entry[name].startswith(incomplete)}
    return sorted(name for name in names if visible(name) == name)  # the shell prints them as they are


def _endpoints(incomplete: str) -> list[str]:
    return _names("/endpoints", "endpoints", "name", incomplete)


def _bundles(incomplete: str) -> list[str]:
    return _names("/models", "models", "bundle", incomplete)


Server = Annotated[str, typer.Option(envvar="BATON_SERVER", help="Admin API of the control process")]
Token = Annotated[
    str,
    typer.Option(
        envvar="BATON_TOKEN",
        help="Bearer token; on the command line other users of this machine can see it: use --token-file",
    ),
]
Format = Annotated[Output, typer.Option("-o", "--output", help="table for people, json for programs")]
Reason = Annotated[str, typer.Option(help="Why; goes into the audit")]
Why = Annotated[str, typer.Option("--reason", help="Why; needed, goes into the audit")]
Expected = Annotated[
    int | None, typer.Option(min=0, help="Resource version that you read; refused when it has changed since")
]
Endpoint = Annotated[str, typer.Argument(help="Endpoint", autocompletion=_endpoints)]
Bundle = Annotated[str, typer.Argument(help="Bundle", autocompletion=_bundles)]

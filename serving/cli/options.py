"""Common options of the commands over the admin API, and completion of names from the server."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from pipeline.errors import BatonError
from serving.cli.api import DEFAULT_SERVER, AdminClient
from serving.cli.output import Output

__all__ = ["Bundle", "Endpoint", "Expected", "Format", "Reason", "Server", "Token"]


def _names(path: str, field: str, name: str, incomplete: str) -> list[str]:
    server, token = os.environ.get("BATON_SERVER", DEFAULT_SERVER), os.environ.get("BATON_TOKEN", "")
    try:
        found = AdminClient(server, token=token, timeout=1.0).get(path, page_size=1000)[field]
    except BatonError:
        return []  # shell completion shows no errors
    return sorted({entry[name] for entry in found if entry[name].startswith(incomplete)})


def _endpoints(incomplete: str) -> list[str]:
    return _names("/endpoints", "endpoints", "name", incomplete)


def _bundles(incomplete: str) -> list[str]:
    return _names("/models", "models", "bundle", incomplete)


Server = Annotated[str, typer.Option(envvar="BATON_SERVER", help="Admin API of the control process")]
Token = Annotated[str, typer.Option(envvar="BATON_TOKEN", help="Bearer token")]
Format = Annotated[Output, typer.Option("-o", "--output", help="table for people, json for programs")]
Reason = Annotated[str, typer.Option(help="Why; goes into the audit")]
Expected = Annotated[
    int | None, typer.Option(min=0, help="Resource version that you read; refused when it has changed since")
]
Endpoint = Annotated[str, typer.Argument(help="Endpoint", autocompletion=_endpoints)]
Bundle = Annotated[str, typer.Argument(help="Bundle", autocompletion=_bundles)]

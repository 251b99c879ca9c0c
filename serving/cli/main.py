"""`baton`: the command line of serving and transfer. Noun first, then verb.

Each file of this package holds the commands of one task: running processes (`run`), training (`learn`), bundles
(`bundles`), the traffic log (`log`), operation (`rollouts`, `endpoints`, `models`, `status`, `verdicts`). Only the file of
the command that was called is imported: an operator who kills an endpoint does not wait for what training needs. `baton bench`
is in `benchmarks/cli.py`, which is only in the source checkout.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
import typer.main

from serving.cli.api import CLEAR_TOKEN
from serving.cli.output import CommandLine, say
from serving.cli.token_file import with_token_file

__all__ = ["app"]

OPERATE, RUN, LEARN, MEASURE = "Operate", "Run", "Learn", "Measure"


class _Place(NamedTuple):
    """Where a command is: its file, its name in there (a function, or the Typer of a group), its panel of the help."""

    file: str
    name: str
    panel: str = ""


PLACES = {
    "rollout": _Place("serving.cli.rollouts", "app", OPERATE),
    "endpoint": _Place("serving.cli.endpoints", "app", OPERATE),
    "freeze": _Place("serving.cli.freeze", "freeze", OPERATE),
    "model": _Place("serving.cli.models", "app", OPERATE),
    "health": _Place("serving.cli.health", "health", OPERATE),
    "status": _Place("serving.cli.status", "status", OPERATE),
    "metrics": _Place("serving.cli.verdicts", "metrics", OPERATE),
    "audit": _Place("serving.cli.verdicts", "audit", OPERATE),
    "state": _Place("serving.cli.state", "app", OPERATE),
    "cache": _Place("serving.cli.cache", "app", OPERATE),
    "log": _Place("serving.cli.log", "app", OPERATE),
    "labels": _Place("serving.cli.labels", "app", OPERATE),
    "token": _Place("serving.cli.token", "app", OPERATE),
    "demo": _Place("serving.cli.run", "demo", RUN),
    "serve": _Place("serving.cli.run", "serve", RUN),
    "service": _Place("serving.cli.service", "app", RUN),
    "worker": _Place("serving.cli.run", "worker", RUN),
    "process": _Place("serving.cli.processes", "app", RUN),
    "restart": _Place("serving.cli.processes", "restart", RUN),
    "backup": _Place("serving.cli.backup", "backup", RUN),
    "restore": _Place("serving.cli.backup", "restore", RUN),
    "replay": _Place("serving.cli.learn", "replay", RUN),
    "doctor": _Place("serving.cli.check", "doctor", RUN),
    "train": _Place("serving.cli.learn", "train", LEARN),
    "transfer": _Place("serving.cli.learn", "transfer", LEARN),
    "score": _Place("serving.cli.score", "score", LEARN),
    "bundle": _Place("serving.cli.bundles", "app", LEARN),
    "experiment": _Place("serving.cli.experiment", "app", MEASURE),
    "bench": _Place("benchmarks.cli", "app", MEASURE),
}
"""All commands, in the order of the help; one without a panel is hidden."""


class _Commands(CommandLine):
    """The commands of `PLACES`, each imported when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(PLACES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return _loaded(cmd_name) if cmd_name in PLACES else None


app = typer.Typer(
    name="baton",
    cls=_Commands,
    help="Hand live ranking traffic from an old click model to a new one, on evidence. "
    "To stop a rollout: baton rollout list, then baton rollout pause ENDPOINT --reason '...'.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def trust(
    ca: Annotated[Path | None, typer.Option(envvar="BATON_CA", help="Trusted root certificates of the server")] = None,
    cert: Annotated[Path | None, typer.Option(envvar="BATON_CERT", help="Client certificate")] = None,
    key: Annotated[Path | None, typer.Option(envvar="BATON_KEY", help="Private key of the client certificate")] = None,
    clear_token: Annotated[
        bool,
        typer.Option(
            "--clear-token",
            envvar=CLEAR_TOKEN,
            help="Send a token to another machine without TLS, where something else encrypts",
        ),
    ] = False,
) -> None:
    """Options before the command: TLS of the connection to the server."""
    for name, file in (("BATON_CA", ca), ("BATON_CERT", cert), ("BATON_KEY", key)):
        if file is not None:
            os.environ[name] = str(file)
    os.environ[CLEAR_TOKEN] = "1" if clear_token else ""


def _complete(group: typer.Typer) -> None:
    """Give each command that takes a token `--token-file`, and move the paragraph `Example: ...` of its docstring below its
    options, in groups too."""
    for command in group.registered_commands:
        if command.callback is not None:
            command.help, command.epilog = _help_and_example(command.callback)
            command.callback = with_token_file(command.callback)
    for child in group.registered_groups:
        if child.typer_instance is None:
            continue
        main = child.typer_instance.registered_callback
        if main is not None and main.callback is not None:
            main.help, main.epilog = _help_and_example(main.callback)
            main.callback = with_token_file(main.callback)
        _complete(child.typer_instance)


def _help_and_example(callback: Callable[..., Any]) -> tuple[str, str | None]:
    text, begin, example = (inspect.getdoc(callback) or "").partition("\n\nExample: ")
    return text, f"Example: {example}" if begin else None


@functools.cache
def _loaded(name: str) -> Any:
    place = PLACES[name]
    try:
        found = getattr(importlib.import_module(place.file), place.name)
    except ModuleNotFoundError as error:
        if place.file != "benchmarks.cli" or error.name not in ("benchmarks", "benchmarks.cli"):
            raise
        return _built(name, "", _no_bench, ignore_unknown_options=True, allow_extra_args=True, help_option_names=[])
    return _built(name, place.panel, found)


def _built(name: str, panel: str, found: typer.Typer | Callable[..., Any], **context: Any) -> Any:
    """The command of a function or a group, by a Typer that has it alone."""
    alone = typer.Typer(add_completion=False)
    if isinstance(found, typer.Typer):
        alone.add_typer(found, name=name, rich_help_panel=panel)
    else:
        alone.command(name, rich_help_panel=panel, hidden=not panel, context_settings=context or None)(found)
    alone.callback()(lambda: None)  # with one, it stays a group of the one command
    _complete(alone)
    group: Any = typer.main.get_command(alone)
    return group.commands[name]


def _no_bench() -> None:
    """Print where the benchmarks are."""
    say("bench is in the source checkout: clone Baton and run `make install` there")
    raise typer.Exit(1)


if __name__ == "__main__":
    app()

"""`baton`: the command line of serving and transfer. Noun first, then verb.

Each file of this package holds the commands of one task: running processes (`run`), training (`learn`), bundles
(`bundles`), the traffic log (`log`), operation (`rollouts`, `endpoints`, `models`, `status`, `verdicts`). Heavy imports
happen inside the commands. `baton bench` is in `benchmarks/cli.py`, which is only in the source checkout.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from serving.cli import (
    backup,
    bundles,
    cache,
    check,
    endpoints,
    experiment,
    learn,
    log,
    models,
    rollouts,
    run,
    service,
    status,
    token,
    verdicts,
)
from serving.cli.api import CLEAR_TOKEN
from serving.cli.output import CommandLine, say
from serving.cli.token_file import with_token_file

__all__ = ["app"]

app = typer.Typer(
    name="baton",
    cls=CommandLine,
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


OPERATE, RUN, LEARN, MEASURE = "Operate", "Run", "Learn", "Measure"

app.add_typer(rollouts.app, name="rollout", rich_help_panel=OPERATE)
app.add_typer(endpoints.app, name="endpoint", rich_help_panel=OPERATE)
app.add_typer(models.app, name="model", rich_help_panel=OPERATE)
app.command("status", rich_help_panel=OPERATE)(status.status)
app.command("metrics", rich_help_panel=OPERATE)(verdicts.metrics)
app.add_typer(verdicts.audit, name="audit", rich_help_panel=OPERATE)
app.add_typer(cache.app, name="cache", rich_help_panel=OPERATE)
app.add_typer(log.app, name="log", rich_help_panel=OPERATE)
app.add_typer(token.app, name="token", rich_help_panel=OPERATE)
app.command("demo", rich_help_panel=RUN)(run.demo)
app.command("serve", rich_help_panel=RUN)(run.serve)
app.add_typer(service.app, name="service", rich_help_panel=RUN)
app.command("worker", rich_help_panel=RUN)(run.worker)
app.command("process", hidden=True)(run.process)
app.command("backup", rich_help_panel=RUN)(backup.backup)
app.command("restore", rich_help_panel=RUN)(backup.restore)
app.command("replay", rich_help_panel=RUN)(learn.replay)
app.command("doctor", rich_help_panel=RUN)(check.doctor)
app.command("train", rich_help_panel=LEARN)(learn.train)
app.command("transfer", rich_help_panel=LEARN)(learn.transfer)
app.add_typer(bundles.app, name="bundle", rich_help_panel=LEARN)
app.add_typer(experiment.app, name="experiment", rich_help_panel=MEASURE)


try:
    app.add_typer(importlib.import_module("benchmarks.cli").app, name="bench", rich_help_panel=MEASURE)
except ModuleNotFoundError as error:
    if error.name not in ("benchmarks", "benchmarks.cli"):
        raise

    @app.command(
        "bench",
        hidden=True,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    )
    def bench() -> None:
        """Print where the benchmarks are."""
        say("bench is in the source checkout: clone Baton and run `make install` there")
        raise typer.Exit(1)


_complete(app)

if __name__ == "__main__":
    app()

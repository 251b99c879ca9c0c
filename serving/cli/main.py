"""`baton`: the one door to serving and to transfer. Noun first, then verb.

Each file of this package holds the commands of one user: who runs processes (`run`), who trains (`learn`), who looks
after bundles (`bundles`) and the traffic log (`log`), who operates (`rollouts`, `endpoints`, `models`, `status`,
`verdicts`). Imports of what is heavy happen inside the commands. `baton bench` is in `benchmarks/cli.py`, which is
part of the source checkout alone.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Annotated

import typer

from serving.cli import (
    bundles,
    cache,
    check,
    endpoints,
    examples,
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

__all__ = ["app"]

app = typer.Typer(
    name="baton",
    help="Hand live ranking traffic from an old click model to a new one, on evidence. "
    "To stop a rollout: baton rollout list, then baton rollout pause ENDPOINT --reason '...'.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def trust(
    ca: Annotated[Path | None, typer.Option(envvar="BATON_CA", help="Roots to trust in a server's certificate")] = None,
    cert: Annotated[Path | None, typer.Option(envvar="BATON_CERT", help="Client certificate to show")] = None,
    key: Annotated[Path | None, typer.Option(envvar="BATON_KEY", help="Its private key")] = None,
) -> None:
    """Options before the command: how to talk to a server with TLS."""
    for name, file in (("BATON_CA", ca), ("BATON_CERT", cert), ("BATON_KEY", key)):
        if file is not None:
            os.environ[name] = str(file)


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
        """Say where the benches are."""
        typer.echo("bench is in the source checkout: clone Baton and run `make install` there", err=True)
        raise typer.Exit(1)


examples.put_last(app)

if __name__ == "__main__":
    app()

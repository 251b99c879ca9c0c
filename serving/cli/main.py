"""`baton`: the one door to serving and to transfer. Noun first, then verb.

Each file of this package holds the commands of one user: who runs processes (`run`), who trains (`learn`), who looks
after bundles (`bundles`) and the traffic log (`log`), who operates (`operate`, `verdicts`), who measures (`bench`). Imports of what is heavy happen inside the commands.
"""

from __future__ import annotations

import typer

from serving.cli import bench, bundles, cache, check, learn, log, operate, run, token, verdicts

__all__ = ["app"]

app = typer.Typer(
    name="baton",
    help="Hand live ranking traffic from an old click model to a new one, on evidence.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("demo")(run.demo)
app.command("serve")(run.serve)
app.command("worker")(run.worker)
app.command("process", hidden=True)(run.process)
app.command("replay")(learn.replay)
app.command("train")(learn.train)
app.command("transfer")(learn.transfer)
app.add_typer(bundles.app, name="bundle")
app.add_typer(bench.app, name="bench")
app.add_typer(operate.models, name="model")
app.add_typer(operate.endpoints, name="endpoint")
app.add_typer(operate.rollouts, name="rollout")
app.add_typer(cache.app, name="cache")
app.add_typer(log.app, name="log")
app.command("metrics")(verdicts.metrics)
app.add_typer(verdicts.audit, name="audit")
app.add_typer(token.app, name="token")
app.command("doctor")(check.doctor)

if __name__ == "__main__":
    app()

"""`baton rollout`: start and steer rollouts. The figures behind verdicts: `baton metrics` and `baton audit`, in `verdicts`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.errors import InvalidInput
from serving.cli.api import DEFAULT_SERVER, AdminClient
from serving.cli.demo_view import PHASE_COLUMNS, phase_rows
from serving.cli.options import Endpoint, Expected, Format, Reason, Server, Token, Why
from serving.cli.output import Output, emit, say
from serving.cli.rollout_metrics import metrics
from serving.cli.watch import watch

__all__ = ["app"]

app = typer.Typer(
    help="Rollouts: move traffic step by step. "
    "To stop one: baton rollout list, then baton rollout pause ENDPOINT --reason '...'.",
    no_args_is_help=True,
)

_COLUMNS = ("rollout", "endpoint", "phase", "step", "weight %", "waiting")


@app.command("start")
def start(
    file: Annotated[Path, typer.Argument(help="Rollout file")],
    reason: Reason = "",
    version: Annotated[str, typer.Option(help="Version of the candidate to begin with; default: the newest")] = "",
    server: Server = DEFAULT_SERVER,
    token: Token = "",
    output: Format = Output.table,
) -> None:
    """Begin a rollout: the candidate in shadow, then step by step on evidence.

    Example: baton rollout start rollout.yaml --reason 'ranker 2'
    """
    try:
        text = file.read_text()
    except OSError as error:
        raise InvalidInput(f"rollout file {file} cannot be read: {error.strerror}", "file") from None
    except UnicodeDecodeError:
        raise InvalidInput(f"rollout file {file} is not text in UTF-8", "file") from None
    body = {"file": text, "name": str(file), "reason": reason, "version": version}
    _show(AdminClient(server, token=token).post("/rollouts", body), output)


@app.command("list")
def list_rollouts(
    endpoint: Annotated[str, typer.Option(help="Only this endpoint's")] = "",
    active: Annotated[bool, typer.Option("--active", help="Only rollouts that can still move by themselves")] = False,
    server: Server = DEFAULT_SERVER,
    token: Token = "",
    output: Format = Output.table,
) -> None:
    """Show all rollouts, oldest first, and what each waits for.

    Example: baton rollout list --active
    """
    found = AdminClient(server, token=token).list("/rollouts", "rollouts", endpoint=endpoint, active=active)
    emit(output, found, "", _COLUMNS, [_row(r) for r in found])


@app.command("get")
def get_rollout(
    name: Endpoint, server: Server = DEFAULT_SERVER, token: Token = "", output: Format = Output.table
) -> None:
    """Show an endpoint's newest rollout: step, weight, what it waits for, figures per step.

    Example: baton rollout get ranker
    """
    _show(AdminClient(server, token=token).get(f"/rollouts/{name}"), output)


app.command("watch")(watch)
app.command("metrics")(metrics)


def _verb(verb: str, name: str, server: str, token: str, output: Output, **body: Any) -> None:
    _show(AdminClient(server, token=token).post(f"/rollouts/{name}/{verb}", body), output)


@app.command()
def pause(
    name: Endpoint,
    reason: Why = "",
    expected: Expected = None,
    server: Server = DEFAULT_SERVER,
    token: Token = "",
    output: Format = Output.table,
) -> None:
    """Stay at this step even when the evidence allows the next; breaches still step back.

    Example: baton rollout pause ranker --reason 'holiday traffic'
    """
    _verb("pause", name, server, token, output, reason=reason, expected=expected)


@app.command()
def resume(
    name: Endpoint,
    reason: Why = "",
    expected: Expected = None,
    server: Server = DEFAULT_SERVER,
    token: Token = "",
    output: Format = Output.table,
) -> None:
    """Go on by evidence after a pause.

    Example: baton rollout resume ranker --reason 'holiday is over'
    """
    _verb("resume", name, server, token, output, reason=reason, expected=expected)


@app.command()
def promote(
    name: Endpoint,
    full: Annotated[bool, typer.Option("--full", help="Straight to the last step")] = False,
    force: Annotated[bool, typer.Option("--force", help="Although the evidence is not there")] = False,
    reason: Why = "",
    expected: Expected = None,
    server: Server = DEFAULT_SERVER,
    token: Token = "",
    output: Format = Output.table,
) -> None:
    """Enter the next step now; with --force without its evidence, and the audit keeps what was not met.

    Example: baton rollout promote ranker --force --reason 'seen enough'
    """
    _verb("promote", name, server, token, output, reason=reason, full=full, force=force, expected=expected)


@app.command()
def approve(
    name: Endpoint,
    reason: Why = "",
    expected: Expected = None,
    server: Server = DEFAULT_SERVER,
    token: Token = "",
    output: Format = Output.table,
) -> None:
    """Let the next step be entered on its evidence, where the rollout waits for that.

    Example: baton rollout approve ranker --reason 'the product owner agrees'
    """
    _verb("approve", name, server, token, output, reason=reason, expected=expected)


@app.command()
def abort(
    name: Endpoint,
    reason: Why = "",
    expected: Expected = None,
    server: Server = DEFAULT_SERVER,
    token: Token = "",
    output: Format = Output.table,
) -> None:
    """Send all traffic to stable and end this rollout.

    Example: baton rollout abort ranker --reason 'wrong features'
    """
    _verb("abort", name, server, token, output, reason=reason, expected=expected)


@app.command()
def undo(
    name: Endpoint,
    reason: Why = "",
    expected: Expected = None,
    server: Server = DEFAULT_SERVER,
    token: Token = "",
    output: Format = Output.table,
) -> None:
    """Take a finished hand-over back: stable answers all traffic again.

    Example: baton rollout undo ranker --reason 'revenue fell'
    """
    _verb("undo", name, server, token, output, reason=reason, expected=expected)


@app.command("set-weight")
def set_weight(
    name: Endpoint,
    weight: Annotated[float, typer.Argument(min=0, max=100, help="Percent of keys for the candidate")],
    reason: Why = "",
    expected: Expected = None,
    server: Server = DEFAULT_SERVER,
    token: Token = "",
    output: Format = Output.table,
) -> None:
    """Set the weight by hand; the rollout pauses there.

    Example: baton rollout set-weight ranker 10 --reason 'back to a tenth'
    """
    _verb("set-weight", name, server, token, output, reason=reason, weight=weight, expected=expected)


@app.command()
def simulate(
    file: Annotated[Path, typer.Argument(help="Rollout file")],
    scenario: Annotated[
        str,
        typer.Option(help="One of those that docs/rollout.md describes: good, biased, day_night, many_versions, ..."),
    ] = "good",
    runs: Annotated[int, typer.Option(min=1, help="Simulated rollouts")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the generated traffic")] = 0,
    horizon: Annotated[int, typer.Option(min=1, help="Blocks after which a run ends")] = 1600,
    bias: Annotated[
        float | None,
        typer.Option(min=-0.9, max=9, help="Relative bias of the candidate in the good scenario, for example 0.02"),
    ] = None,
    most_blocks: Annotated[
        int | None, typer.Option(min=0, help="Blocks from which on old ones are merged; 0: as few as windows need")
    ] = None,
    heavy_share: Annotated[
        float | None,
        typer.Option(min=0, max=0.4, help="Share of the rows that the user has in the scenario heavy_user"),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(help="Of what is odd: swing of day_night, correlation of dependent, click rate of rare_clicks"),
    ] = None,
    output: Format = Output.table,
) -> None:
    """Try a rollout file's thresholds on generated traffic, without a server.

    Example: baton rollout simulate rollout.yaml --scenario biased --runs 1000
    """
    from serving.rollout.simulation.run import TrafficOptions
    from serving.rollout.simulation.run import simulate as run
    from serving.rollout.spec import Rollout

    traffic: TrafficOptions = {"horizon": horizon}
    if bias is not None:
        traffic["bias"] = bias
    if most_blocks is not None:
        traffic["most_blocks"] = most_blocks
    if heavy_share is not None:
        traffic["heavy_share"] = heavy_share
    if strength is not None:
        traffic["strength"] = strength
    result = asdict(run(Rollout.load(file), scenario, runs, seed, **traffic))
    emit(output, result, "", ("what", "value"), [(k, str(v)) for k, v in result.items()])


def _row(r: dict[str, Any]) -> tuple[Any, ...]:
    return (r["id"], r["endpoint"], r["phase"], f"{r['step']}/{len(r['steps']) - 1}", f"{r['weight']:g}", r["waiting"])


def _show(r: dict[str, Any], output: Output) -> None:
    emit(output, r, "", _COLUMNS, [_row(r)])
    if output is Output.table and (cause := r.get("cause")) and cause["unmet"]:
        say(f"{cause['verb']} by {cause['actor']} although not met: {'; '.join(cause['unmet'])}")
    if output is Output.table and r.get("what_to_do"):
        say(f"{r['code']}: {r['what_to_do']} ({r['page']})")
        if r["missing_clicks"]:
            left = "unknown" if r["hours_left"] is None else f"about {r['hours_left']:.1f} h"
            say(f"time left at the present rate of labels: {left}")
    if output is Output.table and r["phases"]:
        emit(output, None, "figures per step, both arms on the same rows", PHASE_COLUMNS, phase_rows(r["phases"]))

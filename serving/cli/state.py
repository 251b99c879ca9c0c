"""`baton state`: whether the state is the one that this home knows, and the ways back where it is not. On the machine itself:
it works without the control process."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from pipeline.clock import SystemClock
from pipeline.errors import InvalidInput
from serving.cli.api import user
from serving.cli.options import Format
from serving.cli.output import Output, emit, line, say
from serving.config import Config

__all__ = ["app"]

app = typer.Typer(
    help="The state: endpoints, rollouts, audit. Whether it is the one that this home knows, and the ways back where it was lost.",
    no_args_is_help=True,
)

ConfigFile = Annotated[Path, typer.Option("--config", help="Configuration file of the installation")]
Why = Annotated[str, typer.Option("--reason", help="Why; needed, goes into the audit")]
CONDITIONS = {
    "here": "it is the one of this home",
    "new": "there is none yet: the first start makes it",
    "empty": "lost: it is empty",
    "another": "lost: it is another installation's",
    "gone": "lost: its file is gone",
    "away": "it does not answer",
}


@app.command()
def show(config: ConfigFile = Path("baton.yaml"), output: Format = Output.table) -> None:
    """Show whether the state is the one that this home knows, and what the home remembers of it. Exit code 1: it is not.

    Example: baton state show --config baton.yaml
    """
    from serving.wiring.state_restore import state_condition

    settings = Config.load(config)
    found = state_condition(settings)
    place = settings.state.url or str(settings.control_db)
    snapshot = found.snapshot
    taken = None if snapshot is None else datetime.fromtimestamp(snapshot.time_ms / 1000, UTC).isoformat(" ", "seconds")
    endpoints = [] if snapshot is None else sorted(snapshot.document.endpoints)
    killed = [] if snapshot is None else sorted(snapshot.killed)
    data = {
        "place": place,
        "condition": found.condition,
        "identity": found.identity,
        "problem": found.problem,
        "snapshot": taken,
        "endpoints": endpoints,
        "killed": killed,
    }
    rows = [
        ("state", place),
        ("condition", CONDITIONS[found.condition]),
        ("identity that this home knows", found.identity or "-"),
        ("snapshot in this home", taken or "-"),
        ("endpoints in the snapshot", ", ".join(endpoints) or "-"),
        ("kill flags in the snapshot", ", ".join(killed) or "-"),
    ]
    emit(output, data, "", ("what", "value"), rows)
    if found.problem:
        say(found.problem)
        raise typer.Exit(1)


@app.command()
def restore(
    snapshot: Annotated[
        Path | None, typer.Option(help="Snapshot of a home, home/state/snapshot.json; that of this home by default")
    ] = None,
    backup: Annotated[Path | None, typer.Option(help="Folder of `baton backup`; it has the audit too")] = None,
    configuration: Annotated[
        bool, typer.Option("--configuration", help="Make the endpoints of baton.yaml again, at weight 0")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Fill it also where it is another installation's, which then loses it")
    ] = False,
    reason: Why = "",
    config: ConfigFile = Path("baton.yaml"),
    output: Format = Output.table,
) -> None:
    """Fill a lost state again: from the snapshot of this home, of another machine's home, from a backup, or from the
    configuration. Processes go on with it by themselves. Rollouts come back paused, and what was killed stays killed.

    Example: baton state restore --reason 'the Redis came back empty'
    """
    from serving.wiring.state_restore import restore_state

    _need(reason)
    made = restore_state(
        Config.load(config),
        SystemClock(),
        user(),
        reason,
        snapshot=snapshot,
        backup=backup,
        configuration=configuration,
        replace_other=replace,
    )
    data = {
        "source": made.source,
        "restored": [dict(zip(("what", "name", "how"), row, strict=True)) for row in made.back],
        "not_restored": made.missing,
    }
    emit(output, data, f"restored from {made.source}", ("what", "name", "how"), made.back)
    if output is Output.table:
        for what in made.missing:
            line(f"not restored: {what}")


@app.command()
def adopt(reason: Why = "", config: ConfigFile = Path("baton.yaml"), output: Format = Output.table) -> None:
    """Make the state that is configured now the one of this home, whatever it holds. Endpoints that it lacks are no longer
    served. Give it on every machine that shares the state.

    Example: baton state adopt --reason 'this installation starts anew'
    """
    from serving.wiring.state_restore import adopt_state

    _need(reason)
    before, now = adopt_state(Config.load(config), SystemClock(), user(), reason)
    emit(output, {"before": before, "identity": now}, "", ("before", "now"), [(before or "-", now)])


def _need(reason: str) -> None:
    if not reason:
        raise InvalidInput("--reason is needed: the audit has it", "reason")

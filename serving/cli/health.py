"""`baton health`: one truthful screen, for people and for monitoring."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.errors import BatonError, NotReady
from serving.cli.api import DEFAULT_SERVER, AdminClient
from serving.cli.options import Server, Token
from serving.cli.output import line, print_json
from serving.config import Config
from serving.health import Fact, Level, Reading, health_of
from serving.health.facts import EXIT_CODES
from serving.health.reading import read_state
from serving.runtime import status
from serving.runtime.roster import roster_of
from serving.wiring.state import open_control_store
from serving.wiring.stores import look_at_stores
from serving.wiring.traffic import now_ms_of

__all__ = ["health"]

TIMEOUT_S = 8.0
"""Longer than the control process waits for a state that does not answer."""


def health(
    server: Server = DEFAULT_SERVER,
    token: Token = "",
    config: Annotated[
        Path,
        typer.Option("--config", help="Configuration of this machine, for its files where the server does not answer"),
    ] = Path("baton.yaml"),
    json: Annotated[bool, typer.Option("--json", help="One JSON object for programs")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only what is not well")] = False,
) -> None:
    """Show one line a fact: processes, endpoints, both arms' bias, labels by endpoint, rollouts, approvals, freeze, worker, log
    and stores, what needs a person first.

    Exit code 0: all is well; 1: something needs a person; 2: it cannot be told. Where the server does not answer, the facts
    are from the files of the home that --config names and from its stores.

    Example: baton health --config baton.yaml
    """
    try:
        client = AdminClient(server, token=token, timeout=TIMEOUT_S)
        client.check_alive()
        found = client.get("/health")
    except NotReady as error:
        found = _from_here(config, error)
    except BatonError as error:  # a wrong token, for example: nothing was learned
        found = _unknown(str(error))
    if json:
        print_json(found, indent=1)
    else:
        for fact in found["facts"]:
            shown = Fact(fact["about"], fact["name"], _level(fact["level"]), fact["says"], fact["do"])
            if not (quiet and shown.level is Level.OK):
                line(str(shown))
    if code := EXIT_CODES[_level(found["level"])]:
        raise typer.Exit(code)


def _from_here(path: Path, error: NotReady) -> dict[str, Any]:
    """The same from this machine's files; without them nothing can be told."""
    try:
        if not path.exists():
            raise error
        config = Config.load(path)
    except BatonError as second:
        return _unknown(str(second), "name its home with --config")
    health = health_of(_reading(config, str(error)))
    facts = [asdict(fact) for fact in health.ordered()]
    return {"level": health.level, "time_ms": health.time_ms, "source": health.source, "facts": facts}


def _unknown(says: str, do: str = "") -> dict[str, Any]:
    fact = Fact("process", "control", Level.UNKNOWN, says, do)
    return {"level": Level.UNKNOWN, "time_ms": 0, "source": "", "facts": [asdict(fact)]}


def _reading(config: Config, control_away: str) -> Reading:
    """The installation from the files in its home and from its stores, on its machine, without the control process."""
    now_ms = now_ms_of(config)
    statuses = status.read(config.status, now_ms)
    processes = roster_of(config, now_ms)
    there = config.state.url or config.control_db.exists()
    state, fault = (
        read_state(lambda: open_control_store(config), now_ms, close=True)
        if there
        else (None, f"{config.control_db} is not there: nothing has run in this home")
    )
    return Reading(
        now_ms=now_ms,
        source=f"the files in {config.home}",
        processes=processes,
        statuses=statuses,
        stores=look_at_stores(config),
        state=state,
        state_fault=fault,
        control_away=control_away,
        runs=any(process.pid is not None and process.state != "gone" for process in processes),
    )


def _level(text: str) -> Level:
    """A level; one of a newer server is unknown here."""
    return Level(text) if text in set(map(str, Level)) else Level.UNKNOWN

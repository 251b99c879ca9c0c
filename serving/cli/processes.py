"""`baton process`: the processes of an installation, their restart; and the commands by which `baton serve` starts them.

`baton restart` starts all of them again, one after another.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.clock import SystemClock
from pipeline.errors import Conflict, InvalidInput, NotReady
from serving.cli.api import DEFAULT_SERVER, AdminClient, user
from serving.cli.options import Format, Reason, Server, Token
from serving.cli.output import Output, emit, say
from serving.config import Config
from serving.runtime.claims import SERVE, role_on, supervisors
from serving.runtime.endings import ending, ending_path
from serving.runtime.logs import write_logs
from serving.runtime.ports import claimed_ports
from serving.runtime.process import PARENT, die_with_parent, raise_descriptors
from serving.security.exposure import exposure
from serving.security.modes import close_home
from serving.supervisor import orders
from serving.supervisor.orders import EVERYTHING, Order, Progress
from serving.wiring.home import check_home
from serving.wiring.in_force import warnings_of
from serving.wiring.state import relaying

__all__ = ["app", "restart"]

PORT_ROLES = {"grpc_port": "lane", "http_port": "control", "admin_port": "control"}
"""Kind of process that listens on each port of `listen`."""
PREDECESSOR_S = 20.0
"""Longest wait of a process for the end of another one in its place, which may be answering its last requests."""
RENEWED_S = 60.0
"""Time in which a supervisor has started its own program anew."""
TAKEN_S = 5.0
"""Time in which a supervisor has taken an order."""
POLL_S = 0.3
COLUMNS = ("process", "state", "pid", "doing", "seconds ago", "restarts", "last exit", "why")

log = logging.getLogger(__name__)

app = typer.Typer(no_args_is_help=True)
ConfigFile = Annotated[Path, typer.Option("--config", help="Configuration file")]
Home = Annotated[
    Path | None, typer.Option(help="Home of the installation: leave the order there instead of calling the server")
]


@app.callback()
def _group() -> None:
    """List the processes of an installation, or start one again."""


@app.command("list")
def list_processes(server: Server = DEFAULT_SERVER, token: Token = "", output: Format = Output.table) -> None:
    """Show every process: its state, pid, what it does, restarts and last exit.

    Example: baton process list
    """
    found = AdminClient(server, token=token).get("/processes")
    rows = [
        (p["name"], p["state"], p.get("pid") or "-", p["doing"] or "-", p.get("age_s"), p["restarts"], p["last_exit"] or "-",
         p["why"] or "-")
        for p in found["processes"]
    ]  # fmt: skip
    emit(output, found, "", COLUMNS, rows)


@app.command("restart")
def restart_one(
    name: Annotated[str, typer.Argument(help="Process, as `baton process list` has it")],
    reason: Reason = "",
    home: Home = None,
    server: Server = DEFAULT_SERVER,
    token: Token = "",
    output: Format = Output.table,
) -> None:
    """Start one process again. A lane answers until its successor is ready; with --home it works without the control process.

    Example: baton process restart lane-0 --reason 'it leaks'
    """
    if home is not None:
        _restarted(home, name, reason, output)
        return
    client = AdminClient(server, token=token)
    asked = client.post(f"/processes/{name}/restart", {"reason": reason})
    _show(_followed(lambda: client.get("/processes")["restart"], asked["id"]), output)


def restart(
    config: ConfigFile = Path("baton.yaml"),
    reason: Reason = "",
    output: Format = Output.table,
) -> None:
    """Start all processes of this machine again, one after another: lanes first, each beside the one before it, so that no call
    fails; then shadow, control and worker. They run the version that is installed now, with the configuration as it is now.
    What does not become ready ends the restart, and what ran before goes on; then exit code 1.

    Example: baton restart --config baton.yaml --reason 'upgrade to 0.3'
    """
    _restarted(Config.load(config).home, EVERYTHING, reason, output)


@app.command("trial", hidden=True)
def trial(config: ConfigFile = Path("baton.yaml")) -> None:
    """Try whether this version can run with the configuration and the home, without starting anything.

    Example: baton process trial
    """
    settings = Config.load(config)
    check_home(settings)
    import serving.cli.run
    import serving.processes.control
    import serving.processes.lane
    import serving.processes.shadow

    if settings.worker is not None:
        import serving.processes.worker  # noqa: F401


@app.command("lane", hidden=True)
def lane(
    config: ConfigFile = Path("baton.yaml"),
    index: Annotated[int, typer.Option(min=0, help="Number of the lane")] = 0,
    spare: Annotated[bool, typer.Option("--spare", help="Run beside a lane of this number, to follow it")] = False,
) -> None:
    """Run a lane, as `baton serve` does.

    Example: baton process lane --index 0
    """
    from serving.runtime.claims import SPARE

    _run("lane", config, f"lane-{index}", SPARE if spare else "", index)


@app.command("shadow", hidden=True)
def shadow(config: ConfigFile = Path("baton.yaml")) -> None:
    """Run the shadow lane, as `baton serve` does.

    Example: baton process shadow
    """
    _run("shadow", config, "shadow")


@app.command("control", hidden=True)
def control(config: ConfigFile = Path("baton.yaml")) -> None:
    """Run the control process, as `baton serve` does.

    Example: baton process control
    """
    _run("control", config, "control")


def _run(role: str, config: Path, name: str, spare: str = "", index: int = 0) -> None:
    settings = Config.load(config)
    die_with_parent()  # while it waits for a predecessor too
    write_logs(name, settings.log_level, settings.log_format)
    warnings = close_home(settings)
    raise_descriptors()
    warnings += exposure(settings, supervised=PARENT in os.environ)
    if PARENT not in os.environ:  # else the supervisor has done it
        check_home(settings)
        for warning in [*warnings, *(warnings_of(settings) if role == "control" else ())]:
            log.warning("%s", warning)
    listen = settings.listen
    ports = {setting: port for setting, port in listen.ports.items() if PORT_ROLES[setting] == role}
    with (
        ending(ending_path(settings.home, name)),
        role_on(settings.home, name + spare, patience_s=PREDECESSOR_S),
        claimed_ports(listen.host, ports, settings.home, name),
        relaying(settings, SystemClock(), name, receive=role == "control"),
    ):
        if role == "lane":
            from serving.processes.lane import run_lane

            run_lane(settings, index, spare=bool(spare))
        elif role == "shadow":
            from serving.processes.shadow import run_shadow

            run_shadow(settings)
        else:
            from serving.processes.control import run_control

            run_control(settings)


def _restarted(home: Path, name: str, reason: str, output: Output) -> None:
    """Order a restart through the home, and follow it to its end."""
    if not home.is_dir():
        raise InvalidInput(f"home {home} is not a directory", "home")
    if not any(holder.role == SERVE for holder in supervisors(home)):
        raise NotReady(f"no `baton serve` runs on {home}: start it")
    order = Order.new(name, user(), reason)
    orders.give(home, order)
    until = time.monotonic() + TAKEN_S
    while (now := orders.progress(home)) is None or now.order.id != order.id:
        running = now is not None and not now.ended
        if time.monotonic() > until and not running and orders.withdraw(home, order):
            raise NotReady(
                f"the supervisor has not taken the order within {TAKEN_S:.0f} s: it hangs, or is of a version without orders; "
                "processes go on. End it with kill -9 and start `baton serve` again"
            )
        time.sleep(POLL_S)
    _show(_followed(lambda: _here(home), order.id), output)


def _here(home: Path) -> dict[str, Any] | None:
    """Progress of the last order. Raises: Conflict: no supervisor works on it any more."""
    now = orders.progress(home)
    until = time.monotonic() + RENEWED_S
    while now is not None and not now.ended and not any(holder.role == SERVE for holder in supervisors(home)):
        if time.monotonic() > until:
            raise Conflict(
                f"`baton serve` has ended while it was to restart {now.order.process}: its log has the reason"
            )
        time.sleep(POLL_S)  # it starts its own program anew
        now = orders.progress(home)
    return _told(now)


def _followed(look: Any, order: str) -> dict[str, Any]:
    """Progress of an order once it has ended; what it waits for is printed meanwhile."""
    said = ""
    while True:
        try:
            now = look()
        except NotReady:  # the control process is started again as well
            now = None
        if now is not None and now["id"] != order and said:
            raise NotReady("another restart has begun since, so this one has ended; `baton status` has the state")
        if now is not None and now["id"] == order:
            if now["state"] != "running":
                return dict(now)
            if now["doing"] != said:
                said = now["doing"]
                say(said)
        time.sleep(POLL_S)


def _told(now: Progress | None) -> dict[str, Any] | None:
    if now is None:
        return None
    return {"id": now.order.id, "state": now.state, "doing": now.doing, "why": now.why, "seconds": dict(now.seconds)}


def _show(ended: dict[str, Any], output: Output) -> None:
    emit(output, ended, "", ("process", "seconds"), list(ended["seconds"].items()))
    if ended["state"] != "done":
        raise NotReady(f"the restart has failed: {ended['why']}")

"""`baton serve`, `baton worker`, `baton demo`: start processes."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.clock import SystemClock
from pipeline.errors import InvalidInput, NotReady
from pipeline.host import describe
from serving.cli.output import Output, print_json, say
from serving.config import Config
from serving.runtime.claims import SERVE, role_on
from serving.runtime.endings import ending, ending_path
from serving.runtime.logs import write_logs
from serving.runtime.ports import claimed_ports
from serving.runtime.process import PARENT, die_with_parent, raise_descriptors, step_back
from serving.security.exposure import exposure
from serving.security.modes import close_home
from serving.wiring.home import check_home
from serving.wiring.in_force import not_in_force
from serving.wiring.state import relaying

__all__ = ["demo", "process", "serve", "worker"]

ConfigFile = Annotated[Path, typer.Option("--config", help="Configuration file")]
DEMO_HOME = Path(".baton/demo")
PORT_ROLES = {"grpc_port": "lane", "http_port": "control", "admin_port": "control"}
"""Kind of process that listens on each port of `listen`."""
PREDECESSOR_S = 20.0
"""Longest wait of a process for the end of another one in its place, which may be answering its last requests."""

log = logging.getLogger(__name__)


def serve(
    config: ConfigFile = Path("baton.yaml"),
    ray: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Run on this Ray cluster instead: auto, HOST:PORT or ray://HOST:PORT")
    ] = "",
) -> None:
    """Start all processes of one machine and keep them running; Ctrl-C ends them in order. With --ray, deploy replicas
    on a Ray cluster, where they stay, or replace those of an earlier configuration or release one after another.

    Example: baton serve --config baton.yaml
    """
    from serving.runtime.supervisor import Supervisor, children_of, predecessors_ended

    settings = Config.load(config)
    if ray:
        _serve_on_ray(settings, ray)
        return
    write_logs("supervisor", settings.log_level, settings.log_format)
    warnings = close_home(settings)
    raise_descriptors()
    warnings += exposure(settings)
    supervisor = Supervisor(settings.home, children_of(settings, config.resolve()))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supervisor.stop())
    show = log.info if settings.log_format == "json" else say

    @contextmanager
    def ready() -> Iterator[None]:
        predecessors_ended(settings.home, [child.name for child in supervisor.children if child.name != "worker"])
        check_home(settings)
        with claimed_ports(settings.listen.host, settings.listen.ports, settings.home, SERVE):
            _check_traffic_log(settings)
            _announce(settings, [*warnings, *_not_in_force(settings)], show)
            yield

    supervisor.run(ready)


def _announce(settings: Config, warnings: Sequence[str], show: Callable[[str], None]) -> None:
    listen = settings.listen
    scheme = "http" if listen.tls is None else "https"
    show(
        f"gRPC on {listen.address(listen.grpc_port)}, admin on {listen.address(listen.admin_port)}, "
        f"HTTP on {scheme}://{listen.address(listen.http_port)}, home {settings.home}"
    )
    lanes = settings.engine.lanes
    show(f"{lanes} {'lane' if lanes == 1 else 'lanes'}; this machine gives {describe()}")
    for warning in warnings:
        show(warning)


def _not_in_force(settings: Config) -> list[str]:
    try:
        return not_in_force(settings)
    except NotReady:
        return []  # the processes say so, and start once it is back


def worker(config: ConfigFile = Path("baton.yaml")) -> None:
    """Run the transfer worker alone: learn from labelled traffic, publish new versions.

    Example: baton worker --config baton.yaml
    """
    settings = Config.load(config)
    write_logs("worker", settings.log_level, settings.log_format)
    if settings.worker is None:
        raise InvalidInput(f"{config} has no section `worker`; add one with the endpoint to learn from", "worker")
    for warning in close_home(settings):
        log.warning("%s", warning)
    if PARENT not in os.environ:
        check_home(settings)
    die_with_parent()
    raise_descriptors()
    step_back(settings.worker.nice)
    stop = _stop_on_signal()
    with (
        ending(ending_path(settings.home, "worker")),
        role_on(settings.home, "worker"),
        relaying(settings, SystemClock(), "worker"),
    ):
        from serving.processes.worker import run_worker

        run_worker(settings, stop)


def process(
    role: Annotated[str, typer.Argument(help="lane, shadow or control")],
    config: ConfigFile = Path("baton.yaml"),
    index: Annotated[int, typer.Option(help="Number of the lane")] = 0,
) -> None:
    """Run one of the processes that `baton serve` starts.

    Example: baton process lane --index 0
    """
    if role not in PORT_ROLES.values() and role != "shadow":
        raise InvalidInput(f"role is lane, shadow or control, not {role!r}", "role")
    settings = Config.load(config)
    name = f"lane-{index}" if role == "lane" else role
    die_with_parent()  # while it waits for a predecessor too
    write_logs(name, settings.log_level, settings.log_format)
    warnings = close_home(settings)
    raise_descriptors()
    warnings += exposure(settings)
    if PARENT not in os.environ:  # else the supervisor has done it
        check_home(settings)
        for warning in [*warnings, *(_not_in_force(settings) if role == "control" else ())]:
            log.warning("%s", warning)
    listen = settings.listen
    ports = {setting: port for setting, port in listen.ports.items() if PORT_ROLES[setting] == role}
    with (
        ending(ending_path(settings.home, name)),
        role_on(settings.home, name, patience_s=PREDECESSOR_S),
        claimed_ports(listen.host, ports, settings.home, name),
        relaying(settings, SystemClock(), name, receive=role == "control"),
    ):
        if role == "lane":
            from serving.processes.lane import run_lane

            run_lane(settings, index)
        elif role == "shadow":
            from serving.processes.shadow import run_shadow

            run_shadow(settings)
        else:
            from serving.processes.control import run_control

            run_control(settings)


def demo(
    data: Annotated[
        Path | None, typer.Option(help="Descriptor of your own log; the built-in generator by default")
    ] = None,
    student: Annotated[str, typer.Option(help="good, or bad: plant a student that must not be promoted")] = "good",
    rows: Annotated[int | None, typer.Option(min=50_000, help="Rows of the generated log")] = None,
    report: Annotated[Path | None, typer.Option(help="Write the closing figures here as JSON")] = None,
    home: Annotated[Path, typer.Option(help="Folder of the demo; emptied first")] = DEMO_HOME,
    seed: Annotated[int, typer.Option(help="Seed of all random numbers")] = 0,
    ray: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Serve on this Ray cluster, whose nodes see this file system")
    ] = "",
    output: Annotated[
        Output, typer.Option("-o", "--output", help="table for people, json for programs")
    ] = Output.table,
) -> None:
    """Run a whole hand-over in a few minutes: train a teacher, transfer a student, serve both, move the traffic.

    Exit code 0: a good student reached 100 % by passing every step (on your own log: the demo ran to its end without an
    error), or a bad one was kept out.

    Example: baton demo --report demo.json
    """
    from serving.cli.demo import Demo
    from serving.cli.demo_view import show

    if student not in ("good", "bad"):
        raise InvalidInput(f"--student is good or bad, not {student!r}", "student")
    if ray:
        _need_ray()
    result = Demo(home=home, data=data, rows=rows, bad=student == "bad", seed=seed, ray=ray).run()
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(json.dumps(result, indent=1) + "\n")
    if output is Output.json:
        print_json(result, indent=1)
    else:
        show(result)
    if not result["ok"]:
        raise typer.Exit(1)


def _serve_on_ray(settings: Config, address: str) -> None:
    _need_ray()
    from serving.ray_app import APP, serve_on

    serve_on(address, settings)
    for line in _not_in_force(settings):
        say(line)
    say(
        f"application {APP} runs on the Ray cluster at {address}; `baton service list` shows the addresses of its replicas"
    )


def _need_ray() -> None:
    if importlib.util.find_spec("ray") is None:
        raise InvalidInput("Ray is not installed: pip install 'baton[ray]'", "ray")


def _check_traffic_log(settings: Config) -> None:
    """Report once, and readably, a log that every process would refuse; one that is away may come back."""
    from serving.wiring.traffic import open_traffic_log

    try:
        open_traffic_log(settings).close()
    except NotReady as error:
        say(f"{error}; processes start once it answers")


def _stop_on_signal() -> threading.Event:
    stop = threading.Event()

    def end(*_: Any) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    return stop

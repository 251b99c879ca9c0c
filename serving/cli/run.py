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

from pipeline.children import this_program
from pipeline.clock import SystemClock
from pipeline.errors import InvalidInput, NotReady
from pipeline.host import describe
from serving.cli.output import Output, print_json, say
from serving.config import Config
from serving.config.changes import needs_full_stop
from serving.runtime.claims import SERVE, role_on
from serving.runtime.endings import ending, ending_path
from serving.runtime.logs import write_logs
from serving.runtime.ports import claimed_ports
from serving.runtime.process import PARENT, die_with_parent, raise_descriptors, step_back
from serving.security.exposure import exposure
from serving.security.modes import close_home
from serving.wiring.home import check_home
from serving.wiring.in_force import warnings_of
from serving.wiring.state import relaying

__all__ = ["demo", "serve", "worker"]

ConfigFile = Annotated[Path, typer.Option("--config", help="Configuration file")]
DEMO_HOME = Path(".baton/demo")

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
    from serving.supervisor.child import Child, children_of, trial_of
    from serving.supervisor.supervisor import ENDS, HANDED, Supervisor, predecessors_ended

    handed = os.environ.pop(HANDED, "")

    settings = Config.load(config)
    if ray:
        _serve_on_ray(settings, ray)
        return
    write_logs("supervisor", settings.log_level, settings.log_format)
    warnings = close_home(settings)
    raise_descriptors()
    warnings += exposure(settings)
    path = config.resolve()

    def wanted() -> list[Child]:
        changed = Config.load(path)
        if fixed := needs_full_stop(settings, changed):
            raise InvalidInput(
                f"{path} has changed in what a restart cannot change: {', '.join(fixed)}; take that back, or end `baton serve` and "
                "start it again",
                fixed[0],
            )
        return children_of(changed, path)

    supervisor = Supervisor(
        settings.home,
        children_of(settings, path),
        hang_limit_s=settings.hang_limit,
        wanted=wanted,
        trial=trial_of(path),
        program=this_program(),
        handed=handed,
    )
    for number in ENDS:
        signal.signal(number, lambda *_: supervisor.stop())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDS)  # the program before may have held them back for this one
    show = log.info if settings.log_format == "json" else say

    @contextmanager
    def ready() -> Iterator[None]:
        if not handed:  # else they run, and go on
            predecessors_ended(settings.home, [child.name for child in supervisor.children if child.name != "worker"])
            check_home(settings)
        with claimed_ports(settings.listen.host, settings.listen.ports, settings.home, SERVE):
            if not handed:
                _check_traffic_log(settings)
            _announce(settings, [*warnings, *warnings_of(settings)], show)
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
    for line in warnings_of(settings):
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

"""The control process: joins labels, moves rollouts, answers operators. Clients' requests never pass through it.

Loops in threads of their own, the HTTP and the gRPC server on the main thread. Dead for a while it delays labels and
promotions and loses nothing: everything it knows is in the stores.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import uvicorn
import uvloop

from pipeline.clock import Clock, SystemClock
from pipeline.versions import Repository
from serving.admin import Admin
from serving.bundle_upkeep import BundleUpkeep
from serving.bundles import open_repository
from serving.config import Config
from serving.http.api import build_app
from serving.http.port import http_server
from serving.lead import LeadLost
from serving.observe import Observer, read_status
from serving.process import die_with_parent, step_back, write_status
from serving.rollout.controller import RolloutController
from serving.security.admitted import Admitted
from serving.security.certificates import open_certificates
from serving.security.doorkeeper import Doorkeeper
from serving.security.interceptor import AdmitInterceptor
from serving.security.session import Sessions
from serving.services.admin import AdminServer
from serving.services.rpc import Shell
from serving.state import installation_secret, open_control_store, open_kill_switch, open_lead
from serving.supervisor import children_of
from serving.telemetry import METRICS_DIR, Telemetry
from serving.telemetry.overview import Overview, made_ms
from serving.traffic import open_traffic_log
from serving.upkeep import TrafficUpkeep

if TYPE_CHECKING:
    from serving.cache import CacheUpkeep

__all__ = ["run_control"]

JOIN_EVERY = 0.2
PASS_EVERY = 0.5
LEAD_EVERY = 0.5
UPKEEP_EVERY = 60.0
UPKEEP_NICE = 10
REFRESH_EVERY = 1.0

log = logging.getLogger(__name__)


def run_control(config: Config) -> None:
    """Be the control process until SIGTERM or SIGINT."""
    die_with_parent()
    clock = SystemClock()
    store = open_control_store(config)
    joined, read = open_traffic_log(config), open_traffic_log(config)
    repository = open_repository(config)
    kill = open_kill_switch(config)
    observer = Observer(config.status, repository, kill, clock)
    controller = RolloutController(store, read, clock, observer, observer.schema)
    lock = threading.RLock()
    stop = threading.Event()
    server: uvicorn.Server | None = None

    def end(*_: object) -> None:
        stop.set()
        if server is not None:
            server.should_exit = True

    # uvicorn takes the signals while it runs and raises them again when it has ended: then they must not kill us.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    lead, leads = open_lead(config, clock), threading.Event()
    cache = _open_cache(config, repository, clock, stop)
    telemetry = Telemetry("control")
    if cache is not None:
        telemetry.tally(
            "baton_redis_updates", "Rows and keys that Redis was told, and failures", "what", cache.counters
        )
    admin = Admin(config, store, read, repository, controller, kill, clock, lock, cache)
    admin.endpoints.bootstrap()
    upkeep = BundleUpkeep(
        repository, config.segments, store, keep=config.bundles_keep, worker=config.worker is not None
    )
    telemetry.tally(
        "baton_bundle_upkeep", "Versions and segments removed, segments merged, and failures", "what", upkeep.counters
    )
    traffic_upkeep = TrafficUpkeep(config, joined, store)
    traffic_upkeep.publish(telemetry)
    telemetry.include(
        Overview(
            [child.name for child in children_of(config, config.home)],
            lambda: read_status(config.status, clock.wall_ms()),
            store,
            controller.snapshot,
            read.stats,
            lambda bundle, version: made_ms(repository.open(bundle, version)),
            clock,
        )
    )
    started = kept = clock.monotonic()

    def take_lead() -> None:
        if lead.hold() == leads.is_set():
            return
        if leads.is_set():
            leads.clear()
            log.warning("another control process leads now; this one answers and stands by")
        else:
            leads.set()
            log.info("this control process leads")

    def leading(body: Callable[[], None]) -> Callable[[], None]:
        """Do nothing while another process leads; write nothing once one does."""

        def guarded() -> None:
            if not leads.is_set():
                return
            try:
                with store.fenced(lead.token):
                    body()
            except LeadLost as error:
                log.warning("%s", error)

        return guarded

    def join() -> None:
        nonlocal kept
        while joined.join(clock.wall_ms()) and not stop.is_set():
            pass
        if clock.monotonic() - kept > UPKEEP_EVERY:
            kept = clock.monotonic()
            admin.endpoints.bootstrap()
            worker = read_status(config.status, clock.wall_ms()).get("worker")
            traffic_upkeep.step(worker, clock.wall_ms())

    def move() -> None:
        with lock:
            for rollout, decision in controller.step():
                if decision.event is not None:
                    log.info("%s: %s, %s", rollout, decision.event.verb, decision.reason)

    def tell() -> None:
        versions = {name: {"step_version": admin.rollouts.step_version(name)} for name in store.endpoints()}
        write_status(
            config.status / "control.json",
            {
                "process": "control",
                "time_ms": clock.wall_ms(),
                "endpoints": versions,
                "leads": leads.is_set(),
                "leader": lead.holder(),
            },
        )
        telemetry.write(config.home / METRICS_DIR)

    def tidy() -> None:
        if clock.monotonic() - started < UPKEEP_EVERY:
            return  # until then not every process has said what it needs
        step_back(UPKEEP_NICE, thread=True)
        upkeep.step(read_status(config.status, clock.wall_ms()))

    bodies = [
        ("lead", take_lead, LEAD_EVERY),
        ("label-join", leading(join), JOIN_EVERY),
        ("rollout", leading(move), PASS_EVERY),
        ("status", tell, PASS_EVERY),
        ("bundle-upkeep", tidy, UPKEEP_EVERY),
    ]
    if cache is not None:
        update = cache.step

        def refresh() -> None:
            update({k: s for k, s in read_status(config.status, clock.wall_ms()).items() if s.get("fresh")})

        bodies.append(("redis-updates", leading(refresh), REFRESH_EVERY))
    loops = [
        threading.Thread(target=_repeat, args=(name, body, pause, stop), name=name, daemon=True)
        for name, body, pause in bodies
    ]
    for loop in loops:
        loop.start()
    listen = config.listen
    doorkeeper, certificates = Doorkeeper(config, clock), open_certificates(listen)
    telemetry.tally(
        "baton_callers_refused", "Calls refused for who called, or how often, by reason", "reason",
        lambda: doorkeeper.counters,
    )  # fmt: skip
    sessions = Sessions(doorkeeper, installation_secret(config), clock, secure=listen.tls is not None)
    app = build_app(admin, config.home, Admitted())
    # A second of importing that only whoever shows pages is to pay, and after the loops have begun.
    from serving.http.console.app import mount_console

    mount_console(app, admin, config, clock, doorkeeper, sessions)
    server = http_server(app, doorkeeper, sessions, listen, certificates)
    grpc_server = AdminServer(
        admin,
        Admitted(),
        Shell(listen.max_message_bytes, clock),
        listen.address(listen.admin_port),
        interceptors=[AdmitInterceptor(doorkeeper)],
        credentials=None if certificates is None else certificates.server_credentials(),
    )

    async def answer() -> None:
        await grpc_server.start()
        log.info(
            "control answers on %s://%s, gRPC on %s",
            "http" if certificates is None else "https",
            listen.address(listen.http_port),
            listen.address(grpc_server.port),
        )
        try:
            await server.serve()
        finally:
            await grpc_server.stop()

    server.should_exit = stop.is_set()
    try:
        uvloop.run(answer())
    finally:
        stop.set()
        for loop in loops:
            loop.join(10)
        lead.release()
        admin.close()
        if cache is not None:
            cache.close()
        joined.close()
        read.close()
        store.close()


def _open_cache(config: Config, repository: Repository, clock: Clock, stop: threading.Event) -> CacheUpkeep | None:
    """Who keeps Redis up to date; imported only where there is one."""
    if config.embedding.redis is None:
        return None
    from serving.cache import CacheUpkeep

    return CacheUpkeep(config.embedding.redis, repository, clock, stop.is_set)


def _repeat(name: str, body: Callable[[], None], pause: float, stop: threading.Event) -> None:
    """Run `body` again and again; a failing pass is logged and the next one tries anew."""
    while not stop.is_set():
        try:
            body()
        except Exception:
            log.exception("a pass of %s failed; trying again", name)
            stop.wait(1.0)
        stop.wait(pause)

"""Control process: joins labels, moves rollouts, answers operators. Requests of clients never pass through it.

Its background loops are in `serving.control.loops`; its ports (console, REST, gRPC), start and end are here. While it is
dead labels and promotions are late, and nothing is lost: all its knowledge is in the stores.
"""

from __future__ import annotations

import asyncio
import logging
import signal

import uvicorn
import uvloop

from pipeline.clock import Clock
from pipeline.traffic.clock import LogClock
from serving.config import Config
from serving.control.loops import ControlLoops
from serving.http.api import build_app
from serving.http.port import PORTS, http_server
from serving.runtime.process import connections_within, die_with_parent
from serving.security.admitted import Admitted
from serving.security.authenticator import CALLER_REASONS, Authenticator
from serving.security.certificates import open_certificates
from serving.security.interceptor import AdmitInterceptor
from serving.security.session import Sessions
from serving.services.admin import AdminServer, brake_methods
from serving.services.rpc import Shell
from serving.supervisor.pulse import own_heart
from serving.wiring.backends import open_backends
from serving.wiring.state import open_lead, open_sessions
from serving.wiring.traffic import open_traffic_log

__all__ = ["run_control"]

BEAT_EVERY_S = 0.25

log = logging.getLogger(__name__)


def run_control(config: Config) -> None:
    """Run the control process until SIGTERM or SIGINT."""
    die_with_parent()
    loops: ControlLoops | None = None
    ports: _Ports | None = None
    ended = False

    def end(*_: object) -> None:
        nonlocal ended
        ended = True
        if loops is not None:
            loops.end()
        if ports is not None:
            ports.http.should_exit = True

    # uvicorn takes the signals while it runs and raises them again when it has ended: then they must not end the process.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    backends = open_backends(config)
    clock = LogClock(backends.traffic).start()
    joined, retained = open_traffic_log(config), open_traffic_log(config)
    loops = ControlLoops(config, backends, joined, retained, open_lead(config, clock), clock)
    try:
        loops.start()
        ports = _Ports(config, loops, clock)
        ports.http.should_exit = ended
        uvloop.run(ports.answer())
    finally:
        clock.close()
        loops.close()


class _Ports:
    """HTTP and gRPC of one control process, behind one authenticator."""

    def __init__(self, config: Config, loops: ControlLoops, clock: Clock) -> None:
        listen = self._listen = config.listen
        authenticator, certificates = Authenticator(config, clock), open_certificates(listen)
        loops.telemetry.tally(
            "baton_callers_refused", "Calls refused for who called, or how often, by reason", "reason",
            lambda: authenticator.counters, CALLER_REASONS,
        )  # fmt: skip
        self._sessions = open_sessions(config)
        sessions = Sessions(authenticator, self._sessions, clock, secure=listen.tls is not None)
        app = build_app(loops.admin, config.home, Admitted())
        # The import takes a second: only where pages are shown, and after the loops have started.
        from serving.http.console.app import mount_console

        mount_console(app, loops.admin, config, clock, authenticator, sessions)
        self.http: uvicorn.Server = http_server(app, authenticator, sessions, listen, certificates)
        self._grpc = AdminServer(
            loops.admin,
            Admitted(),
            Shell(listen.max_message_bytes, clock),
            listen.address(listen.admin_port),
            interceptors=[AdmitInterceptor(authenticator, brake_methods())],
            credentials=None if certificates is None else certificates.server_credentials(),
            connections=connections_within(listen.limits.connections, PORTS),
        )

    async def answer(self) -> None:
        """Answer until the HTTP server exits."""
        await self._grpc.start()
        beating = asyncio.create_task(_beat(), name="control-pulse")
        listen = self._listen
        log.info(
            "control answers on %s://%s, gRPC on %s",
            "http" if listen.tls is None else "https",
            listen.address(listen.http_port),
            listen.address(self._grpc.port),
        )
        try:
            await self.http.serve()
        finally:
            await self._grpc.stop()
            self._sessions.close()
            beating.cancel()


async def _beat() -> None:
    """Give signs of life of the loop that answers."""
    heart = own_heart("ports")
    while True:
        heart.beat()
        await asyncio.sleep(BEAT_EVERY_S)

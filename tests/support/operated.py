"""An installation for admin tests: real stores, the rollout loop by hand, and all interfaces over one `Admin`."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
import yaml
from clocks import HandClock
from fastapi import FastAPI
from installation import Installation, eventually

from serving.admin import Admin
from serving.config.principal import Role
from serving.http.api import build_app
from serving.rollout.controller import RolloutController
from serving.security.tokens import LOCAL, TokenAuthenticator, TokenStore
from serving.services.admin import AdminServer
from serving.services.rpc import Shell
from serving.wiring.backends import open_backends
from serving.wiring.observe import Observer

ME = LOCAL
MESSAGE_BYTES = 4 << 20


def rollout_file(**changes: Any) -> str:
    """A rollout of `ranker` to `student` in three steps."""
    steps = [
        {"shadow": True, "min_positives": 100},
        {"weight": 10, "bias_below": 0.1},
        {"weight": 100, "bias_below": 0.05},
    ]
    file = {"endpoint": "ranker", "candidate": {"bundle": "student"}, "steps": steps, "guards": {}, **changes}
    return yaml.safe_dump(file)


class Operated:
    """`admin` of an installation without processes, its `controller`, whose `step` is the rollout loop, and its clock."""

    def __init__(self, made: Installation, clock: Any = None) -> None:
        self.made = made
        self.clock = clock or HandClock()
        self.backends = open_backends(made.config)
        self.traffic, self.kill = self.backends.traffic, self.backends.kill
        observe = Observer(made.config.status, made.repository, self.kill, self.clock)
        self.controller = RolloutController(
            self.backends.store,
            self.traffic,
            self.clock,
            observe,
            observe.schema,
            lambda endpoint, reason: self.kill.engage(endpoint, reason, "controller"),
        )
        self.admin = Admin(made.config, self.backends, self.controller, self.clock, threading.RLock())
        self.tokens = TokenStore(made.config.tokens)
        self.authenticator = TokenAuthenticator(self.tokens, self.clock, loopback=True)

    def token(self, role: Role) -> str:
        """A token; from the first one on every call needs one."""
        return self.tokens.create(f"the-{role}", role, self.clock.wall_ms())[1]

    def app(self) -> FastAPI:
        return build_app(self.admin, self.made.home, self.authenticator)

    def close(self) -> None:
        self.admin.close()
        self.backends.close()


@contextlib.contextmanager
def operated(home: Path, **settings: object) -> Iterator[Operated]:
    """An installation in its own home."""
    made = Installation(home, **settings)
    world = Operated(made)
    try:
        yield world
    finally:
        world.close()
        made.store.close()


@contextlib.contextmanager
def http_port(world: Operated) -> Iterator[int]:
    """A listening HTTP port."""
    server = uvicorn.Server(
        uvicorn.Config(world.app(), port=0, log_level="error", timeout_graceful_shutdown=1, lifespan="off")
    )
    thread = threading.Thread(target=server.run, name="test-http", daemon=True)
    thread.start()
    try:
        eventually(lambda: server.started, "the HTTP port listens", 60)
        yield int(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(20)


@contextlib.contextmanager
def admin_port(world: Operated) -> Iterator[int]:
    """A listening gRPC admin port, on its own event loop."""
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="test-admin", daemon=True)
    thread.start()
    server = AdminServer(world.admin, world.authenticator, Shell(MESSAGE_BYTES, world.clock), "127.0.0.1:0")
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(60)
        yield server.port
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(1), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)
        loop.close()

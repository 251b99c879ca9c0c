"""State that processes share, as configured: in `home`, or in a Redis that several machines share."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pipeline.clock import Clock, SystemClock
from pipeline.errors import InvalidInput
from pipeline.traffic.prediction import load_secret
from serving.config import Config
from serving.rollout.identity import HomeIdentity
from serving.rollout.routing import Endpoint
from serving.rollout.sqlite_store import SqliteControlStore
from serving.rollout.store import ControlStore
from serving.security.session import SessionRows
from serving.state.directory import FileDirectory, ServiceDirectory
from serving.state.idempotency import Keys, SqliteKeys
from serving.state.kill import KillSwitch
from serving.state.leader import FileLead, Lead
from serving.state.sessions import SqliteSessions
from serving.state.snapshot import SnapshotFile

if TYPE_CHECKING:
    from pipeline.redis.address import RedisAddress
    from serving.state.redis.tenure import RedisTenure

__all__ = [
    "agree_secret",
    "installation_secret",
    "node_name",
    "open_control_store",
    "open_directory",
    "open_keys",
    "open_kill_switch",
    "open_lead",
    "open_sessions",
    "open_snapshot",
    "open_tenure",
    "relaying",
    "stored_endpoints",
]

_HOST_LETTERS = 90
KEPT_KEYS = 1000
KEPT_KEYS_MS = 24 * 3600 * 1000


def open_control_store(config: Config) -> ControlStore:
    """Control store of the installation (endpoints, rollouts, audit), created when absent.

    The first store that a home meets is its state; one that is empty or another's later is opened, and its methods raise
    StateLost.

    Raises:
        InvalidInput: the Redis is not durable, see `RedisControlStore`. NotReady: it cannot be reached now.
    """
    identity = HomeIdentity(config.state_identity)
    if not config.state.url:
        return SqliteControlStore(config.control_db, identity)
    # `redis` is imported only where one is configured.
    from serving.state.redis.control_store import RedisControlStore

    return RedisControlStore(_address(config), identity=identity)


def open_snapshot(config: Config) -> SnapshotFile:
    """Snapshot of the state in the home."""
    return SnapshotFile(config.state_snapshot, SystemClock())


def stored_endpoints(config: Config) -> dict[str, Endpoint]:
    """Endpoints of the installation; empty, without creating a store, where it has never run."""
    if not config.state.url and not config.control_db.exists():
        return {}
    store = open_control_store(config)
    try:
        return store.endpoints()
    finally:
        store.close()


def open_kill_switch(config: Config) -> KillSwitch:
    """Kill switch of the installation."""
    if not config.state.url:
        return KillSwitch(config.home)
    from serving.state.redis.kill import RedisKillFlags

    remembered = open_snapshot(config).known().killed
    return KillSwitch(config.home, RedisKillFlags(_address(config), remembered=remembered, identity=_known(config)))


def open_keys(config: Config) -> Keys:
    """Store of idempotency keys of the last 24 hours; in a file the newest 1,000 at most."""
    if not config.state.url:
        return SqliteKeys(config.control_db, kept=KEPT_KEYS, kept_ms=KEPT_KEYS_MS, make=False)
    from serving.state.redis.idempotency import RedisKeys

    return RedisKeys(_address(config), kept_ms=KEPT_KEYS_MS, identity=_known(config))


def open_sessions(config: Config) -> SessionRows:
    """Store of the browser sessions of an installation."""
    if not config.state.url:
        return SqliteSessions(config.sessions_db)
    from serving.state.redis.sessions import RedisSessions

    return RedisSessions(_address(config))


def open_lead(config: Config, clock: Clock) -> Lead:
    """Leader election of the installation's control processes; the lead is not taken yet."""
    if not config.state.url:
        return FileLead(config.home / "run" / "lead", _owner(config))
    from serving.state.redis.leader import RedisLead

    return RedisLead(_address(config), _owner(config), clock, config.state.lease, identity=_known(config))


def open_tenure(config: Config, endpoint: str, clock: Clock) -> RedisTenure | None:
    """The tenure of an endpoint's worker, not taken yet; None on one machine, where the claim of its home is enough."""
    if not config.state.url:
        return None
    from serving.state.redis.leader import RedisLead
    from serving.state.redis.tenure import RedisTenure, lead_of

    lead = RedisLead(
        *(_address(config), _owner(config), clock, config.state.lease), what=lead_of(endpoint), identity=_known(config)
    )
    return RedisTenure(lead, endpoint, node_name(config))


def open_directory(config: Config, clock: Clock) -> ServiceDirectory:
    """The directory of the installation's replicas."""
    if not config.state.url:
        return FileDirectory(config.home / "run" / "replicas", clock)
    from serving.state.redis.directory import RedisDirectory

    return RedisDirectory(_address(config), _known(config))


def node_name(config: Config) -> str:
    """Name of this machine among those that share a state; two homes on one machine are two nodes."""
    home = hashlib.blake2b(os.fsencode(config.home.resolve()), digest_size=3).hexdigest()
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:_HOST_LETTERS]
    return config.state.node or f"{host}-{home}"


def installation_secret(config: Config) -> bytes:
    """Secret key of prediction ids and routing hashes; machines that share a state have the same.

    Raises:
        InvalidInput: this home has another secret. NotReady: the shared state cannot be reached now.
    """
    known = HomeIdentity(config.state_identity).known
    if not config.state.url or (known and config.secret.exists()):
        return load_secret(config.secret)  # of the state that this home has met, which has no other one
    return agree_secret(config)


def agree_secret(config: Config) -> bytes:
    """The same, told to a shared state that has none. Raises: as `installation_secret`."""
    if not config.state.url:
        return load_secret(config.secret)
    from serving.state.redis.secret import agree_on_secret

    return agree_on_secret(_address(config), config.secret, HomeIdentity(config.state_identity).known)


@contextlib.contextmanager
def relaying(config: Config, clock: Clock, name: str, *, receive: bool = False) -> Iterator[None]:
    """While it lasts other machines know the status of this process, where there are others; see `Relay`."""
    if not config.state.url:
        yield
        return
    from serving.state.redis.relay import Relay

    relay = Relay(
        *(_address(config), config.status, node_name(config), clock),
        name=name,
        receive=receive,
        identity=_known(config),
    )
    relay.start()
    try:
        yield
    finally:
        relay.stop()


def _owner(config: Config) -> str:
    return f"{node_name(config)} pid {os.getpid()}"


def _known(config: Config) -> Callable[[], str]:
    """Reads the identity that the home knows now: it may meet its first state, or be given another one, at any time."""
    path, read, seen = config.state_identity, "", 0

    def known() -> str:
        nonlocal read, seen
        with contextlib.suppress(OSError, InvalidInput):
            changed = path.stat().st_mtime_ns
            if changed != seen:
                read, seen = HomeIdentity(path).known, changed
        return read

    return known


def _address(config: Config) -> RedisAddress:
    from serving.wiring.redis import redis_address  # imports redis, which is not needed without one

    return redis_address(config.state, "state")

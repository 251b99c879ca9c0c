"""Opens the state that processes share, as the configuration names it: in `home`."""

from __future__ import annotations

from serving.config import Config
from serving.rollout.sqlite_store import SqliteControlStore
from serving.rollout.store import ControlStore
from serving.routing import Endpoint

__all__ = ["open_control_store", "stored_endpoints"]


def open_control_store(config: Config) -> ControlStore:
    """Endpoints, rollouts and audit of the installation, made when absent."""
    return SqliteControlStore(config.control_db)


def stored_endpoints(config: Config) -> dict[str, Endpoint]:
    """What the installation knows of endpoints; nothing, and nothing is made, where it has never run."""
    if not config.control_db.exists():
        return {}
    store = open_control_store(config)
    try:
        return store.endpoints()
    finally:
        store.close()

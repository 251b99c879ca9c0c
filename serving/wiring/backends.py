"""Backends of one installation, as configured: what the control process and the admin verbs read and write."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.bundle.versions import Repository
from pipeline.clock import SystemClock
from pipeline.traffic.log import TrafficLog
from serving.config import Config
from serving.lane.probes import Probes
from serving.rollout.store import ControlStore
from serving.state.idempotency import Keys
from serving.state.kill import KillSwitch
from serving.state.snapshot import SnapshotFile
from serving.wiring.bundles import open_repository
from serving.wiring.probes import open_probes
from serving.wiring.state import (
    installation_secret,
    open_control_store,
    open_keys,
    open_kill_switch,
    open_snapshot,
)
from serving.wiring.traffic import open_traffic_log

__all__ = ["Backends", "open_backends"]


@dataclass(frozen=True, slots=True)
class Backends:
    """Stores of one installation. `secret`: key of its prediction ids and routing hashes; `snapshot`: of its state."""

    store: ControlStore
    traffic: TrafficLog
    repository: Repository
    probes: Probes
    kill: KillSwitch
    keys: Keys
    secret: bytes
    snapshot: SnapshotFile

    def close(self) -> None:
        """Close all of them."""
        self.keys.close()
        self.traffic.close()
        self.store.close()


def open_backends(config: Config) -> Backends:
    """Open them; what is absent is created.

    Raises:
        InvalidInput: a store is not fit for its task. NotReady: it cannot be reached now.
    """
    secret = installation_secret(config)  # first: databases without it are a home that has lost a part
    repository = open_repository(config)
    return Backends(
        open_control_store(config),
        open_traffic_log(config),
        repository,
        open_probes(config, repository, SystemClock()),
        open_kill_switch(config),
        open_keys(config),
        secret,
        open_snapshot(config),
    )

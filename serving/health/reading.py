"""Reading of an installation: everything its health is judged by, from whichever sources answer.

Processes tell of themselves in files, so they are known while the control process hangs. Endpoints, rollouts and the freeze
are in the state; while that is away, `state` is None and `state_fault` says why, and what the lanes last read of it is in
their reports. Nothing here raises for a source that does not answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.errors import BatonError
from serving.rollout.routing import Endpoint
from serving.rollout.status.freeze import Freeze, freeze_of
from serving.rollout.store import ControlStore, StoredRollout
from serving.runtime.roster import ProcessState
from serving.runtime.status import Statuses
from serving.runtime.stores import StoreStatus

__all__ = ["Reading", "StateReading", "read_state"]

STATE_LIMIT_S = 3.0
"""Time in which the state has answered; a Redis that hangs must not hold up the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateReading:
    """What the state says. `rollouts`: the newest of each endpoint that has had one."""

    endpoints: Mapping[str, Endpoint] = field(default_factory=dict)
    rollouts: Mapping[str, StoredRollout] = field(default_factory=dict)
    freeze: Freeze | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """An installation at one time, Unix milliseconds.

    Args:
        source: where it was read, in words.
        control_away: why the control process did not answer whoever asks; "": it did.
        runs: whether any process of the installation runs here.
        stores: as they are now, or as the control process last saw them.
        state: None where it cannot be read, for the reason `state_fault`.
    """

    now_ms: int
    source: str
    processes: Sequence[ProcessState]
    statuses: Statuses
    stores: Sequence[StoreStatus]
    state: StateReading | None
    state_fault: str = ""
    control_away: str = ""
    runs: bool = True


def _newest(store: ControlStore, name: str) -> StoredRollout | None:
    found = store.find_rollout(name)
    return None if found is None else store.with_cause(found)


def read_state(open_store: Callable[[], ControlStore], now_ms: int, *, close: bool) -> tuple[StateReading | None, str]:
    """The state, or None and why it cannot be read, within `STATE_LIMIT_S`.

    Args:
        close: whether the store is closed again.
    """
    found: list[StateReading] = []
    fault: list[str] = []

    def read() -> None:
        try:
            store = open_store()
            try:
                endpoints = store.endpoints()
                rollouts = {name: stored for name in endpoints if (stored := _newest(store, name)) is not None}
                found.append(StateReading(endpoints=endpoints, rollouts=rollouts, freeze=freeze_of(store, now_ms)))
            finally:
                if close:
                    store.close()
        except BatonError as error:
            fault.append(str(error))

    thread = threading.Thread(target=read, name="health-state", daemon=True)
    thread.start()
    thread.join(STATE_LIMIT_S)
    if found:
        return found[0], ""
    return None, fault[0] if fault else f"it has not answered within {STATE_LIMIT_S:.0f} s"

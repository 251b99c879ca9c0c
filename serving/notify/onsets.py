"""Onsets that no change of a rollout writes into the audit: a stay that is long, a worker that is down. They are written here.

An onset and the note that it was written are one transaction, so each is in the audit once, whatever restarts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.clock import Clock
from serving.config.notify import HELD, NotifyConfig
from serving.rollout.state import Phase
from serving.rollout.store import ControlStore, StoredRollout, Who, brief
from serving.runtime.roster import ProcessState

__all__ = ["ONSETS", "Onsets"]

ONSETS = "onsets"
"""Name of the setting: which are written."""
DOWN_MS = 30_000
"""Time for which a worker is down before it is told of: one that is started again at once is not."""
ACTOR = "controller"
_WAITS = frozenset({Phase.PROGRESSING, Phase.DEGRADED, Phase.PAUSED})


class Onsets:
    """Writer of onsets that some receiver wants to be told of."""

    def __init__(self, store: ControlStore, receivers: Sequence[NotifyConfig], clock: Clock) -> None:
        triggers = [trigger for receiver in receivers for trigger in receiver.on]
        self._store, self._clock = store, clock
        self._held = sorted({trigger.seconds for trigger in triggers if trigger.event == HELD})
        self._worker = any(trigger.event == "worker_down" for trigger in triggers)
        self._down_ms: int | None = None

    def step(self, processes: Sequence[ProcessState]) -> None:
        """Write what has begun. Raises: NotReady."""
        if self._held:
            for stored in self._store.rollouts(active=True):
                self._stay(stored)
        if self._worker:
            worker = next((process for process in processes if process.name == "worker"), None)
            if worker is not None:
                self._look_at(worker)

    def _stay(self, stored: StoredRollout) -> None:
        state, now = stored.state, self._clock.wall_ms()
        if state.phase not in _WAITS:
            return
        written = self._written()
        known = written.get(stored.id, {})
        longest = known.get("longest_s", 0.0) if known.get("entered_ms") == state.entered_ms else 0.0
        for seconds in self._held:
            if longest < seconds and now - state.entered_ms >= 1000 * seconds:
                written = {**written, stored.id: {"entered_ms": state.entered_ms, "longest_s": seconds}}
                after = {
                    "state": brief(state),
                    "endpoint": {"weight": state.weight},
                    "longer_than_s": seconds,
                    "code": stored.status.get("code", ""),
                }
                reason = f"at this step for longer than {seconds / 3600:g} h: {stored.status.get('reason', '')}"
                self._write("held_long", reason, after, written, stored)

    def _look_at(self, worker: ProcessState) -> None:
        now, written = self._clock.wall_ms(), self._written()
        if worker.well:
            self._down_ms = None
            if written.get("worker_down"):
                self._write(
                    "worker_up", f"it is {worker.state}", {"worker": worker.state}, {**written, "worker_down": False}
                )
            return
        self._down_ms = now if self._down_ms is None else min(self._down_ms, now)
        if now - self._down_ms >= DOWN_MS and not written.get("worker_down"):
            reason = f"the worker is {worker.state}" + (f": {worker.why}" if worker.why else "")
            self._write("worker_down", reason, {"worker": worker.state}, {**written, "worker_down": True})

    def _written(self) -> dict[str, Any]:
        return self._store.setting(ONSETS)

    def _write(
        self,
        verb: str,
        reason: str,
        after: Mapping[str, Any],
        written: Mapping[str, Any],
        stored: StoredRollout | None = None,
    ) -> None:
        place = ("", "") if stored is None else (stored.spec.endpoint, stored.id)
        who = Who(ACTOR, reason, self._clock.wall_ms())
        active = {rollout.id for rollout in self._store.rollouts(active=True)}
        kept = {key: value for key, value in written.items() if key == "worker_down" or key in active}
        self._store.note(verb, who, after, *place, setting=(ONSETS, kept))

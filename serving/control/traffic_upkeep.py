"""Retention of the traffic log, in the control process: predictions and labels go when they are old or too many.

Rows that are still needed stay: those that the worker has not read, those that a rollout's evidence began with. Then the
log is larger or older than configured; a log entry and `baton_traffic_held_back` report it. The retention of models is
`serving.control.bundle_upkeep`.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import asdict

from pipeline.traffic.log import Retained, TrafficLog
from serving.config import Config
from serving.rollout.status.holds import holds_of, key_name
from serving.rollout.store import ControlStore
from serving.runtime.status import WorkerStatus
from serving.telemetry import Telemetry

__all__ = ["TrafficUpkeep"]

KINDS = ("predictions", "feedback", "labelled", "parked")

log = logging.getLogger(__name__)


class TrafficUpkeep:
    """Keeps the traffic log within the configured time and size. One thread calls it.

    Attributes:
        removed: predictions, feedback, labelled and parked entries deleted so far.
        held: what the last step had to leave.
    """

    def __init__(self, config: Config, traffic: TrafficLog, store: ControlStore) -> None:
        self._config = config
        self._traffic = traffic
        self._store = store
        self.removed: Counter[str] = Counter()
        self.held = Retained()

    def step(self, worker: WorkerStatus | None, now_ms: int) -> None:
        """Delete rows beyond retention, up to the place of the slowest reader.

        Args:
            worker: its status; None: it has written none.
        """
        settings = self._config.traffic
        places = [stored.state.evidence_seq for stored in self._store.rollouts(active=True)]
        if self._config.worker is not None:
            # What it has read since its last checkpoint it reads again after a crash.
            places.append(0 if worker is None else worker.committed)
        holds = holds_of(self._store)
        done = self._traffic.retain(
            now_ms - round(1000 * settings.retention_s),
            min(places, default=None),
            settings.retention_bytes or None,
            keep=holds.keys(),
        )
        if done.kept != self.held.kept:
            named = "; ".join(f"{key_name(hashed)} {hold}" for hashed, hold in holds.items())
            log.info("%d predictions beyond retention stay for legal holds: %s", done.kept, named or "none")
        for kind in KINDS:
            self.removed[kind] += getattr(done, kind)
        self.held = done
        if done.held_back:
            log.warning("retention waits for a reader that has not read that far: %s", asdict(done))

    def publish(self, telemetry: Telemetry) -> None:
        """Publish counts of removed entries and of those that had to stay."""
        telemetry.tally(
            "baton_traffic_removed",
            "Entries that left the traffic log by retention",
            "kind",
            lambda: self.removed,
            KINDS,
        )
        telemetry.gauges(
            "baton_traffic_held_back",
            "Predictions beyond retention that a reader or the join still needs, and bytes beyond its size",
            ("what",),
            lambda: {(what,): float(getattr(self.held, what)) for what in ("unread", "unjoined", "over_bytes")},
        )
        telemetry.gauges(
            "baton_traffic_kept_predictions",
            "Predictions beyond retention that stay since their routing key is held",
            (),
            lambda: {(): float(self.held.kept)},
        )

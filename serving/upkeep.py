"""Housekeeping of traffic, in the control process: old predictions and labels go.

What someone still needs stays: rows that the worker has not read, rows that a rollout's evidence began with. Models are
`serving.bundle_upkeep`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pipeline.traffic.sqlite import SqliteTrafficLog
from serving.config import Config
from serving.rollout.store import ControlStore

__all__ = ["retain_traffic"]

log = logging.getLogger(__name__)


def retain_traffic(
    config: Config, traffic: SqliteTrafficLog, store: ControlStore, worker: Mapping[str, Any] | None, now_ms: int
) -> None:
    """Delete predictions and labels beyond the retention, up to what the slowest reader still needs."""
    places = [stored.state.evidence_seq for stored in store.rollouts(active=True)]
    if config.worker is not None:
        # What it has read since its last checkpoint it reads again after a crash.
        places.append(int((worker or {}).get("committed", 0)))
    done = traffic.retain(now_ms - round(1000 * config.traffic.retention), min(places, default=None))
    if done.held_back:
        log.warning("retention waits for a reader that has not read that far: %s", asdict(done))

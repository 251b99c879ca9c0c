"""Housekeeping of the control process: old traffic goes, segments of versions that nobody serves go.

What someone still needs stays: rows that the worker has not read, rows that a rollout's evidence began with, segments of
versions that a process serves or may go back to.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.embedding.generations import sweep
from pipeline.errors import BatonError
from pipeline.traffic.sqlite import SqliteTrafficLog
from pipeline.versions import Repository
from serving.config import Config
from serving.rollout.store import ControlStore

__all__ = ["retain_traffic", "sweep_segments"]

KEEP_NEWEST = 3

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


def sweep_segments(folder: Path, repository: Repository, processes: Mapping[str, Mapping[str, Any]]) -> int:
    """Remove segments that only versions use which no process reports and which are not among the newest; their number."""
    served: dict[str, set[str]] = {}
    for status in processes.values():
        for arms in status.get("endpoints", {}).values():
            for arm in arms.values():
                if "bundle" in arm:
                    served.setdefault(arm["bundle"], set()).update({arm["version"], arm["wanted"]} - {""})
    removed = 0
    for name in repository.names():
        keep = served.get(name, set()) | set(repository.versions(name)[-KEEP_NEWEST:])
        try:
            chains = [repository.chain(repository.open(name, version)) for version in keep]
        except BatonError as error:
            log.warning("segments of %s are left alone: %s", name, error)
            continue
        removed += sweep(folder / name, chains)
    return removed

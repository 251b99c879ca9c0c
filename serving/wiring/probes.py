"""Probes of versions in one process, as configured."""

from __future__ import annotations

from pipeline.bundle.versions import Repository
from pipeline.clock import Clock
from pipeline.model.probe import ProbeLimits
from serving.config import Config
from serving.lane.probes import Probes

__all__ = ["open_probes"]


def open_probes(config: Config, repository: Repository, clock: Clock) -> Probes:
    """Probes of one process; the machine's processes share their verdicts."""
    limits = ProbeLimits(config.engine.load_timeout, config.engine.load_memory_bytes)
    return Probes(repository, config.segments, limits, clock)

"""Verbs of the embedding cache: which tier answers, what Redis holds, and bringing rows into it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from pipeline.bundle.versions import Repository
from pipeline.clock import Clock
from pipeline.errors import Conflict
from serving.admin import answers as a
from serving.admin import requests as r
from serving.admin.processes import ProcessReports
from serving.config.principal import Principal
from serving.rollout.store import ControlStore, Who
from serving.tiers.report import summed

if TYPE_CHECKING:
    from serving.tiers.cache import CacheUpkeep
    from serving.tiers.warm import Warming

__all__ = ["CacheVerbs"]

ENDS_WITHIN_S = 10.0


class CacheVerbs:
    """See `serving.admin.verbs`; every method is the verb of its name.

    Args:
        upkeep: who keeps the Redis tier up to date, None where there is no Redis.
    """

    def __init__(
        self,
        store: ControlStore,
        repository: Repository,
        processes: ProcessReports,
        clock: Clock,
        upkeep: CacheUpkeep | None,
    ) -> None:
        self._store = store
        self._repository = repository
        self._processes = processes
        self._clock = clock
        self._upkeep = upkeep
        self._lock = threading.Lock()
        self._warming: Warming | None = None

    def stats(self, request: r.Nothing, by: Principal) -> a.Cache:
        """`tables` and `tiers` as `serving.tiers.report.summed`, `shared` as `CacheUpkeep.report`."""
        warming = self._warming
        return a.Cache(
            **summed(self._processes.all().fresh().lanes),
            shared=None if self._upkeep is None else self._upkeep.report(),
            warming=None if warming is None else a.CacheWarming(**warming.told()),
        )

    def warm(self, request: r.CacheWarm, by: Principal) -> a.CacheWarming:
        """Begin to write a version's rows, or what of it is missing; `stats` says how far that has come.

        Raises:
            Conflict: there is no Redis, or another run goes on.
            NotFound, InvalidInput: see `serving.tiers.cache.versions_of`.
        """
        if self._upkeep is None:
            raise Conflict("the configuration names no embedding.redis; there is nothing to load rows into")
        from serving.tiers.cache import versions_of
        from serving.tiers.warm import Warming

        versions = versions_of(self._repository, self._store.endpoints(), request.name, request.version)
        with self._lock:
            if self._warming is not None and self._warming.running:
                raise Conflict(f"rows of {self._warming.told()['name']!r} are being written; wait for their end")
            self._warming = Warming(request.name, versions, self._upkeep.updater(), self._repository, self._clock)
        self._store.note(
            "cache-warm",
            Who(by.name, request.reason, self._clock.wall_ms()),
            {"versions": [f"{bundle.manifest.name}/{bundle.manifest.version}" for bundle in versions]},
        )
        return a.CacheWarming(**self._warming.told())

    def close(self) -> None:
        """Wait a moment for a run; the process's end stops it, and the next one goes on where it stood."""
        if self._warming is not None:
            self._warming.join(ENDS_WITHIN_S)

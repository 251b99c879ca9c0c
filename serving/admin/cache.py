"""Verbs of the embedding cache: figures of its tiers and of Redis, and writing rows into Redis."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from pipeline.errors import Conflict
from serving.admin import answers as a
from serving.admin import requests as r
from serving.admin.service import Parts, Service
from serving.config.principal import Principal
from serving.tiers.report import summed

if TYPE_CHECKING:
    from serving.tiers.cache import CacheUpkeep
    from serving.tiers.warm import Warming

__all__ = ["CacheVerbs"]

ENDS_WITHIN_S = 10.0


class CacheVerbs(Service):
    """Verbs of the embedding cache.

    Args:
        upkeep: of the Redis tier; None where there is no Redis.
    """

    def __init__(self, parts: Parts, upkeep: CacheUpkeep | None) -> None:
        super().__init__(parts)
        self._upkeep = upkeep
        self._warm_lock = threading.Lock()
        self._warming: Warming | None = None

    def stats(self, request: r.Nothing, by: Principal) -> a.Cache:
        """`tables` and `tiers` as `serving.tiers.report.summed`, `shared` as `CacheUpkeep.report`."""
        warming = self._warming
        return a.Cache(
            **summed(self._processes.all().fresh().lanes),
            shared=None if self._upkeep is None else self._upkeep.report(),
            warming=None if warming is None else a.CacheWarming(**warming.report()),
        )

    def warm(self, request: r.CacheWarm, by: Principal) -> a.CacheWarming:
        """Begin to write the missing rows of a version; `stats` reports the progress.

        Raises:
            Conflict: there is no Redis, or another run has not ended.
            NotFound, InvalidInput: see `serving.tiers.cache.versions_of`.
        """
        if self._upkeep is None:
            raise Conflict("the configuration names no embedding.redis; there is nothing to load rows into")
        from serving.tiers.cache import versions_of
        from serving.tiers.warm import Warming

        versions = versions_of(self._repository, self._store.endpoints(), request.name, request.version)
        with self._warm_lock:
            if self._warming is not None and self._warming.running:
                raise Conflict(f"rows of {self._warming.report()['name']!r} are being written; wait for their end")
            self._warming = Warming(request.name, versions, self._upkeep.updater(), self._repository, self._clock)
        self._store.note(
            "cache-warm",
            self._who(by, request),
            {"versions": [f"{bundle.manifest.name}/{bundle.manifest.version}" for bundle in versions]},
        )
        return a.CacheWarming(**self._warming.report())

    def close(self) -> None:
        """Wait a moment for a run. The end of the process stops it, and the next run resumes it."""
        if self._warming is not None:
            self._warming.join(ENDS_WITHIN_S)

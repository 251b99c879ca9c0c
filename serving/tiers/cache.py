"""Upkeep of the embedding rows in Redis: the versions that it should hold, and the loop that brings them there.

Imported only where the configuration names a Redis. The control process brings every base generation that a lane serves
or wants to the newest version on it that lanes have, and the newest base in the repository beforehand, so that a lane
that swaps finds its rows there; `baton cache warm` does the same by hand. What writes is `pipeline.embedding.redis.updates`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.bundle.bundle import Bundle
from pipeline.bundle.versions import Repository
from pipeline.clock import Clock
from pipeline.embedding.redis.marks import RedisGeneration
from pipeline.embedding.redis.updates import RedisUpdater
from pipeline.errors import BatonError, Conflict, InvalidInput, NotFound
from serving.config import RedisConfig
from serving.rollout.routing import is_observed
from serving.runtime.status import Statuses
from serving.wiring.embedding import redis_updater

__all__ = ["CacheUpkeep", "versions_of", "versions_to_hold"]

SWEEP_EVERY_S = 60.0

log = logging.getLogger(__name__)


def versions_to_hold(repository: Repository, statuses: Statuses) -> list[Bundle]:
    """The version that each base generation should be at: of every bundle that lanes serve or want, the newest on each
    base, and the newest that may serve where its base is served by none yet."""
    found: list[Bundle] = []
    for name, versions in sorted(statuses.served_versions().items()):
        newest: dict[str, Bundle] = {}
        try:
            for version in sorted(versions, key=int):
                bundle = repository.open(name, version)
                newest[bundle.manifest.base or version] = bundle
            latest = repository.open(name)
        except BatonError as error:
            log.warning("rows of %s are left as they are in redis: %s", name, error)
            continue
        newest.setdefault(latest.manifest.base or latest.manifest.version, latest)
        found += newest.values()
    return found


class CacheUpkeep:
    """Keeps Redis at the versions that lanes serve; one thread calls `step` again and again.

    Args:
        config: of the Redis.
        stopped: checked between chunks; True ends a pass.
    """

    def __init__(self, config: RedisConfig, repository: Repository, clock: Clock, stopped: Callable[[], bool]) -> None:
        self._config = config
        self._repository = repository
        self._clock = clock
        self._stopped = stopped
        self._updater = self.updater()
        self._swept = clock.monotonic()
        self._problem = ""
        self.rows = 0
        self.removed = 0
        self.failures = 0

    def updater(self) -> RedisUpdater:
        """Another writer of the same rows, which ends with this one's process; the caller closes it."""
        return redis_updater(self._config, self._repository, self._stopped)

    def step(self, statuses: Statuses) -> None:
        """Bring every generation that is served to its version; sweep generations that are not served from time to time."""
        used, problem = [], ""
        for bundle in versions_to_hold(self._repository, statuses):
            try:
                chain = self._repository.chain(bundle)
                used.append(RedisGeneration.of(chain[0], self._config.rows))
                done = self._updater.bring(chain)
            except Conflict:
                continue  # another machine is at it
            except (BatonError, OSError) as error:
                self.failures += 1
                problem = str(error)
                continue
            self.rows += done.rows
            if done.rows:
                log.info(
                    "redis has %s at version %s: %d rows written", bundle.manifest.name, done.applied[-1], done.rows
                )
        if used and self._clock.monotonic() - self._swept > SWEEP_EVERY_S:
            self._swept = self._clock.monotonic()
            try:
                self.removed += self._updater.sweep(used, self._config.keep_unused)
            except BatonError as error:
                problem = str(error)
        if problem and problem != self._problem:
            log.error("redis is not brought up to date: %s", problem)
        self._problem = problem

    def counters(self) -> dict[str, int]:
        """Of this process: `rows_written`, `keys_removed`, `failures`."""
        return {"rows_written": self.rows, "keys_removed": self.removed, "failures": self.failures}

    def report(self) -> dict[str, Any]:
        """The counters, `error` of the last pass (None: it went well), and under `redis` the figures of
        `RedisUpdater.report` (None: it cannot be reached). Safe to call from any thread."""
        try:
            redis = self._updater.report()
        except BatonError:
            redis = None
        return {**self.counters(), "error": self._problem or None, "redis": redis}

    def close(self) -> None:
        self._updater.close()


def versions_of(repository: Repository, endpoints: Mapping[str, Any], name: str, version: str) -> list[Bundle]:
    """Versions that `baton cache warm NAME` writes: of an endpoint's arms, or of a bundle; the newest that may serve by default.

    Args:
        endpoints: by name, with `stable` and `candidate` as in `Endpoint`.

    Raises:
        NotFound: neither an endpoint nor a bundle has the name, or there is no such version.
        InvalidInput: a version of an endpoint, whose arms have versions of their own.
    """
    endpoint = endpoints.get(name)
    if endpoint is None:
        if name not in repository.names():
            known = sorted([*endpoints, *repository.names()])
            raise NotFound(f"there is no endpoint and no bundle {name!r}; there are {known or 'none'}")
        return [repository.open(name, version)]
    if version:
        raise InvalidInput(
            f"{name!r} is an endpoint, whose arms have versions of their own; name the bundle", "version"
        )
    newest: dict[tuple[str, str], Bundle] = {}
    for arm in (endpoint.stable, endpoint.candidate):
        if arm is not None and not is_observed(arm.bundle):
            bundle = repository.open(arm.bundle, str(arm.version or "") if arm.version != "0" else "")
            key = arm.bundle, bundle.manifest.base or bundle.manifest.version
            if key not in newest or int(newest[key].manifest.version) < int(bundle.manifest.version):
                newest[key] = bundle
    return list(newest.values())

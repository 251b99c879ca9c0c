"""Run of `baton cache warm`: writes the rows of versions into Redis, and reports its progress and result.

The control process updates the same rows every second for a moment; then a run waits, a few times. A run resumes where an
earlier one was ended. Next: `pipeline.embedding.redis.updates`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.bundle.bundle import Bundle
from pipeline.bundle.versions import Repository
from pipeline.clock import Clock
from pipeline.embedding.redis.updates import Brought, RedisUpdater
from pipeline.errors import BatonError, Conflict

__all__ = ["Loaded", "Warming", "warm"]

TRIES, PAUSE_S = 20, 0.5

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded:
    """Result for a version whose rows are in Redis now; `rows` were missing."""

    bundle: str
    version: str
    generation: str
    rows: int
    rows_per_second: int
    seconds: float


def rows_of(repository: Repository, bundle: Bundle) -> int:
    """Rows of all links of a version, the most that a run writes."""
    return sum(info.rows for link in repository.chain(bundle) for info in link.manifest.tables.values())


def warm(
    updater: RedisUpdater, repository: Repository, bundle: Bundle, clock: Clock, wrote: Callable[[int], None]
) -> Loaded:
    """Write the rows of a version that are missing.

    Args:
        wrote: called with the number of rows of each chunk.

    Raises:
        Conflict: another process writes them all the time. NotReady: Redis cannot be reached or is full.
    """
    start = clock.monotonic()
    brought = _bring(updater, repository.chain(bundle), wrote)
    seconds = clock.monotonic() - start
    return Loaded(
        bundle.manifest.name,
        brought.applied[-1],
        brought.generation.name,
        brought.rows,
        round(brought.rows / max(seconds, 1e-9)),
        round(seconds, 3),
    )


def _bring(updater: RedisUpdater, chain: list[Bundle], wrote: Callable[[int], None]) -> Brought:
    for _ in range(TRIES - 1):
        try:
            return updater.bring(chain, wrote, count=True)
        except Conflict:
            time.sleep(PAUSE_S)
    return updater.bring(chain, wrote, count=True)


class Warming:
    """Run in a thread of its own, `cache-warm`.

    Args:
        name: endpoint or bundle of the request. versions: those that it names.
        updater: closed when the run has ended.
    """

    def __init__(
        self, name: str, versions: Sequence[Bundle], updater: RedisUpdater, repository: Repository, clock: Clock
    ) -> None:
        self._name = name
        self._versions = versions
        self._updater = updater
        self._repository = repository
        self._clock = clock
        self._began = clock.monotonic()
        self._ended: float | None = None
        self._total = sum(rows_of(repository, bundle) for bundle in versions)
        self._written = 0
        self._error = ""
        self._loaded: list[Loaded] = []
        self._thread = threading.Thread(target=self._run, name="cache-warm", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._ended is None

    def report(self) -> dict[str, Any]:
        """Progress and result, with the fields of `serving.admin.answers.CacheWarming`."""
        until = self._clock.monotonic() if self._ended is None else self._ended
        return {
            "name": self._name,
            "running": self.running,
            "total": self._total,
            "written": self._written,
            "seconds": round(until - self._began, 3),
            "error": self._error,
            "loaded": [asdict(loaded) for loaded in self._loaded],
        }

    def join(self, timeout: float) -> None:
        """Wait for its end."""
        self._thread.join(timeout)

    def _run(self) -> None:
        try:
            for bundle in self._versions:
                self._loaded.append(warm(self._updater, self._repository, bundle, self._clock, self._wrote))
        except BatonError as error:
            self._error = str(error)
        except Exception as error:
            log.exception("rows of %s could not be brought into redis", self._name)
            self._error = f"{type(error).__name__}; the log of the control process has more"
        finally:
            self._updater.close()
            self._ended = self._clock.monotonic()

    def _wrote(self, rows: int) -> None:
        self._written += rows

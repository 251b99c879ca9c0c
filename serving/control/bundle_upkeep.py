"""Retention of models, in the control process: old versions and segments go, segments of deltas are merged.

These versions of a bundle stay: those that processes serve or want, those that endpoints or rollouts name, those that the
worker goes on from, the newest that may serve, a number of newest ones (`bundles_keep`), and all that these build on. It
runs in a thread of its own at low priority; a pass that fails is made again. A version that is damaged holds up neither its
neighbours nor other bundles: it stays while it is in use, with what it may build on, and is reported.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from pipeline.bundle.bundle import Bundle
from pipeline.bundle.versions import Repository
from pipeline.embedding.segment.generations import compact, sweep
from pipeline.errors import BatonError, NotFound
from pipeline.model.probe import PROBED, keep_only
from serving.rollout.store import ControlStore
from serving.runtime.status import Statuses, StepStatus

__all__ = ["BundleUpkeep"]

KEPT_VERSIONS = 3
"""Newest versions whose segments stay, served or not, so that a step back is quick."""
UNFINISHED_S = 24 * 3600.0
"""Seconds after which the publisher of an unfinished bundle counts as dead."""

log = logging.getLogger(__name__)


class BundleUpkeep:
    """Keeps repository and segments small.

    Args:
        repository: of bundles.
        segments: directory of this machine's segments.
        store: endpoints and rollouts; one opened for this thread.
        keep: newest versions of each bundle that stay.
        worker: whether a worker is configured; then nothing is removed from the repository before it has reported.
        now: Unix time in seconds.

    Attributes:
        damaged: versions that cannot be opened, as bundle/version, and why.
    """

    def __init__(
        self,
        repository: Repository,
        segments: Path,
        store: ControlStore,
        *,
        keep: int,
        worker: bool,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._repository = repository
        self._segments = segments
        self._store = store
        self._keep = keep
        self._worker = worker
        self._now = now
        self.damaged: Mapping[str, str] = {}
        self._totals = Counter(versions_removed=0, segments_removed=0, segments_merged=0, failures=0)

    def counters(self) -> Mapping[str, int]:
        """Since the start: `versions_removed`, `segments_removed`, `segments_merged`, `failures`."""
        return dict(self._totals)

    def step(self, statuses: Statuses) -> None:
        """One pass over all bundles."""
        used = self._used(statuses)
        chains = None if statuses.learner is None else statuses.learner.status.chains
        for name in self._repository.names():
            known = used.get(name, set())
            if chains is not None or not self._worker:
                self._guarded(name, lambda n=name, k=known: self._prune(n, k | set((chains or {}).get(n, ()))))  # type: ignore[misc]
            self._guarded(name, lambda n=name, k=known: self._tend(n, k))  # type: ignore[misc]

    def look(self) -> None:
        """Look for versions that are damaged."""
        found: dict[str, str] = {}
        for name in self._repository.names():
            self._guarded(
                name,
                lambda n=name: found.update({f"{n}/{v}": why for v, why in self._repository.damaged(n).items()}),  # type: ignore[misc]
            )
        for key in found.keys() - self.damaged.keys():
            log.error("version %s is damaged: %s", key, found[key])
        self.damaged = found

    def _guarded(self, name: str, work: Callable[[], None]) -> None:
        """Do one thing for one bundle; where it fails the others go on."""
        try:
            work()
        except (BatonError, OSError) as error:
            self._totals["failures"] += 1
            log.warning("versions and segments of %s are left alone: %s", name, error)

    def _used(self, statuses: Statuses) -> dict[str, set[str]]:
        """By bundle: versions that are served, wanted or compared with."""
        used = statuses.served_versions()
        endpoints = self._store.endpoints()
        steps = {} if statuses.control is None else statuses.control.status.endpoints
        for endpoint in endpoints.values():
            for spec in (endpoint.stable_now, endpoint.candidate):
                if spec is not None and spec.version:
                    used.setdefault(spec.bundle, set()).add(str(spec.version))
            step = steps.get(endpoint.name, StepStatus()).step_version
            if step and endpoint.candidate is not None:
                used.setdefault(endpoint.candidate.bundle, set()).add(step)
        for stored in self._store.rollouts(active=True):
            state = stored.state
            named = {state.candidate_version, state.evidence_version, state.previous_version} - {0}
            used.setdefault(stored.spec.candidate.bundle, set()).update(map(str, named))
        return used

    def _prune(self, name: str, used: set[str]) -> None:
        keep = used | set(self._repository.versions(name)[-self._keep :])
        with suppress(NotFound):  # none has passed the gate yet
            keep.add(self._repository.latest(name))
        removed = self._repository.prune(name, keep, unfinished_before=self._now() - UNFINISHED_S, unused=keep - used)
        if removed:
            self._totals["versions_removed"] += len(removed)
            log.info("removed versions %s of bundle %s", ", ".join(removed), name)

    def _tend(self, name: str, used: set[str]) -> None:
        there = self._repository.held(name)
        mapped = (used & set(there)) | set(there[-KEPT_VERSIONS:])
        with suppress(NotFound):
            mapped.add(self._repository.latest(name))
        chains, unknown = {}, 0
        for version in sorted(mapped, key=int):
            try:
                chains[version] = self._chain(name, version)
            except BatonError:
                if version in used:  # its segments must stay
                    unknown = max(unknown, int(version))
        serving = [version for version in chains if version in used]
        folder = self._segments / name
        if serving and folder.is_dir():
            chain = chains[serving[-1]]
            try:
                for width in sorted({info.width for info in chain[-1].manifest.tables.values()}):
                    self._totals["segments_merged"] += compact(folder, chain, width)
            except BatonError as error:  # a link of it is damaged; what is there goes on being used
                self._totals["failures"] += 1
                log.warning("segments of %s %s are not merged: %s", name, serving[-1], error)
        keep_only(folder / PROBED, self._repository.versions(name))
        removed = sweep(folder, chains.values(), unknown)
        if removed:
            self._totals["segments_removed"] += removed
            log.info("removed %d segments of bundle %s", removed, name)

    def _chain(self, name: str, version: str) -> list[Bundle]:
        return self._repository.chain(self._repository.open(name, version))

"""Probes of the versions that a process wants, each in a thread, so that none waits for one that hangs.

A version is loaded once its probe has passed (`pipeline.model.probe`). One that killed or hung its probe, or whose rows
influence each other, is set aside: it is not tried again until its files, the limits or an operator's `model load` change
that. One whose files are damaged is read again after a while, since a tool may still be copying them. Read next: `serving.lane.registry`.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Collection
from pathlib import Path

from pipeline.bundle.verified import NOTES
from pipeline.bundle.versions import Repository
from pipeline.clock import Clock
from pipeline.errors import BatonError, BundleError, NotFound
from pipeline.model.probe import PROBED, ProbeLimits, Verdict, forget, probe_once, set_aside
from serving.lane.served import Key
from serving.runtime.process import step_back

__all__ = ["NICE", "PATIENCE_S", "Probes", "SetAside"]

NICE = 10
"""Priority of threads that try or load a version."""
MOST_PROBES = 4
PATIENCE_S = 5.0
"""Seconds after which an older version is taken while a probe goes on."""
KEPT_VERSIONS = 256
RETRY_S = 30.0
"""Seconds after which a version whose files are damaged is read again."""

log = logging.getLogger(__name__)


class SetAside(BundleError):
    """A version that is not tried again by itself."""


class Probes:
    """Probes of one process. Verdicts are shared with the other processes of the machine by notes.

    Args:
        segments: directory of this machine's segments; the notes are there.
        listener: called from a probe's thread when it has a verdict.
    """

    def __init__(self, repository: Repository, segments: Path, limits: ProbeLimits, clock: Clock) -> None:
        self._repository, self._segments, self._limits, self._clock = repository, segments, limits, clock
        self._lock = threading.Lock()
        self._running: dict[Key, float] = {}
        self._verdicts: dict[Key, Verdict] = {}
        self._damaged: dict[Key, float] = {}  # time from which it may be read again
        self.listener: Callable[[], None] = lambda: None

    @property
    def limits(self) -> ProbeLimits:
        """Of one probe."""
        return self._limits

    def verdict(self, key: Key) -> Verdict | None:
        """The verdict on a version; None while its probe runs, or waits for one of `MOST_PROBES` places."""
        with self._lock:
            found = self._verdicts.get(key)
            if self._clock.monotonic() >= self._damaged.get(key, math.inf):
                found = None
            if found is None and key not in self._running and len(self._running) < MOST_PROBES:
                self._running[key] = self._clock.monotonic()
                threading.Thread(target=self._probe, args=(key,), name=f"probe-{'-'.join(key)}", daemon=True).start()
            return found

    def reason(self, bundle: str, version: str) -> str | None:
        """Why a version must not serve; "": nothing is known against it; None: its probe runs."""
        found = self.verdict((bundle, version))
        return None if found is None else found.reason

    def damaged(self, key: Key) -> bool:
        """Whether the verdict's reason is that its files are damaged now."""
        with self._lock:
            return key in self._damaged

    def running(self, longer_than: float = 0.0) -> set[Key]:
        """Versions whose probe has been running for at least so many seconds."""
        now = self._clock.monotonic()
        with self._lock:
            return {key for key, since in self._running.items() if now - since >= longer_than}

    def set_aside(self, key: Key, reason: str) -> None:
        """Set a version aside that passed its probe and failed this process all the same."""
        with self._lock:
            self._verdicts[key] = Verdict(reason, died=True)
        set_aside(self._notes(key[0]), key[1], reason)

    def forget(self, bundle: str) -> None:
        """Forget, for all processes of the machine, which versions of a bundle were set aside."""
        forget(self._notes(bundle))

    def ask_again(self, bundles: Collection[str]) -> None:
        """Ask the notes, and where they say nothing a probe, about versions of bundles that were set aside."""
        with self._lock:
            for key in [k for k, verdict in self._verdicts.items() if k[0] in bundles and verdict.reason]:
                del self._verdicts[key]
                self._damaged.pop(key, None)

    def _probe(self, key: Key) -> None:
        step_back(NICE, thread=True)
        verdict, damaged = Verdict(), False
        try:
            verdict = self._of(*key)
        except BundleError as error:
            verdict, damaged = Verdict(str(error)), True
        except BatonError:
            pass  # loading it says so, with the reason
        except Exception as error:
            log.exception("bundle %s version %s cannot be probed", *key)
            verdict = Verdict(f"it cannot be probed: {type(error).__name__}: {error}")
        finally:
            with self._lock:
                self._verdicts[key] = verdict
                self._damaged.pop(key, None)
                if damaged:
                    self._damaged[key] = self._clock.monotonic() + RETRY_S
                while len(self._verdicts) > KEPT_VERSIONS:
                    oldest = next(iter(self._verdicts))
                    del self._verdicts[oldest]
                    self._damaged.pop(oldest, None)
                del self._running[key]
        self.listener()

    def _of(self, name: str, version: str) -> Verdict:
        bundle = self._repository.open(name, version, verify=True, notes=self._segments / name / NOTES)
        if not bundle.manifest.servable:
            return Verdict()  # loading it gives the gate's reasons
        if bundle.manifest.remote:
            return Verdict()  # there is no network to try
        try:
            self._repository.chain(bundle)
        except NotFound as error:
            raise BundleError(f"{bundle.path} builds on a version that is gone: {error}", "base") from None
        verdict = probe_once(bundle, self._limits, self._notes(name))
        if verdict.missing:
            missing = ", ".join(verdict.missing)
            log.warning("bundle %s version %s has no finite score for rows without %s", name, version, missing)
        return verdict

    def _notes(self, bundle: str) -> Path:
        return self._segments / bundle / PROBED

"""Hold on an unpinned stable arm: while a rollout runs it keeps its version, and takes a newer one only on the gate's word.

Stable has all traffic that the candidate has not, and no steps that could try a version before. So lanes let it answer with
versions up to the held one (`Endpoint.stable_held`). After the rollout's end it is let go once nothing waits that it would not
have taken; an operator lets it go, or back, by `baton endpoint pin`.
"""

from __future__ import annotations

import logging

from pipeline.errors import NotReady, StaleVersion
from serving.rollout.adoption import adoptable
from serving.rollout.observed import Observed
from serving.rollout.routing import Endpoint
from serving.rollout.store import ControlStore, LeadLost, StoredRollout, Who

__all__ = ["HeldStable"]

log = logging.getLogger(__name__)


class HeldStable:
    """Hold on the stable arms of all endpoints. `actor`: author of its audit entries."""

    def __init__(self, store: ControlStore, actor: str) -> None:
        self._store, self._actor = store, actor

    def tend(self, stored: StoredRollout, endpoint: Endpoint, observed: Observed, now_ms: int) -> None:
        """Hold an endpoint's stable while its rollout runs, and let it take a version that may serve; afterwards let it go."""
        stable = endpoint.stable
        if stable.version or stable.observed:
            return
        held = endpoint.stable_held
        newer = [each for each in observed.stable_versions if each.number > held]
        fit = adoptable(stored.state, newer)
        if not held:
            if stored.state.active and observed.stable_version:
                only = "while the rollout runs it takes only versions that passed the gate and score like what serves"
                why = f"stable {stable.bundle} is held at version {observed.stable_version}: {only}"
                self._put(endpoint, observed.stable_version, "hold_stable", why, now_ms)
        elif not stored.state.active:
            newest = max((each.number for each in newer), default=0)
            if not newest or (fit is not None and fit.number == newest):
                why = f"the rollout has ended, and stable {stable.bundle} follows its newest version again"
                self._put(endpoint, 0, "release_stable", why, now_ms)
        elif fit is not None:
            by = f", published by {fit.publisher}," if fit.publisher else ""
            why = (
                f"stable {stable.bundle} serves version {fit.number}{by} after {held}: it passed the gate and moves the mean "
                f"score by {fit.shift:+.4f}"
            )
            self._put(endpoint, fit.number, "adopt_stable", why, now_ms)

    def _put(self, endpoint: Endpoint, version: int, verb: str, reason: str, now_ms: int) -> None:
        held = endpoint.model_copy(update={"stable_held": version})
        try:
            self._store.put_endpoint(held, Who(self._actor, reason, now_ms), endpoint.resource_version, verb)
        except LeadLost:
            raise
        except (StaleVersion, NotReady) as error:  # the next pass tries again; nothing of it may keep a guard waiting
            log.warning("the stable arm of %s stays as it is: %s", endpoint.name, error)

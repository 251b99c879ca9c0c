"""`rollouts.watch`: stream of a rollout, now and after every change, until it has ended.

The number of watchers is bounded. The caller is authenticated again at every look, so a revoked token sees nothing more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from serving.admin import answers as a
from serving.admin.door import Admin
from serving.admin.requests import RolloutName, RolloutWatch
from serving.admin.verbs import ROLLOUTS_GET
from serving.config.principal import Principal
from serving.rollout.state import ACTIVE
from serving.security.in_progress import InProgress

__all__ = ["Watchers"]

MAX_WATCHERS = 64
MAX_CLIENT_WATCHERS = 32


class Watchers:
    """Watchers of an installation's rollouts over one port. For one event loop."""

    def __init__(self, admin: Admin, most: int = MAX_WATCHERS) -> None:
        self._admin = admin
        self._watching = InProgress("watchers", most, MAX_CLIENT_WATCHERS)

    @property
    def watching(self) -> int:
        """Streams in progress."""
        return self._watching.total

    async def watch(self, request: RolloutWatch, who: Callable[[], Principal]) -> AsyncGenerator[a.Rollout]:
        """The rollout, as `rollouts.get` returns it.

        Args:
            who: returns the caller; raises once the caller has no access any more.

        Raises:
            Overloaded: there are too many watchers. And whatever `rollouts.get` and `who` raise.
        """
        with self._watching.one(who().name):
            name = RolloutName(name=request.name)
            last: a.Rollout | None = None
            while True:
                found = await asyncio.to_thread(self._look, name, who)
                if found != last:
                    last = found
                    name = RolloutName(name=found.id)  # a newer one of the same endpoint is another rollout
                    yield found
                if found.phase not in ACTIVE:
                    return
                await asyncio.sleep(request.interval)

    def _look(self, name: RolloutName, who: Callable[[], Principal]) -> a.Rollout:
        return self._admin.call(ROLLOUTS_GET, name, who())

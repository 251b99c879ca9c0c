"""Watch of the control process over its state: whether it answers, and whether it is the one that the home knows.

While it is lost nothing is done on it: no lead, no rollout, no verb (`serving.rollout.identity`). It writes the snapshot of
the home as lanes do, and makes the endpoints of the configuration once the state can be read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from pipeline.clock import Clock
from pipeline.errors import NotReady
from serving.rollout.document import StateDocument
from serving.rollout.identity import StateLost
from serving.rollout.store import ControlStore
from serving.runtime.status import StateAway
from serving.state.kill import KillSwitch
from serving.state.snapshot import SnapshotFile

__all__ = ["StateWatch"]

log = logging.getLogger(__name__)


class StateWatch:
    """Watch over a control store. `look` is for one thread.

    Args:
        ready: called once the state can be read, at first and after each time that it could not.

    Attributes:
        away: set while it does not answer or is lost.
    """

    def __init__(
        self, store: ControlStore, kill: KillSwitch, file: SnapshotFile, clock: Clock, ready: Callable[[], None]
    ) -> None:
        self._store, self._kill, self._file, self._clock, self._ready = store, kill, file, clock, ready
        self._version: int | None = None
        self._document: StateDocument | None = None
        self.away: StateAway | None = None

    @property
    def lost(self) -> bool:
        """Whether the state is empty, another one or gone."""
        return self.away is not None and self.away.lost

    def look(self) -> None:
        """Look once."""
        began_ms = self._clock.wall_ms()
        try:
            version = self._store.data_version()
            if self.away is not None or self._version is None:
                self._ready()
            if version != self._version:
                self._document = self._store.document()
                self._version = version
            flags = self._kill.shared
            if flags is not None:
                flags.engaged()
            self._file.keep(self._document, {} if flags is None else flags.known)
        except NotReady as error:
            before, lost = self.away, isinstance(error, StateLost)
            self.away = StateAway(before.since_ms if before else began_ms, str(error), lost)
            if before is None or before.lost != lost:
                log.error("%s", error)
        else:
            if self.away is not None:
                log.info("the state is there again")
            self.away = None

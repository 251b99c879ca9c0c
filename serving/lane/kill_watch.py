"""Watch over the kill switch: the endpoints whose candidate gets nothing, and whether that can be seen at all.

The files of the home and the flags of the shared state are looked at side by side, ten times a second, so that a state
that does not answer delays no file. A third thread, which touches no disk, counts the time without a look at the files:
after `BLIND_S` no candidate gets anything. A shared state that does not answer is another case: what it said last counts.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping

from pipeline.errors import NotReady
from serving.state.kill import KillFlag, KillSwitch

__all__ = ["BLIND_S", "KillWatch"]

LOOK_EVERY_S = 0.1
TICK_S = 0.25
BLIND_S = 3.0
SPARE_EVERY_S = 1.0
SPARE_AGAIN_S = 30.0

log = logging.getLogger(__name__)


class KillWatch:
    """Watch over the kill switch, in threads of its own. Use `start`, then `stop`; or `look` alone.

    Args:
        names: of the endpoints of this process, now.
        tell: called with the killed endpoints and with why the files cannot be looked at ("": they can), whenever one
            of them changes.
    """

    def __init__(
        self, switch: KillSwitch, names: Callable[[], Collection[str]], tell: Callable[[frozenset[str], str], None]
    ) -> None:
        self._switch, self._names, self._tell = switch, names, tell
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        # Guarded by `_lock`:
        self._lock = threading.Lock()
        self._files: frozenset[str] = frozenset()
        self._shared = frozenset(self.shared_flags())  # those that the home remembers, until the first look
        self._told: tuple[frozenset[str], str] = frozenset(), ""
        self._unseen_s = 0.0
        self._trouble = ""
        self._away = False
        self._prepared: frozenset[str] = frozenset()
        self._prepared_s = 0.0

    def start(self) -> None:
        """Set aside what kills need, and begin to look."""
        self._switch.prepare(self._names())
        bodies: list[tuple[str, Callable[[], None], float]] = [
            ("kill-files", self.look_at_files, LOOK_EVERY_S),
            ("kill-sight", self._tick, TICK_S),
            ("kill-spares", self._spare, SPARE_EVERY_S),
        ]
        if self._switch.shared is not None:
            bodies.append(("kill-flags", self.look_at_flags, LOOK_EVERY_S))
        for name, body, pause in bodies:
            thread = threading.Thread(target=self._repeat, args=(body, pause), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """End the threads; one that waits for a disk is left behind."""
        self._stop.set()
        for thread in self._threads:
            thread.join(1.0)

    def look(self) -> None:
        """Look at files and flags, in this thread."""
        self.look_at_files()
        self.look_at_flags()

    def look_at_files(self, appeared: Collection[str] = ()) -> None:
        """Look at the files of the home. `appeared`: endpoints that are about to be among the names."""
        try:
            killed = self._switch.files.engaged({*self._names(), *appeared})
        except OSError as error:
            with self._lock:
                if not self._trouble:  # once, not ten times a second
                    log.error("the kill files cannot be looked at: %s", error)
                self._trouble = str(error)
            return
        with self._lock:
            if self._trouble:
                log.info("the kill files can be looked at again")
            self._files, self._unseen_s, self._trouble = killed, 0.0, ""
            self._publish()

    def shared_flags(self) -> Mapping[str, KillFlag]:
        """Flags of the shared state as they were seen last."""
        return {} if self._switch.shared is None else self._switch.shared.known

    def look_at_flags(self) -> None:
        """Look at the flags of the shared state."""
        if self._switch.shared is None:
            return
        try:
            killed = self._switch.shared.engaged()
        except NotReady as error:
            if not self._away:
                log.error("%s; kill flags stay as they were", error)
            self._away = True
            return
        self._away = False
        with self._lock:
            self._shared = killed
            self._publish()

    def _tick(self) -> None:
        # Ticks are counted instead of the clock: a process that was stopped for a while is not blind.
        with self._lock:
            self._unseen_s += TICK_S
            self._publish()

    def _publish(self) -> None:
        blind = ""
        if self._unseen_s > BLIND_S:
            blind = f"the kill files cannot be looked at: {self._trouble or 'the disk does not answer'}"
        now = self._files | self._shared, blind
        if now == self._told:
            return
        if blind and not self._told[1]:
            log.error("%s; candidates get nothing", blind)
        self._told = now
        self._tell(*now)

    def _spare(self) -> None:
        names = frozenset(self._names())
        self._prepared_s += SPARE_EVERY_S
        if names != self._prepared or self._prepared_s >= SPARE_AGAIN_S:
            self._switch.prepare(names)
            self._prepared, self._prepared_s = names, 0.0

    def _repeat(self, body: Callable[[], None], pause: float) -> None:
        while not self._stop.wait(pause):
            try:
                body()
            except Exception:  # this thread must outlive whatever goes wrong
                log.exception("a look at the kill switch failed")

"""Sender to one receiver: reads the audit from where it was left, tells what the receiver wants, tries again with bounds.

The audit is the queue, so nothing is lost while a receiver is away, and nothing is held in memory. How far it has come is a
setting of the state, stored after each delivery, so neither a restart nor another leader sends twice. Each sender has a thread of
its own in the control process (`serving.control.loops`).
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Mapping
from urllib.parse import urlsplit

from pipeline.clock import Clock
from serving.config.notify import NotifyConfig
from serving.notify.delivery import TIMEOUT_S, Undelivered, deliver
from serving.notify.message import body_of, headers_of, wanted
from serving.rollout.store import AuditEntry, ControlStore

__all__ = ["GIVE_UP_MS", "Sender"]

GIVE_UP_MS = 86_400_000
"""Age of an entry from which on it is not tried any more."""
LONGEST_PAUSE_MS = 300_000
BATCH_ENTRIES = 100

log = logging.getLogger(__name__)


class Sender:
    """Sender to one receiver.

    Args:
        store: its audit is told, and it keeps how far that has come.
        environ: holds the secret.
        timeout: of a try, in seconds.

    Attributes:
        counters: notifications sent, failed tries, and notifications given up.
    """

    def __init__(
        self,
        store: ControlStore,
        config: NotifyConfig,
        clock: Clock,
        environ: Mapping[str, str] = os.environ,
        timeout: float = TIMEOUT_S,
    ) -> None:
        self._store, self._config, self._clock, self._environ, self._timeout = store, config, clock, environ, timeout
        self._setting = "notify:" + hashlib.sha256(config.url.encode()).hexdigest()[:16]
        self._host = urlsplit(config.url).hostname or ""  # the rest of a URL may be a secret
        self._seq = self._told_seq = 0
        self._tries = 0
        self._next_ms = 0
        self.counters: Counter[str] = Counter()

    def step(self) -> None:
        """Tell what is due; returns at the first failure. Raises: NotReady."""
        # Read each time: another process may have led, and sent, in between.
        kept = self._store.setting(self._setting).get("seq")
        if not isinstance(kept, int):
            kept = self._begin()
        self._seq = max(self._seq, kept)
        if self._told_seq > kept:
            self._store.keep_setting(self._setting, {"seq": self._told_seq})
        # A pause that is longer than any can be was set before the clock went back.
        if 0 < self._next_ms - self._clock.wall_ms() <= LONGEST_PAUSE_MS:
            return
        while entries := self._store.audit(after=self._seq, limit=BATCH_ENTRIES):
            for entry in entries:
                if event := wanted(entry, self._config.on):
                    if not self._told(entry, event):
                        return
                    # First in memory: where the state is away now, it is stored once it is back, and nothing is sent twice.
                    self._seq, self._tries, self._told_seq = entry.seq, 0, entry.seq
                    self._store.keep_setting(self._setting, {"seq": entry.seq})
                self._seq, self._tries = entry.seq, 0

    def _begin(self) -> int:
        """Where a receiver that is new begins: it is not told what was before."""
        newest = self._store.latest_audit(limit=1)
        seq = newest[0].seq if newest else 0
        self._store.keep_setting(self._setting, {"seq": seq})
        return seq

    def _told(self, entry: AuditEntry, event: str) -> bool:
        """Whether an entry is done with: delivered, or given up."""
        now = self._clock.wall_ms()
        try:
            secret = self._environ.get(self._config.secret_env, "")
            if not secret:
                raise Undelivered(
                    f"the environment variable {self._config.secret_env} is not set, so it cannot be signed"
                )
            body = body_of(entry, event)
            headers = headers_of(entry, body, secret.encode(), now)
            deliver(self._config.url, body, headers, private=self._config.private, timeout=self._timeout)
        except Undelivered as error:
            self._tries += 1
            self.counters["failed"] += 1
            if now - entry.time_ms >= GIVE_UP_MS:
                self.counters["given up"] += 1
                log.error("%s was not told of %s (audit %d): %s; given up", self._host, event, entry.seq, error)
                return True
            if self._tries == 1:
                log.warning("%s was not told of %s (audit %d): %s; trying again", self._host, event, entry.seq, error)
            self._next_ms = now + min(LONGEST_PAUSE_MS, 1000 * 2 ** min(self._tries - 1, 20))
            return False
        self.counters["sent"] += 1
        return True

"""Tenure of the worker of an endpoint: one at a time among the machines that share a Redis, by a lease.

The holder notes how far the rows reach that its last published version has learned. A successor on another machine has
none of the holder's checkpoints, or old ones: it goes on from that version and that place.

    control:worker:ENDPOINT:lead, :fence    the lease and its tokens (`RedisLead`)
    control:worker:ENDPOINT:place           {"node": who published last, "position": place in the labelled log}
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import redis

from pipeline.errors import NotReady
from pipeline.redis.foreign import load_typed, parsing
from serving.state.redis.leader import RedisLead

__all__ = ["LastPlace", "RedisTenure", "lead_of", "place_of"]

EVERY_S = 0.5

log = logging.getLogger(__name__)


def lead_of(endpoint: str) -> str:
    """Beginning of the keys of an endpoint's tenure."""
    return f"control:worker:{endpoint}"


def place_of(endpoint: str) -> str:
    """Key of what the last holder of an endpoint's tenure noted."""
    return f"{lead_of(endpoint)}:place"


@dataclass(frozen=True, slots=True)
class LastPlace:
    """Node of the last worker that held the tenure, and the place that a successor on another node starts after."""

    node: str
    position: int


class RedisTenure:
    """Tenure of one process. It keeps the lease on a thread of its own, since a batch or a publication may take long.

    Args:
        lead: of `lead_of(endpoint)`.
        node: name of this machine.
    """

    def __init__(self, lead: RedisLead, endpoint: str, node: str) -> None:
        self._lead, self._node = lead, node
        self._key = place_of(endpoint)
        self._lock = threading.Lock()
        self._token: int | None = None

    def take(self) -> bool:
        """Take it where no other worker has it; whether this one has it."""
        with self._lock:
            held = self._lead.hold()
            self._token = self._lead.token if held else None
            return held

    def holds(self) -> bool:
        """Whether it is still the tenure that `take` took: what another worker did since would be unknown here."""
        with self._lock:
            return self._token is not None and self._lead.hold() and self._lead.token == self._token

    def holder(self) -> str:
        """Name of the worker that has it; "": none is known."""
        return self._lead.holder()

    def last(self) -> LastPlace | None:
        """What the last holder noted; None: there has been none. Raises: NotReady."""
        try:
            found = self._lead.read(self._key)
        except redis.RedisError as error:
            raise NotReady(f"the place of the last worker cannot be read: {error}") from error
        if found is None:
            return None
        with parsing(f"the place of the last worker, {self._key},"):
            last = load_typed(LastPlace, found)
            if last.position < 0:
                raise ValueError(f"position {last.position}")
            return last

    def published(self, position: int) -> None:
        """Note the place up to which the published version has learned."""
        text = json.dumps({"node": self._node, "position": position})
        try:
            with self._lock:
                noted = self._lead.note(self._key, text)
        except redis.RedisError as error:
            log.error("a successor would learn again from an earlier place: %s", error)
            return
        if not noted:
            log.warning("the place %d is not noted: another worker has taken over", position)

    @contextmanager
    def kept(self, stop: threading.Event) -> Iterator[threading.Event]:
        """Context that keeps the lease. Its event is set when it is lost, and when `stop` is set."""
        over = threading.Event()

        def keep() -> None:
            try:
                while not over.is_set() and not stop.is_set() and self.holds():
                    stop.wait(EVERY_S)
            finally:  # however this thread ends, nobody keeps the lease any more
                over.set()

        thread = threading.Thread(target=keep, name="worker-tenure", daemon=True)
        thread.start()
        try:
            yield over
        finally:
            over.set()
            thread.join(10 * EVERY_S)

    def release(self) -> None:
        """Give it up, so that another worker can take it at once."""
        self._lead.release()

"""Idempotency cache: a changing call that is sent twice with one key runs once, and both calls get the first answer.

The key is stored before the verb runs and its answer after it (`serving.state.idempotency`), so that a caller who lost
the answer in a crash can ask again. After a crash between the two the outcome is unknown: the second call gets a Conflict
and does not run. Refused calls changed nothing: their keys are free again.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from pydantic import ValidationError

from pipeline.clock import Clock
from pipeline.errors import Conflict, InvalidInput, NotReady
from serving.admin.answers import Answer
from serving.admin.requests import Request
from serving.state.idempotency import Keys, Taken

__all__ = ["IdempotencyCache"]

A = TypeVar("A", bound=Answer)
BRAKE_THREADS = 4
KEY_WAIT_S = 0.3
"""Longest wait of a call that stops traffic for the store of keys."""
REMEMBERED_KEYS, REMEMBERED_MS = 1000, 3600 * 1000
"""Answers that this process remembers for itself, for the time after its store was lost and is back."""
_KEY = re.compile(r"[!-~]{1,200}")

log = logging.getLogger(__name__)


class IdempotencyCache:
    """Answers of changing calls by caller and key. Safe for several threads."""

    def __init__(self, keys: Keys, clock: Clock) -> None:
        self._keys = keys
        self._clock = clock
        self._lock = threading.Lock()
        self._running: set[tuple[str, str]] = set()
        self._threads = ThreadPoolExecutor(BRAKE_THREADS, "idempotency-key")
        self._done: OrderedDict[tuple[str, str], tuple[Taken, int]] = OrderedDict()

    def run(
        self,
        caller: str,
        key: str,
        verb: str,
        request: Request,
        answer: type[A],
        act: Callable[[], A],
        *,
        keyless: bool = False,
    ) -> A:
        """Run a call, or return the answer of the first call with this key.

        Args:
            caller: owner of the key; another caller's equal key is another one.
            act: runs the call.
            keyless: whether it runs where keys cannot be stored, and again when it is repeated.

        Raises:
            InvalidInput: the key is malformed, or was used for another request.
            Conflict: the first call with this key is still running, or was cut off. NotReady: the key cannot be stored.
            And whatever `act` raises.
        """
        if not _KEY.fullmatch(key):
            raise InvalidInput("idempotency-key: use 1 to 200 printable ASCII characters", "idempotency-key")
        digest = hashlib.sha256(f"{verb} {request.model_dump_json()}".encode()).hexdigest()
        try:
            stored = (self._begin_soon if keyless else self._begin)(caller, key, digest)
        except NotReady as error:
            if not keyless:
                raise
            log.error("%s runs without its idempotency key: %s", verb, error)
            return act()
        if stored is not None:
            try:
                return answer.model_validate_json(stored)
            except ValidationError as error:
                raise Conflict(
                    f"the stored answer of idempotency-key {key!r} is no answer to {verb}; look at what is there, then use a new key"
                ) from error
        try:
            done = act()
        except BaseException:
            with _logged():  # the caller's error is the first one
                self._keys.free(caller, key)
            raise
        else:
            text = done.model_dump_json()
            with self._lock:
                self._done[caller, key] = Taken(digest, text), self._clock.wall_ms()
                while len(self._done) > REMEMBERED_KEYS:
                    self._done.popitem(last=False)
            with _logged():  # what was asked is done
                self._keys.answer(caller, key, text)
            return done
        finally:
            with self._lock:
                self._running.discard((caller, key))

    def close(self) -> None:
        """Close the store of keys."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._keys.close()

    def _begin(self, caller: str, key: str, digest: str) -> str | None:
        """The stored answer; None: there is none yet, and the key is taken for this call."""
        with self._lock:
            known = self._keys.take(caller, key, digest, self._clock.wall_ms())
            if known is None:
                known = self._remembered(caller, key)
            if known is None:
                self._running.add((caller, key))
                return None
            return self._known(caller, key, digest, known)

    def _begin_soon(self, caller: str, key: str, digest: str) -> str | None:
        """The same for a call that stops traffic, which does not wait for a store that hangs. Raises: NotReady."""
        begun = self._threads.submit(self._begin, caller, key, digest)
        try:
            return begun.result(KEY_WAIT_S)
        except TimeoutError:
            begun.add_done_callback(lambda late: self._give_up(caller, key, late))
            raise NotReady(f"the store of idempotency keys has not answered within {KEY_WAIT_S:g} s") from None

    def _give_up(self, caller: str, key: str, late: Future[str | None]) -> None:
        """Free a key that was taken too late for its call, which ran without it."""
        if late.cancelled() or late.exception() is not None or late.result() is not None:
            return
        with self._lock:
            self._running.discard((caller, key))
        with _logged():
            self._keys.free(caller, key)

    def _remembered(self, caller: str, key: str) -> Taken | None:
        """The answer of a call that this process has carried out, where the store has lost it; the store has it again."""
        found, time_ms = self._done.get((caller, key), (None, 0))
        if found is None or abs(self._clock.wall_ms() - time_ms) > REMEMBERED_MS:
            return None
        with _logged():
            self._keys.answer(caller, key, found.answer or "")
        return found

    def _known(self, caller: str, key: str, digest: str, known: Taken) -> str:
        if known.digest != digest:
            raise InvalidInput(
                f"idempotency-key {key!r} was used for another request; use a new key", "idempotency-key"
            )
        if known.answer is not None:
            return known.answer
        if (caller, key) in self._running:
            raise Conflict(f"the first call with idempotency-key {key!r} is still under way; ask again in a moment")
        raise Conflict(
            f"the first call with idempotency-key {key!r} was cut off and may have been carried out, or is under way at "
            "another control process; look at what is there, then use a new key"
        )


@contextmanager
def _logged() -> Iterator[None]:
    try:
        yield
    except NotReady as error:
        log.error("an idempotency key cannot be kept up to date: %s", error)

"""Bulk answers of verbs: a stream of bytes that a process of its own makes, one at a time for an installation.

An export and a backup are as large as what they are of. `BulkAnswer` is the reading end of the process that makes one
(`serving.processes.bulk`): it keeps no more than a pipe holds, and whoever does not read on in time ends it.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from pipeline import errors
from pipeline.children import python
from pipeline.errors import BatonError, NotReady, Overloaded
from serving.config import Config
from serving.runtime.process import PARENT

__all__ = ["BulkAnswer", "BulkAnswers"]

CHUNK_BYTES = 256 << 10
STALLED_S = 60.0
"""Time in which a caller takes a chunk; a slower one would keep others from theirs."""
TRY_AGAIN_S = 10.0
_FAULT_BYTES = 64 << 10

log = logging.getLogger(__name__)


class BulkAnswer:
    """The bytes that a process writes, as they come. One thread at a time reads; any may close.

    Args:
        request: for the process, as JSON. ended: is called once, when it has ended.
    """

    def __init__(self, request: Mapping[str, Any], ended: Callable[[], None]) -> None:
        self._ended = ended
        self._closed = False
        self._lock = threading.Lock()
        self._fault = bytearray()
        self._process = subprocess.Popen(
            [*python(), "-m", "serving.processes.bulk"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, PARENT: str(os.getpid())},
        )
        self._listener = threading.Thread(target=self._listen, name="bulk-errors", daemon=True)
        self._listener.start()
        self._watch = threading.Timer(STALLED_S, self._stalled)
        with suppress(OSError):  # it has ended already, and says why
            assert self._process.stdin is not None
            with self._process.stdin as stdin:
                stdin.write(json.dumps(request).encode())

    def read(self) -> bytes:
        """The next bytes, empty at the end.

        Raises:
            BatonError: it could not be made, or not to its end.
        """
        self._watch.cancel()
        assert self._process.stdout is not None
        try:
            found = self._process.stdout.read1(CHUNK_BYTES)  # type: ignore[attr-defined]
        except ValueError:
            raise NotReady("the answer was ended, since it was not read") from None
        if found:
            self._watch = threading.Timer(STALLED_S, self._stalled)
            self._watch.daemon = True
            self._watch.start()
            return bytes(found)
        code = self._process.wait()
        self._listener.join()
        self.close()
        if code:
            raise self._error(code)
        return b""

    def close(self) -> None:
        """End it, whether or not all was read."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._watch.cancel()
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._ended()

    def _stalled(self) -> None:
        log.warning("a bulk answer was ended: its caller has taken nothing for %.0f s", STALLED_S)
        self._process.kill()  # the reader sees the end
        self.close()

    def _listen(self) -> None:
        """Keep the end of what the process says, and pass on what is no fault."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._fault = bytearray(line[-_FAULT_BYTES:])
            log.info("bulk: %s", line.decode(errors="replace").rstrip()[:2000])

    def _error(self, code: int) -> BatonError:
        try:
            fault = json.loads(self._fault)
            kind = getattr(errors, str(fault["kind"]), NotReady)
            message, field = str(fault["message"]), str(fault["field"])
        except (ValueError, KeyError, TypeError):
            return NotReady(
                f"the process that makes the answer ended with {code}; the log of the control process says why"
            )
        if not (isinstance(kind, type) and issubclass(kind, BatonError)):
            kind = NotReady
        return kind(message, field) if field else kind(message)


class BulkAnswers:
    """Bulk answers of an installation, one at a time."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._for = ""

    def begin(self, what: str, caller: str, fields: Mapping[str, Any], allowed: Callable[[], None]) -> BulkAnswer:
        """Begin an answer.

        Args:
            what: export or backup. allowed: is called once it is this caller's turn, and before anything is made.

        Raises:
            Overloaded: another one is being made. And whatever `allowed` raises.
        """
        if not self._lock.acquire(blocking=False):
            raise Overloaded(f"{self._for} is being made; one at a time, come back later", retry_after=TRY_AGAIN_S)
        try:
            self._for = f"a {what} for {caller}" if what == "backup" else f"an {what} for {caller}"
            allowed()
            config = self._config.model_dump(mode="json", by_alias=True, exclude_unset=True)
            return BulkAnswer({"what": what, "config": config, "fields": dict(fields)}, self._lock.release)
        except BaseException:
            self._lock.release()
            raise

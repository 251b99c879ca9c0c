"""Keeper: thread of a lane for what an append must not wait for.

About once a second it brings the record files to disk, and makes runs of the routing hashes that have come (`keys`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from pipeline.disk import writing
from pipeline.errors import NotReady
from pipeline.traffic.lanes.files import RecordFile
from pipeline.traffic.lanes.index import Index
from pipeline.traffic.lanes.keys import Runs

__all__ = ["Keeper"]

logger = logging.getLogger(__name__)

TURN_S = 1.0


class Keeper:
    """Flushes a lane's record files, and closes those that it appends to no longer.

    Args:
        file: the one that the lane appends to.
        last_seq: of the last prediction that the lane has committed.

    Attributes:
        flushed_seq: predictions up to this one are on the disk.
    """

    def __init__(self, folder: Path, file: RecordFile, run_rows: int, last_seq: Callable[[], int]) -> None:
        self._folder = folder
        self._index = Index(folder)
        self._runs = Runs(folder, run_rows)
        self._files = [file]
        self._last_seq = last_seq
        self.flushed_seq = 0
        self._listed = threading.Lock()
        self._flushing = threading.Lock()
        self._turning = threading.Lock()
        self._closing = threading.Event()
        self._failed = False
        self._thread = threading.Thread(target=self._run, name="traffic-lane-keeper", daemon=True)
        self._thread.start()

    def follow(self, file: RecordFile) -> None:
        """The lane appends to this file from now on."""
        with self._listed:
            self._files.append(file)

    def flush(self) -> None:
        """Bring all that was appended to disk.

        Raises:
            NotReady: the disk fails.
        """
        with self._flushing:
            last = self._last_seq()
            with self._listed:
                files = list(self._files)
            for file in files:
                with writing(file.path):
                    file.flush()
            for file in files[:-1]:
                file.close()
            with self._listed:
                self._files = self._files[len(files) - 1 :]
            self.flushed_seq = last

    def turn(self) -> None:
        """What the thread does once a second. Raises: NotReady."""
        with self._turning:
            self.flush()
            with writing(self._folder):
                self._runs.extend(self._index)

    def close(self) -> None:
        """End the thread, flush, and close the files."""
        self._closing.set()
        self._thread.join()
        try:
            self.flush()
        finally:
            for file in self._files:
                file.close()
            self._index.close()

    def _run(self) -> None:
        while not self._closing.wait(TURN_S):
            try:
                self.turn()
            except NotReady as error:
                if not self._failed:  # logged once, not every second
                    logger.error(
                        "traffic log %s: what was written last may not survive power loss: %s", self._folder, error
                    )
                self._failed = True
            except Exception:
                logger.exception("traffic log %s: unexpected fault of its keeper; it goes on", self._folder)
            else:
                self._failed = False

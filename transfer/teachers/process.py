"""Member of a teacher pool that is a process of its own on this machine."""

from __future__ import annotations

import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from pipeline.arrays import F32
from pipeline.children import spawning
from pipeline.errors import BatonError
from pipeline.features import Rows
from transfer.bundles.frozen import load_teacher
from transfer.click_model.model import ClickModel
from transfer.model_zoo import ZOO_ALONE, Architectures
from transfer.teachers.pool import MemberGone

__all__ = ["BundleTeacher", "ProcessMember", "Scorer"]

Scorer = Callable[[Rows], F32]
START_TIMEOUT_S = 120.0


class BundleTeacher:
    """Loads the teacher of a bundle directory wherever it is called.

    Args:
        calibrated: logits after the bundle's calibration; without it, as its network gives them.
        threads: of the network.
        architectures: what the bundle may name.
    """

    def __init__(
        self, path: Path, *, calibrated: bool = True, threads: int = 1, architectures: Architectures = ZOO_ALONE
    ) -> None:
        self._path, self._calibrated, self._threads = path, calibrated, threads
        self._architectures = architectures

    def __call__(self) -> Scorer:
        torch.set_num_threads(self._threads)
        teacher = load_teacher(self._path, self._architectures)
        return teacher.logits if isinstance(teacher, ClickModel) and not self._calibrated else teacher.calibrated_logits


class ProcessMember:
    """Starts a process that loads a teacher and scores rows.

    Args:
        load: called in that process; gives what scores rows. Must survive pickling.

    Raises:
        MemberGone: it did not start.
    """

    slots = 1

    def __init__(self, name: str, load: Callable[[], Scorer]) -> None:
        self.name = name
        context = spawning()
        self._pipe, other_end = context.Pipe()
        self.process = context.Process(target=_serve, args=(other_end, load), name=f"teacher-{name}", daemon=True)
        self.process.start()
        other_end.close()
        self._lock = threading.Lock()
        try:
            ready = self._pipe.recv() if self._pipe.poll(START_TIMEOUT_S) else "it did not come up in time"
        except (EOFError, OSError):
            ready = "it ended while it started"
        if ready is not True:
            self.close()
            raise MemberGone(f"teacher {name}: {ready}")

    def score(self, rows: Rows) -> F32:
        with self._lock:
            try:
                self._pipe.send(rows)
                answer: F32 | str = self._pipe.recv()
            except (EOFError, OSError) as error:
                raise MemberGone(f"the process of teacher {self.name} is gone ({type(error).__name__})") from None
        if isinstance(answer, str):
            raise BatonError(answer)
        return answer

    def close(self) -> None:
        # Its process first: a thread that waits for an answer then fails and releases the pipe.
        self.process.terminate()
        self.process.join(5.0)
        with self._lock:
            self._pipe.close()  # a second time nothing happens


def _serve(pipe: Connection, load: Callable[[], Scorer]) -> None:
    """Until the other end is closed, which is also what happens when its process dies."""
    try:
        score = load()
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
        return
    pipe.send(True)
    while True:
        try:
            rows = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer: F32 | str = score(rows)
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        pipe.send(answer)

"""A process that runs a worker in children and kills them with SIGKILL at random moments, until one ends by itself.

Imported once and forked from then on, so that a restart does not start an interpreter. Run by `test_worker_kills`.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from clocks import HandClock
from worker_world import open_log, settings

from pipeline.bundle.versions import Repository
from transfer.online.worker import Worker

__all__ = ["live", "main"]

PUBLISH = 4


def live(folder: Path, progress: int | None = None) -> None:
    """Work through the log with a commit after every batch; a byte to the pipe `progress` after each."""
    log = open_log(folder)
    worker = Worker(settings(folder, publish_batches=PUBLISH), log, Repository(folder / "bundles"), clock=HandClock())
    while worker.step(lambda: True):
        worker.commit()
        if progress is not None:
            os.write(progress, b".")
    log.close()


def main(folder: Path, seed: int, kills: int) -> None:
    """Kill `kills` lives, each within its first few batches, and let the next one finish; prints how many were killed."""
    torch.set_num_threads(1)
    random = np.random.default_rng(seed)
    killed = 0
    while True:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            code = 1
            try:
                live(folder, writer)
                code = 0
            finally:
                os._exit(code)
        os.close(writer)
        if killed < kills:
            for _ in range(int(random.integers(0, 3))):
                select.select([reader], [], [], 120)
                os.read(reader, 1)
            time.sleep(float(random.uniform(0, 0.05)))  # anywhere within a batch, a commit or a publication
            os.kill(child, signal.SIGKILL)
            killed += 1
        _, status = os.waitpid(child, 0)
        os.close(reader)
        if not os.WIFSIGNALED(status):
            print(killed, flush=True)
            sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

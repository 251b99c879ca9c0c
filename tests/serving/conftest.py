"""Fixtures; the parts are in `installation.py`."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from installation import Installation, RunningLane, running


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    made = Installation(tmp_path / "home")
    yield made
    made.store.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Installation, RunningLane]]:
    """One installation and lane for a whole file of tests that change nothing."""
    made = Installation(tmp_path_factory.mktemp("served") / "home")
    with running(made.config) as lane:
        yield made, lane
    made.store.close()


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """Commands that are run within a test set up the logs of their process, which here is that of all tests."""
    root = logging.getLogger()
    handlers, level, hooks = list(root.handlers), root.level, (sys.excepthook, threading.excepthook)
    yield
    if root.handlers != handlers:
        root.handlers[:], root.level = handlers, level
        sys.excepthook, threading.excepthook = hooks
        logging.captureWarnings(False)

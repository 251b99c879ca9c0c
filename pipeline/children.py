"""Python processes that Baton starts. None has the working directory on its module path.

With `python -m` and with spawn it would be there, before all installed packages: a file that lies in it could stand for a
module, and a home often lies in the folder that a command is run from. What is installed or on PYTHONPATH is found.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.process import BaseProcess
from typing import Any

__all__ = ["python", "spawning", "this_program"]


def python(*arguments: str) -> tuple[str, ...]:
    """Command line of this interpreter with arguments, for example `-m` and a module."""
    return (sys.executable, "-P", *arguments)


def this_program() -> tuple[str, ...]:
    """Command line of this process, as it was started."""
    return (sys.executable, *sys.orig_argv[1:])


def spawning() -> SpawnContext:
    """multiprocessing's way to start new processes, each without the working directory."""
    with _safe_path():
        resource_tracker.ensure_running()  # multiprocessing's own process, which the first lock would start
    return _Context()


@contextmanager
def _safe_path() -> Iterator[None]:
    """-P for what multiprocessing calls meanwhile; it passes no options of ours on."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


class _Process(SpawnProcess):
    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Any:  # noqa: N802 - multiprocessing's name
        with _safe_path():
            return SpawnProcess._Popen(process_obj)


class _Context(SpawnContext):
    Process = _Process

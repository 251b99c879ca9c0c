"""Python processes that Baton starts. None has the working directory on its module path.

With `python -m` and with spawn it would be there, before all installed packages: a file that lies in it could stand for a
module, and a home often lies in the folder that a command is run from. What is installed or on PYTHONPATH is found.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.context import SpawnContext

__all__ = ["python", "spawning"]


def python(*arguments: str) -> tuple[str, ...]:
    """Command line of this interpreter with arguments, for example `-m` and a module."""
    return (sys.executable, "-P", *arguments)


def spawning() -> SpawnContext:
    """multiprocessing's way to start new processes, from then on without the working directory."""
    os.environ["PYTHONSAFEPATH"] = "1"  # -P of the interpreter that multiprocessing calls
    return multiprocessing.get_context("spawn")

"""A supervisor in a thread, with small children, and what its status file says of them."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serving.supervisor.child import Child
from serving.supervisor.supervisor import Supervisor

WAIT = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); signal.pause()"


def python(name: str, code: str, stage: int = 0) -> Child:
    return Child(name, (sys.executable, "-c", code), stage)


@contextmanager
def running(supervisor: Supervisor) -> Iterator[None]:
    thread = threading.Thread(target=supervisor.run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        supervisor.stop()
        thread.join(30)
        assert not thread.is_alive()


def told(home: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((home / "run" / "status" / "supervisor.json").read_text())
    except FileNotFoundError:
        return {"children": {}}
    return found


def child(home: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = told(home)["children"].get(name, {"pid": None, "restarts": 0})
    return found

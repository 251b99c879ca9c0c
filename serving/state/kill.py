"""Kill switch: a file per endpoint under `<home>/kill/`, which lanes read themselves, so it needs no control process.

While `<home>/kill/<endpoint>` exists the candidate gets no traffic. Lanes call `engaged()` at least every 200 ms.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from pipeline.disk import replacing
from pipeline.errors import InvalidInput

__all__ = ["KillSwitch"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class KillSwitch:
    """Kill switch of one home directory. `serving.state.redis.kill` extends it to several machines."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "kill"

    def engage(self, endpoint: str, reason: str, actor: str) -> None:
        """Take all traffic of `endpoint` from its candidate; engaging twice keeps the newer reason.

        Raises:
            InvalidInput: the name cannot be that of an endpoint.
        """
        path = self._path(endpoint)
        with replacing(path, durable=True) as staging:
            staging.write_text(json.dumps({"endpoint": endpoint, "reason": reason, "actor": actor}), encoding="utf-8")

    def release(self, endpoint: str) -> bool:
        """Remove the file; whether there was one. Then the endpoint's weight in the store counts again."""
        try:
            self._path(endpoint).unlink()
        except FileNotFoundError:
            return False
        return True

    def engaged(self) -> frozenset[str]:
        """Endpoints whose candidate gets no traffic, by one directory listing."""
        try:
            with os.scandir(self._folder) as entries:
                return frozenset(entry.name for entry in entries if not entry.name.startswith("."))
        except FileNotFoundError:
            return frozenset()

    def why(self, endpoint: str) -> tuple[str, str] | None:
        """(reason, actor) of an engaged switch, None where it is not engaged. A file made by hand has neither."""
        try:
            text = self._path(endpoint).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None
        try:
            kill = json.loads(text)
            return str(kill["reason"]), str(kill["actor"])
        except (ValueError, KeyError, TypeError):
            return "kill file without a reason", "unknown"

    @staticmethod
    def check_name(endpoint: str) -> None:
        """Check that an endpoint of this name can be killed.

        Raises:
            InvalidInput: it is no plain file name.
        """
        if not _NAME.fullmatch(endpoint):
            raise InvalidInput(f"endpoint name {endpoint!r}: use letters, digits, '.', '_' and '-'", "name")

    def _path(self, endpoint: str) -> Path:
        self.check_name(endpoint)
        return self._folder / endpoint

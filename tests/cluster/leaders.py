"""Watches who leads: what the shared Redis says, and what every control process says of itself."""

from __future__ import annotations

import threading
from typing import Any

import redis
from redis_process import RedisProcess

EVERY = 0.02


class Leaders:
    """Samples claims while it is entered.

    Args:
        control: control processes; each has a `name` and `told()`, its status.
    """

    def __init__(self, server: RedisProcess, control: list[Any]) -> None:
        self._client = server.client()
        self._control = control
        self._claims: set[tuple[int, str, int]] = set()
        self._tokens: set[tuple[int, str]] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leaders", daemon=True)

    def __enter__(self) -> Leaders:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def token(self) -> int:
        """The highest token given out. Raises: redis.RedisError."""
        found: Any = self._client.get("control:fence")
        return int(found or 0)

    def now(self) -> Any:
        """The control process that leads, by its own word and by that of Redis; None where they do not agree on one."""
        try:
            holder: Any = self._client.get("control:lead")
        except redis.RedisError:
            return None
        token = int((holder or b"0").partition(b":")[0])
        claiming = [c for c in self._control if (told := c.told()).get("leads") and told["lead_token"] == token]
        return claiming[0] if len(claiming) == 1 else None

    def told(self) -> dict[str, Any]:
        """Claims in order of time, (process, token) each once per change, and holders by token as Redis had them."""
        claims: list[tuple[str, int]] = []
        for _, name, token in sorted(self._claims):
            if not claims or claims[-1] != (name, token):
                claims.append((name, token))
        return {"claims": claims, "holders": sorted(self._tokens)}

    def _run(self) -> None:
        while not self._stop.wait(EVERY):
            for control in self._control:
                told = control.told()
                if told.get("leads"):
                    self._claims.add((told["time_ms"], control.name, told["lead_token"]))
            try:
                holder: Any = self._client.get("control:lead")
            except redis.RedisError:
                continue
            if holder:
                token, _, owner = holder.decode().partition(":")
                self._tokens.add((int(token), owner.partition(" ")[0]))

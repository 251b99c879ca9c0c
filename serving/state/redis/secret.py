"""Secret of an installation of several machines: that of the first, kept in the shared Redis and in each home."""

from __future__ import annotations

import contextlib
import hmac
import secrets
from pathlib import Path
from typing import Any

import redis

from pipeline.errors import InvalidInput, NotReady
from pipeline.redis.address import RedisAddress
from pipeline.traffic.prediction import load_secret

__all__ = ["agree_on_secret"]

_KEY = "control:secret"
_SECRET_BYTES = 32


def agree_on_secret(address: RedisAddress, path: Path) -> bytes:
    """The installation's secret. `path`: its file in this home, so that it is known while Redis is away.

    Raises:
        InvalidInput: this home has another one.
        NotReady: this home has none yet, and Redis cannot be reached.
    """
    mine = load_secret(path) if path.exists() else None
    try:
        with contextlib.closing(address.client(5.0)) as client:
            client.set(_KEY, mine or secrets.token_bytes(_SECRET_BYTES), nx=True)
            shared: Any = client.get(_KEY)
    except redis.RedisError as error:
        if mine is None:
            raise NotReady(f"state {address.url}: {error}") from error
        return mine
    if not isinstance(shared, bytes) or len(shared) != _SECRET_BYTES:
        # Before a home is made with it, which no other secret would fit.
        raise InvalidInput(
            f"{_KEY} in state {address.url} is no secret of {_SECRET_BYTES} bytes: restore it", "state.url"
        )
    if mine is not None and not hmac.compare_digest(mine, shared):
        raise InvalidInput(
            f"{path} is not the secret of the installation that shares {address.url}: start with a new home", "home"
        )
    return load_secret(path, shared)

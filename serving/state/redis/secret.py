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
from serving.state.redis.owner import IDENTITY

__all__ = ["agree_on_secret"]

_KEY = "control:secret"
_SECRET_BYTES = 32


def agree_on_secret(address: RedisAddress, path: Path, identity: str = "") -> bytes:
    """The installation's secret.

    Args:
        path: its file in this home, so that it is known while Redis is away, or is another one.
        identity: of the state that this home knows; "": none.

    Raises:
        InvalidInput: this home has another one.
        NotReady: this home has none yet, and Redis cannot be reached.
    """
    mine = load_secret(path) if path.exists() else None
    try:
        with contextlib.closing(address.client(5.0)) as client:
            shared: Any = client.get(_KEY)
            found: Any = client.get(IDENTITY)
            if mine is not None and identity and found != identity.encode():
                return mine  # what it holds is not of this installation
            if shared is None:  # never asked for where it is there: a Redis without memory refuses to set even that
                client.set(_KEY, mine or secrets.token_bytes(_SECRET_BYTES), nx=True)
                shared = client.get(_KEY)
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

"""`state`: where endpoints, rollouts and audit are kept, and whatever else machines must agree on."""

from __future__ import annotations

from pydantic import Field

from serving.config.redis_access import RedisAccess
from serving.config.section import Seconds

__all__ = ["StateConfig"]


class StateConfig(RedisAccess):
    """In `home`, or in the Redis of `url`, which evicts nothing and keeps an append-only file: then several machines are
    one installation. It may be that of `traffic.url`."""

    node: str = Field("", pattern=r"^[A-Za-z0-9._-]{0,100}$")
    """Name of this machine among the others; its host name unless said. Two homes on one machine are two nodes."""
    lease: Seconds = Field(5.0, ge=1)
    """How long after the last sign of life of the control process that leads another one takes over."""

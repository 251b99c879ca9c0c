"""`state`: store of endpoints, rollouts, audit and everything else that several machines must agree on."""

from __future__ import annotations

from pydantic import Field

from serving.config.section import RedisAccess, Seconds

__all__ = ["StateConfig"]


class StateConfig(RedisAccess):
    """State in `home`, or in the Redis of `url`, which must not evict and must keep an append-only file: then several
    machines form one installation. It may be the Redis of `traffic.url`."""

    node: str = Field("", pattern=r"^[A-Za-z0-9._-]{0,100}$")
    """Name of this machine among the others; empty: its host name. Two homes on one machine are two nodes."""
    lease: Seconds = Field(5.0, ge=1)
    """Time after the last report of the leading control process until another one takes over."""

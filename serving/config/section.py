"""Base classes of the sections, and durations."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

__all__ = ["RedisAccess", "Seconds", "Section", "parse_duration"]

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(value: Any) -> float:
    """Seconds of `30m`, `0.5s`, `250ms`, `24h` or a plain number of seconds.

    >>> parse_duration("30m"), parse_duration(2)
    (1800.0, 2.0)
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*", value) if isinstance(value, str) else None
    if not match:
        raise ValueError(f"{value!r} is not a duration; write for example 250ms, 20s, 30m or 24h")
    return float(match[1]) * _UNITS[match[2]]


Seconds = Annotated[float, BeforeValidator(parse_duration), Field(ge=0)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class RedisAccess(Section):
    """Connection settings of a Redis."""

    url: str = Field("", pattern=r"^((rediss?|unix)://[^@]+)?$")
    """redis://HOST:PORT/DB, rediss:// for TLS or unix:///PATH; without user and password."""
    username: str = ""
    """Redis user; empty: the default user."""
    password_file: Path | None = None
    """File whose first line is the password."""
    password_env: str = ""
    """Environment variable that holds the password, where there is no file."""
    tls_ca: Path | None = None
    """Trusted certificates for rediss://; unset: the machine's."""
    insecure: bool = False
    """Whether a Redis on another machine may be used without a password or without TLS; else it is refused."""

    @model_validator(mode="after")
    def _one_password(self) -> RedisAccess:
        if self.password_file is not None and self.password_env:
            raise ValueError("the password is in password_file or in password_env, not in both")
        return self

    def below(self, base: Path) -> Self:
        """The same with relative paths read from `base`."""
        named = {key: getattr(self, key) for key in ("password_file", "tls_ca")}
        return self.model_copy(update={key: base / path for key, path in named.items() if path is not None})

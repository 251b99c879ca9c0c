"""Connection settings of a Redis, for every use."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from serving.config.section import Section

__all__ = ["RedisAccess"]


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

    @model_validator(mode="after")
    def _one_password(self) -> RedisAccess:
        if self.password_file is not None and self.password_env:
            raise ValueError("the password is in password_file or in password_env, not in both")
        return self

    def below(self, base: Path) -> Self:
        """The same with relative paths read from `base`."""
        named = {key: getattr(self, key) for key in ("password_file", "tls_ca")}
        return self.model_copy(update={key: base / path for key, path in named.items() if path is not None})

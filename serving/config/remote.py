"""`remote`: servers that remote arms may call, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from serving.config.section import Section

__all__ = ["RemoteConfig"]


class RemoteConfig(Section):
    """Settings of remote arms."""

    addresses: tuple[Annotated[str, StringConstraints(pattern=r"^\S+:[0-9]{1,5}$")], ...] = ()
    """HOST:PORT of the servers that bundles may name, beside those on this machine (127.0.0.1, localhost, ::1). What callers
    send goes to them, so a bundle alone does not decide it."""
    calls: int = Field(16, ge=1, le=256)
    """Most calls at a time per lane; each is a thread that waits. Requests that wait for one share the next."""
    tls_ca: Path | None = None
    """Trusted certificates for bundles with `tls: true`; unset: those of gRPC."""
    tls_cert: Path | None = None
    """Client certificate that is shown to them."""
    tls_key: Path | None = None
    """Its key."""

    @model_validator(mode="after")
    def _pair(self) -> RemoteConfig:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key go together")
        return self

    def below(self, base: Path) -> RemoteConfig:
        """The same with relative paths read from `base`."""
        named = {key: getattr(self, key) for key in ("tls_ca", "tls_cert", "tls_key")}
        return self.model_copy(update={key: base / path for key, path in named.items() if path is not None})

"""`listen`: what the servers bind and how much they take in."""

from __future__ import annotations

import ipaddress

from pydantic import Field, model_validator

from serving.config.section import Seconds, Section

__all__ = ["ListenConfig"]


class ListenConfig(Section):
    host: str = "127.0.0.1"
    """Address that all servers bind. Off loopback is refused until tokens can be configured."""
    grpc_port: int = Field(8001, ge=0, le=65535)
    """Data plane: Open Inference, ranking, health."""
    http_port: int = Field(8000, ge=0, le=65535)
    """REST admin, /metrics, /healthz, /readyz."""
    max_message_bytes: int = Field(16 << 20, ge=1 << 16, le=1 << 30)
    """Largest request or answer; a larger request is refused before it is read."""
    max_candidates: int = Field(10_000, ge=1)
    """Most rows in one request."""
    max_connection_age: Seconds = 0.0
    """After which a client is asked to connect anew, so that connections spread over lanes and hosts that came later; a
    tenth more or less, so that not all do at once. 0, the default, is never: right on one machine, where lanes come and
    go together. Behind a balancer of connections set some minutes. Calls under way are finished."""
    max_connection_age_grace: Seconds = 30.0
    """How long calls under way may go on after that; streams, too, end then and are opened anew by their clients."""

    def address(self, port: int) -> str:
        """host:port, an IPv6 address in brackets."""
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"

    @model_validator(mode="after")
    def _loopback(self) -> ListenConfig:
        if self.host != "localhost" and not ipaddress.ip_address(self.host).is_loopback:
            raise ValueError(
                f"host {self.host} is not loopback: without configured tokens nothing is served off this machine; "
                "use 127.0.0.1 and a proxy that authenticates"
            )
        return self

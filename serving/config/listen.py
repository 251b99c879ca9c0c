"""`listen`: addresses, authentication and limits of the servers."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.faults import refuse
from serving.config.principal import Role
from serving.config.section import Seconds, Section

__all__ = ["LimitsConfig", "ListenConfig", "TlsConfig"]


class TlsConfig(Section):
    """TLS 1.2 or newer on all three ports. The files are checked before each handshake, so that new certificates
    are used without a restart; new files that do not fit together are logged and the old ones stay in use."""

    cert: Path
    """Certificate chain of this server, PEM."""
    key: Path
    """Its private key, PEM, without a password."""
    client_ca: Path | None = None
    """Root certificates of client certificates, PEM."""
    require_client_cert: bool = False
    """Whether every connection to any port needs a client certificate from `client_ca`. Without it the HTTP port requests
    an optional one, and the gRPC ports none: gRPC has no optional client certificates. With it, admin verbs need a role
    of the certificate (`roles`) or a token, on loopback too."""
    roles: dict[str, Role] = Field(default_factory=dict)
    """Roles of client certificates by common name or subject alternative name, for admin verbs without a token. A
    certificate that is not named here may rank and send feedback, and has no admin verb, on loopback either."""

    @model_validator(mode="after")
    def _has_roots(self) -> TlsConfig:
        if self.client_ca is None and (self.require_client_cert or self.roles):
            raise ValueError("client certificates cannot be verified without client_ca; name the file of their roots")
        return self

    def below(self, base: Path) -> Self:
        """The same with relative paths read from `base`."""
        ca = base / self.client_ca if self.client_ca is not None else None
        return self.model_copy(update={"cert": base / self.cert, "key": base / self.key, "client_ca": ca})


class LimitsConfig(Section):
    """Limits of one client: rate per second, and burst after a pause. A client is a token, else a client certificate,
    else an address (of IPv6 the first 64 bits). There are no limits where no authentication is needed."""

    admin: float = Field(50.0, gt=0)
    """Admin calls per second, over gRPC and over HTTP each; pages and requests of a browser's session count for its token.
    Calls that stop a candidate are counted apart, with the same limit."""
    admin_burst: float = Field(200.0, ge=1)
    feedback: float = Field(2000.0, gt=0)
    """Predictions with feedback per second, per lane."""
    feedback_burst: float = Field(20_000.0, ge=1)
    wrong_tokens: float = Field(0.2, gt=0)
    """Wrong tokens per second, per address; further wrong ones get RESOURCE_EXHAUSTED or 429. A right one always passes."""
    wrong_tokens_burst: float = Field(10.0, ge=1)
    connections: int = Field(1000, ge=1)
    """Concurrent HTTP connections, and as many of gRPC on the admin port. A further one of HTTP takes the place of the
    oldest that has sent no request yet; else it is closed. Fewer where the limit of file descriptors (`ulimit -Hn`) has no
    room for them."""
    lane_connections: int = Field(10_000, ge=1)
    """Concurrent connections of one lane; further ones are closed. Fewer where the limit of file descriptors has no room
    for them."""
    streams: int = Field(1000, ge=1)
    """Concurrent calls on one gRPC connection; the client's library delays further ones."""


class ListenConfig(Section):
    host: str = "127.0.0.1"
    """Address that all servers bind. Off loopback it needs `tls`, or `insecure: true`."""
    grpc_port: int = Field(8001, ge=0, le=65535)
    """Data plane: Open Inference, ranking, health."""
    admin_port: int = Field(8003, ge=0, le=65535)
    """gRPC admin."""
    http_port: int = Field(8000, ge=0, le=65535)
    """Console, REST admin, /metrics, /healthz, /readyz."""
    tls: TlsConfig | None = None
    insecure: bool = False
    """Whether to serve off loopback without TLS, behind a proxy that adds it: anyone on the network in between can read
    and change tokens and traffic."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names by which browsers may call the HTTP port, in addition to loopback names and, off loopback, plain
    addresses; add the names of a proxy in front."""
    ranking: Literal["open", "identified"] = "open"
    """`identified`: ranking and inference need a token or a client certificate too."""
    feedback: Literal["auto", "open", "identified"] = "auto"
    """`identified`: labels are accepted only with a token or a client certificate. `auto`: the same, off loopback. Set
    `identified` where a proxy on this machine forwards calls of strangers."""
    feedback_from: tuple[str, ...] = ()
    """Names of tokens and client certificates whose labels are accepted; empty: all of them."""
    open_metrics: bool = False
    """Whether /metrics needs no token even where tokens exist."""
    limits: LimitsConfig = LimitsConfig()
    max_message_bytes: int = Field(16 << 20, ge=1 << 16, le=1 << 30)
    """Largest request or answer; a larger request is refused before it is read."""
    max_candidates: int = Field(10_000, ge=1)
    """Most rows in one request."""
    max_connection_age: Seconds = 0.0
    """Age at which a client must reconnect, so that connections spread over lanes and hosts that started later; randomised
    by a tenth, so that not all clients reconnect at once. 0, the default, is never: right on one machine, where all lanes
    start together. Set some minutes behind a load balancer of connections, and with client certificates, since they are
    checked when a connection begins. Running calls are finished."""
    max_connection_age_grace: Seconds = 30.0
    """Time for running calls after that; streams end then too, and their clients open them again."""

    def address(self, port: int) -> str:
        """host:port, an IPv6 address in brackets."""
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"

    @property
    def ports(self) -> dict[str, int]:
        """The three ports by the setting that names each."""
        return {"grpc_port": self.grpc_port, "http_port": self.http_port, "admin_port": self.admin_port}

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the ports."""
        return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback

    @property
    def certified(self) -> bool:
        """Whether client certificates say who callers are: each caller's role then counts on loopback too, and nobody is an
        operator just for being on this machine."""
        return self.tls is not None and (self.tls.require_client_cert or bool(self.tls.roles))

    @property
    def identified_feedback(self) -> bool:
        """Whether labels are accepted only with a token or a client certificate."""
        return self.feedback == "identified" or (self.feedback == "auto" and not self.loopback)

    @model_validator(mode="after")
    def _ports_apart_and_guarded(self) -> ListenConfig:
        faults: list[str] = []
        named: dict[int, str] = {}
        for name, port in self.ports.items():
            if port and port in named:
                faults.append(f"{named[port]} and {name} are both {port}; give each server a port of its own")
            named.setdefault(port, name)
        if not self.loopback and self.tls is None and not self.insecure:
            faults.append(
                f"host {self.host} is not loopback: set tls (cert and key), or insecure: true where a proxy in front "
                "brings TLS"
            )
        if self.feedback == "open" and not self.loopback:
            faults.append("feedback steers training and promotion: off loopback it cannot be open; use identified")
        refuse(faults)
        return self

    def below(self, base: Path) -> Self:
        """The same with relative paths read from `base`."""
        return self if self.tls is None else self.model_copy(update={"tls": self.tls.below(base)})

"""Options of the client: connections, credentials, retries. The defaults suit one service that calls another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from pipeline.errors import InvalidInput

__all__ = ["Options", "Retry", "Tls"]

KEEPALIVE_ANSWER_S = 5.0


@dataclass(frozen=True, slots=True)
class Retry:
    """Retries of a call. Calls that a server has taken are not repeated, except Feedback, which may be sent any number of
    times.

    Args:
        attempts: of one call at most; 1: no retry.
        first_pause, longest_pause: seconds; a pause is drawn between 0 and a bound that doubles from the first to the
            longest. If the server names a time, that is used instead.
        ratio, burst: of the budget: repetitions per call, and the most that can be saved. If everything fails, a client
            sends `1 + ratio` times its calls, not `attempts` times as many.
        lost: whether Rank is repeated, too, if its connection broke after the server may have taken it. The log is not
            harmed (an answer that was not shown has no exposure and so no row), but a request that crashes its server
            would crash the next one, too.
    """

    attempts: int = 3
    first_pause: float = 0.02
    longest_pause: float = 1.0
    ratio: float = 0.1
    burst: float = 10.0
    lost: bool = False

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise InvalidInput(f"attempts is 1 or more, not {self.attempts}", "attempts")


@dataclass(frozen=True, slots=True)
class Tls:
    """Encrypted connections.

    Args:
        ca: PEM file of the authorities for the server's certificate; None: the system's.
        certificate, key: PEM files that identify the caller (mTLS).
        server_name: in the server's certificate, if it differs from the target's.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str = ""

    def credentials(self) -> grpc.ChannelCredentials:
        """Credentials for gRPC.

        Raises:
            InvalidInput: a file cannot be read, or one of certificate and key is missing.
        """
        if (self.certificate is None) != (self.key is None):
            raise InvalidInput("certificate and key go together: name both or neither", "tls")
        return grpc.ssl_channel_credentials(_read(self.ca), _read(self.key), _read(self.certificate))


@dataclass(frozen=True, slots=True)
class Options:
    """Connections to the servers.

    Args:
        connections: per target. A connection stays with the lane that accepted it, so a single one would leave the other
            lanes idle; a call takes the connection with the fewest calls in progress.
        timeout: seconds for a call with all its attempts, unless the call sets its own.
        token: bearer token, or a function that returns it before each call.
        tls: None: unencrypted.
        clear_token: whether a token may go unencrypted to another machine, for example if a service mesh encrypts.
        retry: when a call is repeated.
        hedge_after: seconds after which a Rank without an answer is sent once more over another connection, from the same
            budget; the first answer counts. Off by default: it costs the servers work, and helps only if a few calls are
            slow by chance. Set it to the 99th percentile.
        keepalive: seconds of silence after which a connection is tested; one that does not answer within half of them, or 5 s,
            is given up for a new one, which another lane may accept.
        max_message: bytes of a request or an answer.
    """

    connections: int = 4
    timeout: float = 5.0
    token: str | Callable[[], str] | None = None
    tls: Tls | None = None
    clear_token: bool = False
    retry: Retry = Retry()
    hedge_after: float | None = None
    keepalive: float = 10.0
    max_message: int = 64 << 20

    def __post_init__(self) -> None:
        if self.connections < 1:
            raise InvalidInput(f"connections is 1 or more, not {self.connections}", "connections")
        if self.hedge_after is not None and self.hedge_after <= 0:
            raise InvalidInput("hedge_after is a number of seconds above 0, or None for never", "hedge_after")

    def channel_arguments(self) -> list[tuple[str, str | int]]:
        """Arguments of each gRPC channel."""
        arguments: list[tuple[str, str | int]] = [
            ("grpc.max_send_message_length", self.max_message),
            ("grpc.max_receive_message_length", self.max_message),
            ("grpc.use_local_subchannel_pool", 1),  # otherwise channels to one target share one connection
            ("grpc.lb_policy_name", "round_robin"),  # a name of several hosts is spread over them
            ("grpc.keepalive_time_ms", round(1000 * self.keepalive)),
            ("grpc.keepalive_timeout_ms", round(1000 * min(self.keepalive / 2, KEEPALIVE_ANSWER_S))),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),  # a lane that hangs is noticed before a call needs it
            (
                "grpc.min_reconnect_backoff_ms",
                3_000,
            ),  # the kernel connects to a lane that hangs, which then says nothing
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 5_000),  # gRPC's own two minutes are longer than any restart here
        ]
        if self.tls is not None and self.tls.server_name:
            arguments.append(("grpc.ssl_target_name_override", self.tls.server_name))
        return arguments

    def authorization(self) -> list[tuple[str, str]]:
        """Metadata of a call with the caller's token."""
        token = self.token() if callable(self.token) else self.token
        return [("authorization", f"Bearer {token}")] if token else []


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}", "tls") from None

"""TLS certificates of all ports, from three PEM files that may be replaced while the server runs.

Each handshake checks the files (three `stat` calls). New files that load and fit together are used from then on. Others
are logged once and the old ones stay in use, since a certificate and its key are never replaced in one step. Open
connections are not touched.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

import grpc

from pipeline.errors import InvalidInput
from serving.config import ListenConfig, TlsConfig

__all__ = ["Certificates", "bind", "open_certificates"]

log = logging.getLogger(__name__)

Mark = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class _Loaded:
    """Files that fit together, in the forms of gRPC and `ssl`; `mark`: inode, time and size of each file."""

    mark: Mark
    grpc: grpc.ServerCertificateConfiguration
    context: ssl.SSLContext


class Certificates:
    """Certificates of one process. Safe for several threads: gRPC calls from threads of its own.

    Raises:
        InvalidInput: the files cannot be read or do not fit together at the start.
    """

    def __init__(self, tls: TlsConfig) -> None:
        self._tls = tls
        self._lock = threading.Lock()
        self._refused: tuple[Mark, str] = ((), "")
        try:
            loaded = self._load(self._mark())
        except (OSError, ValueError) as error:
            raise InvalidInput(f"listen.tls: {self._problem(error)}", "listen.tls") from None
        if loaded is None:
            raise InvalidInput("listen.tls: the files are being replaced; try again", "listen.tls")
        self._loaded = loaded

    def server_credentials(self) -> grpc.ServerCredentials:
        """Credentials of a gRPC server's port. Without `require_client_cert` it requests no client certificates."""

        given = self._loaded

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            current = self._current()
            if current is given:
                return None
            given = current
            return current.grpc

        # None means no change (grpc's documentation); its types do not have it.
        return grpc.dynamic_ssl_server_credentials(given.grpc, renewed, self._tls.require_client_cert)  # type: ignore[arg-type]

    def ssl_context(self) -> ssl.SSLContext:
        """Context of an HTTP server; each handshake uses the present files."""
        context = self._loaded.context

        def begin(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
            current = self._current().context
            if current is not context:
                connection.context = current

        context.sni_callback = begin
        return context

    def _current(self) -> _Loaded:
        with self._lock:
            mark: Mark = ()
            try:
                mark = self._mark()
                if mark not in (self._loaded.mark, self._refused[0]):
                    loaded = self._load(mark)
                    if loaded is not None:
                        self._loaded, self._refused = loaded, ((), "")
                        log.info("new certificates are used from now on: %s", self._tls.cert)
            except (OSError, ValueError) as error:
                refused = mark, self._problem(error)
                if refused != self._refused:
                    log.error("new certificates are not used, the old ones are kept: %s", refused[1])
                self._refused = refused
            return self._loaded

    def _paths(self) -> list[Path]:
        tls = self._tls
        return [tls.cert, tls.key, *([tls.client_ca] if tls.client_ca is not None else [])]

    def _mark(self) -> Mark:
        return tuple(_look(path) for path in self._paths())

    def _load(self, mark: Mark) -> _Loaded | None:
        """Load the files; None: they changed meanwhile."""
        tls = self._tls
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.load_cert_chain(tls.cert, tls.key, password=lambda: "")
        roots = None
        if tls.client_ca is not None:
            context.load_verify_locations(tls.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED if tls.require_client_cert else ssl.CERT_OPTIONAL
            # A resumed session would not have its certificate checked again.
            context.options |= ssl.OP_NO_TICKET
            context.num_tickets = 0
            roots = tls.client_ca.read_bytes()
        pair = (tls.key.read_bytes(), tls.cert.read_bytes())
        if self._mark() != mark:
            return None
        return _Loaded(mark, grpc.ssl_server_certificate_configuration([pair], roots), context)

    def _problem(self, error: OSError | ValueError) -> str:
        if isinstance(error, ssl.SSLError):
            return f"{self._tls.cert} and {self._tls.key}, or client_ca, are not PEM or do not fit together: {error}"
        if isinstance(error, OSError):
            return f"{error.filename or self._tls.cert}: {error.strerror}"
        return str(error)


def open_certificates(listen: ListenConfig) -> Certificates | None:
    """Certificates of a port; None: it has no TLS.

    Raises:
        InvalidInput: see `Certificates`.
    """
    return None if listen.tls is None else Certificates(listen.tls)


def bind(server: grpc.aio.Server, address: str, certificates: Certificates | None) -> int:
    """Let a gRPC server listen; returns its port."""
    if certificates is None:
        return server.add_insecure_port(address)
    return server.add_secure_port(address, certificates.server_credentials())


def _look(path: Path) -> tuple[int, int, int]:
    found = os.stat(path)
    return found.st_ino, found.st_mtime_ns, found.st_size

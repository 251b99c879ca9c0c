"""TLS and client certificates at all three ports, and files that are replaced while clients call."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import trustme
import uvloop
from doors import METHODS, ROUTES
from fastapi import FastAPI
from installation import Installation, RunningLane, eventually, free_port
from operated import MESSAGE_BYTES, Operated
from typer.testing import CliRunner

from pipeline.clock import SystemClock
from protos import inference
from serving.admin import VERBS
from serving.cli.main import app
from serving.config import Config
from serving.config.principal import Role
from serving.http.api import build_app
from serving.http.port import http_server
from serving.security.admitted import Admitted
from serving.security.authenticator import Authenticator
from serving.security.certificates import Certificates, open_certificates
from serving.security.interceptor import AdmitInterceptor
from serving.security.session import Sessions
from serving.services.admin import AdminServer
from serving.services.rpc import Shell
from serving.state.sessions import SqliteSessions

PORTS = ("data", "admin", "http")
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


class Paper:
    """The installation's certificates on disk, and who issues them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.servers, self.clients, self.strangers = trustme.CA(), trustme.CA(), trustme.CA()
        self.servers.cert_pem.write_to_path(folder / "ca.pem")
        self.clients.cert_pem.write_to_path(folder / "client_ca.pem")
        self.renew()

    def renew(self, issuer: trustme.CA | None = None) -> trustme.LeafCert:
        """A new certificate for the server, in place of the old one: the key a moment after the certificate."""
        made = (issuer or self.servers).issue_cert("127.0.0.1", "localhost")
        self.put("cert.pem", b"".join(part.bytes() for part in made.cert_chain_pems))
        self.put("key.pem", made.private_key_pem.bytes())
        return made

    def put(self, name: str, content: bytes) -> None:
        (self.folder / f".{name}").write_bytes(content)
        os.replace(self.folder / f".{name}", self.folder / name)

    def client(self, name: str, issuer: trustme.CA | None = None, *, until: datetime | None = None) -> Pair:
        before = until - timedelta(days=1) if until else None
        made = (issuer or self.clients).issue_cert(
            f"{name}@example.org", common_name=name, not_after=until, not_before=before
        )
        number = len(list(self.folder.glob("*.key")))
        pair = Pair(self.folder / f"{name}-{number}.pem", self.folder / f"{name}-{number}.key")
        pair.cert.write_bytes(b"".join(part.bytes() for part in made.cert_chain_pems))
        pair.key.write_bytes(made.private_key_pem.bytes())
        return pair

    def listen(self, **more: Any) -> dict[str, Any]:
        files = {"cert": self.folder / "cert.pem", "key": self.folder / "key.pem"}
        return {"grpc_port": 0, "tls": {**files, "client_ca": self.folder / "client_ca.pem", **more}}


@dataclass(frozen=True)
class Pair:
    cert: Path
    key: Path


class Ports:
    """The three servers of one installation, with TLS."""

    def __init__(self, home: Path, paper: Paper, **tls: Any) -> None:
        self.paper = paper
        self.made = Installation(home, listen=paper.listen(**tls))
        self.world = Operated(self.made)
        config, clock = self.made.config, self.world.clock
        authenticator = Authenticator(config, clock)
        certificates = open_certificates(config.listen)
        assert certificates is not None
        self.lane = RunningLane(config)
        self.http = http_server(
            build_app(self.world.admin, self.made.home, Admitted()),
            authenticator,
            Sessions(authenticator, SqliteSessions(config.sessions_db), clock, secure=True),
            config.listen,
            certificates,
            port=free_port(),
        )
        self.admin = AdminServer(
            self.world.admin,
            Admitted(),
            Shell(MESSAGE_BYTES, clock),
            "127.0.0.1:0",
            interceptors=[AdmitInterceptor(authenticator)],
            credentials=certificates.server_credentials(),
        )
        self._loop = uvloop.new_event_loop()
        self._threads = [
            threading.Thread(target=self._loop.run_forever, name="test-admin", daemon=True),
            threading.Thread(target=self.http.run, name="test-http", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        asyncio.run_coroutine_threadsafe(self.admin.start(), self._loop).result(60)
        eventually(lambda: self.http.started, "the HTTP port listens", 60)
        self.numbers = {"data": self.lane.lane.port, "admin": self.admin.port, "http": self.http.config.port}

    def close(self) -> None:
        self.lane.stop()
        self.http.should_exit = True
        asyncio.run_coroutine_threadsafe(self.admin.stop(1), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        for thread in self._threads:
            thread.join(20)
        self.world.close()
        self.made.store.close()

    def ask(self, port: str, pair: Pair | None = None, ca: Path | None = None, token: str = "") -> str:
        """What a call that needs nobody's role is answered: "ok", a code or status, or "refused" without a connection.

        The lane and the admin port are asked for their metadata and endpoints, HTTP for its endpoints.
        """
        at, ca = f"127.0.0.1:{self.numbers[port]}", ca or self.paper.folder / "ca.pem"
        authorization = {"authorization": f"Bearer {token}"} if token else {}
        if port == "http":
            context = ssl.create_default_context(cafile=ca)
            if pair is not None:
                context.load_cert_chain(pair.cert, pair.key)
            try:
                found = httpx.get(
                    f"https://{at}/api/v1/endpoints", verify=context, headers=authorization, trust_env=False, timeout=20
                )
            except httpx.TransportError:
                return "refused"
            return "ok" if found.status_code == 200 else str(found.status_code)
        with secure(at, pair, ca) as channel:
            path = f"/{inference.SERVICE}/ServerMetadata" if port == "data" else "/baton.admin.v1.Endpoints/List"
            call: Any = channel.unary_unary(path)
            try:
                call(b"", timeout=20, metadata=tuple(authorization.items()))
            except grpc.RpcError as error:
                code = error.code()  # type: ignore[attr-defined]
                return "refused" if code is grpc.StatusCode.UNAVAILABLE else code.name
            return "ok"


def secure(at: str, pair: Pair | None, ca: Path) -> grpc.Channel:
    own = (pair.key.read_bytes(), pair.cert.read_bytes()) if pair is not None else (None, None)
    # A subchannel of its own, or channels to one address would share a connection and its handshake.
    options = [("grpc.use_local_subchannel_pool", 1)]
    return grpc.secure_channel(at, grpc.ssl_channel_credentials(ca.read_bytes(), *own), options)


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Paper:
    return Paper(tmp_path_factory.mktemp("tls") / "paper")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory, paper: Paper) -> Iterator[Ports]:
    """Ports where every connection needs a client certificate, and `ann`'s is an operator's."""
    with opened(
        tmp_path_factory.mktemp("asked") / "home", paper, require_client_cert=True, roles={"ann": "operator"}
    ) as ports:
        ports.world.token(Role.VIEWER)  # from now on somebody is needed
        yield ports


@contextlib.contextmanager
def opened(home: Path, paper: Paper, **tls: Any) -> Iterator[Ports]:
    ports = Ports(home, paper, **tls)
    try:
        yield ports
    finally:
        ports.close()


@pytest.mark.parametrize("port", PORTS)
def test_a_port_with_mtls_knows_its_clients(asked: Ports, port: str) -> None:
    paper = asked.paper
    assert asked.ask(port) == "refused"  # no certificate
    assert asked.ask(port, paper.client("ann", paper.strangers)) == "refused"  # the right name from elsewhere
    assert asked.ask(port, paper.client("ann", until=LONG_AGO)) == "refused"  # expired
    ann, bob = paper.client("ann"), paper.client("bob")
    assert asked.ask(port, ann) == "ok"
    assert (
        asked.ask(port, ann, ca=paper.folder / "client_ca.pem") == "refused"
    )  # a server that the client does not trust
    answer = {"data": "ok", "admin": "PERMISSION_DENIED", "http": "403"}[port]
    assert asked.ask(port, bob) == answer  # known, and without a role
    assert asked.ask(port, bob, token=asked.world.token(Role.VIEWER)) == "ok"


def test_an_expired_certificate_opens_no_admin_verb(asked: Ports) -> None:
    """The last column of the table in `test_admin_access`: the connection is refused, so that no verb is even named."""
    was, now = asked.paper.client("ann", until=LONG_AGO), asked.paper.client("ann")
    assert set(METHODS) == set(ROUTES) == set(VERBS)
    with secure(f"127.0.0.1:{asked.numbers['admin']}", was, asked.paper.folder / "ca.pem") as channel:
        for name, (service, method) in METHODS.items():
            call: Any = channel.unary_stream(f"/{service}/{method.name}")
            with pytest.raises(grpc.RpcError) as refused:
                next(call(b"", timeout=20))
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE, name  # type: ignore[attr-defined]
    context = ssl.create_default_context(cafile=asked.paper.folder / "ca.pem")
    context.load_cert_chain(was.cert, was.key)
    with httpx.Client(base_url=f"https://127.0.0.1:{asked.numbers['http']}", verify=context, trust_env=False) as client:
        for verb, path in ROUTES.values():
            with pytest.raises(httpx.TransportError):
                client.request(verb, f"/api/v1{path}")
    # The same name in a certificate that is good is an operator's, so it was the date alone.
    assert [asked.ask(port, now) for port in PORTS] == ["ok"] * 3


def test_the_command_line_trusts_and_shows_what_it_is_told(asked: Ports, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CA", "CERT", "KEY"):
        monkeypatch.setenv(f"BATON_{name}", "")  # put back at the end, whatever the command sets
    pair = asked.paper.client("ann")
    server = ("endpoint", "list", "--server", f"https://127.0.0.1:{asked.numbers['http']}", "-o", "json")
    ca = ("--ca", str(asked.paper.folder / "ca.pem"))
    shown = (*ca, "--cert", str(pair.cert), "--key", str(pair.key))
    found = CliRunner().invoke(app, [*shown, *server])
    assert found.exit_code == 0, found.output
    assert "ranker" in found.stdout
    for name in ("CA", "CERT", "KEY"):
        monkeypatch.setenv(f"BATON_{name}", "")
    for options, answer in (((), "certificate"), (ca, ""), ((*ca, "--cert", str(pair.cert)), "--key")):
        refused = CliRunner().invoke(app, [*options, *server])
        assert refused.exit_code == 1
        assert answer in refused.stderr


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("port", PORTS)
def test_nothing_older_than_tls_1_2_and_nothing_in_the_clear(asked: Ports, port: str) -> None:
    at = ("127.0.0.1", asked.numbers[port])
    for version, talks in (
        (ssl.TLSVersion.TLSv1, False),
        (ssl.TLSVersion.TLSv1_1, False),
        (ssl.TLSVersion.TLSv1_2, True),
    ):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_ciphers("ALL:@SECLEVEL=0")
        pair = asked.paper.client("ann")
        context.load_cert_chain(pair.cert, pair.key)
        context.minimum_version, context.maximum_version = version, version
        context.set_alpn_protocols(["h2"])
        with socket.create_connection(at, timeout=20) as raw:
            try:
                with context.wrap_socket(raw, server_hostname="localhost") as connection:
                    spoken: str | None = connection.version()
            except (ssl.SSLError, ConnectionError):
                spoken = None
        assert spoken == ("TLSv1.2" if talks else None)
    with socket.create_connection(at, timeout=20) as raw:
        raw.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200" not in raw.recv(100)


def test_new_certificates_are_used_from_the_next_handshake_and_no_call_fails(tmp_path: Path) -> None:
    paper = Paper(tmp_path / "paper")
    with opened(tmp_path / "home", paper) as ports:
        first = paper.folder / "ca.pem"
        failures: list[str] = []
        answered = dict.fromkeys(PORTS, 0)
        stop = threading.Event()

        def ask(port: str) -> None:
            while not stop.is_set():
                if (answer := ports.ask(port, ca=first)) != "ok":
                    failures.append(f"{port}: {answer}")
                answered[port] += 1

        clients = [threading.Thread(target=ask, args=(port,), name=f"ask-{port}", daemon=True) for port in PORTS]
        for client in clients:
            client.start()

        def more(count: int = 3) -> None:
            wanted = {port: answered[port] + count for port in PORTS}
            eventually(lambda: all(answered[port] >= wanted[port] for port in PORTS), "calls go on", 60)

        more()
        seen = {port: _serial(ports, port) for port in PORTS}
        for _ in range(3):  # each with a moment in which certificate and key do not fit
            paper.renew()
            more()
        assert all(_serial(ports, port) != seen[port] for port in PORTS)
        kept = {port: _serial(ports, port) for port in PORTS}
        for name in ("cert.pem", "key.pem", "client_ca.pem"):
            was = (paper.folder / name).read_bytes()
            for spoiled in (b"", b"-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n"):
                paper.put(name, spoiled)
                more(1)
            (paper.folder / name).unlink()
            more(1)
            assert {port: _serial(ports, port) for port in PORTS} == kept
            paper.put(name, was)
        stop.set()
        for client in clients:
            client.join(30)
        assert not failures
        assert all(answered[port] > 10 for port in PORTS)


def test_connections_before_tls_give_way(tmp_path: Path) -> None:
    paper = Paper(tmp_path / "paper")
    config = Config.model_validate({"home": tmp_path, "listen": paper.listen() | {"limits": {"connections": 5}}})
    listen, authenticator = config.listen, Authenticator(config, SystemClock())
    sessions = Sessions(authenticator, SqliteSessions(config.sessions_db), SystemClock(), secure=True)
    port = free_port()
    server = http_server(FastAPI(), authenticator, sessions, listen, open_certificates(listen), port=port)
    thread = threading.Thread(target=server.run, name="test-http", daemon=True)
    thread.start()
    eventually(lambda: server.started, "the HTTP port listens", 60)
    context = ssl.create_default_context(cafile=paper.folder / "ca.pem")
    with contextlib.ExitStack() as idle:
        held = [idle.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10)) for _ in range(30)]
        for one in held[::2]:
            with contextlib.suppress(ConnectionError):
                one.sendall(b"\x16\x03\x01")  # the begin of a handshake
        answer = httpx.get(f"https://127.0.0.1:{port}/nothing", verify=context, trust_env=False, timeout=20)
        assert answer.status_code == 404
        with contextlib.suppress(ConnectionResetError):
            assert held[0].recv(1) == b"", "the oldest has made room"
    server.should_exit = True
    thread.join(20)


def test_a_root_that_was_taken_out_lets_nobody_in_any_more(tmp_path: Path) -> None:
    paper = Paper(tmp_path / "paper")
    with opened(tmp_path / "home", paper, require_client_cert=True, roles={"old": "viewer", "new": "viewer"}) as ports:
        old, new = paper.client("old"), paper.client("new", paper.strangers)
        assert [(ports.ask(port, old), ports.ask(port, new)) for port in PORTS] == [("ok", "refused")] * 3
        paper.put("client_ca.pem", paper.strangers.cert_pem.bytes())
        assert [(ports.ask(port, old), ports.ask(port, new)) for port in PORTS] == [("refused", "ok")] * 3


def test_files_that_do_not_fit_are_refused_at_start_by_name(tmp_path: Path) -> None:
    paper = Paper(tmp_path / "paper")
    for spoil, answer in (
        (lambda: paper.put("key.pem", trustme.CA().issue_cert("x").private_key_pem.bytes()), "key.pem"),
        (lambda: paper.put("cert.pem", b"nothing"), "cert.pem"),
        (lambda: (paper.folder / "client_ca.pem").unlink(), "client_ca.pem"),
    ):
        spoil()
        with pytest.raises(Exception, match=answer) as refused:
            Certificates(Installation(tmp_path / str(time.monotonic_ns()), listen=paper.listen()).config.listen.tls)  # type: ignore[arg-type]
        assert "listen.tls" in str(refused.value)


def _serial(ports: Ports, port: str) -> bytes:
    """The certificate that the port shows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", ports.numbers[port]), timeout=20) as raw,
        context.wrap_socket(raw) as made,
    ):
        shown = made.getpeercert(binary_form=True)
    assert shown
    return shown

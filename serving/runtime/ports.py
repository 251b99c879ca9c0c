"""Ports of an installation: claimed on this machine before anything listens, so that two homes never share one.

Lanes share their port by SO_REUSEPORT, which the kernel allows to any two processes of one user. So each process of a
home writes a claim of its port, one file each, and finds the claims of others before it listens. Whoever listens without
a claim (another program) is found by binding the port without SO_REUSEPORT.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import logging
import os
import socket
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import psutil

from pipeline.errors import Conflict, InvalidInput, NotReady
from pipeline.memory_folder import make_memory_folder
from serving.runtime.claims import Claim, Holder, holder_of, spelled

__all__ = ["claimed_ports", "claims_of", "listening", "port_holders", "taken"]

NETWORKS = Path("/proc/self/ns/net")

log = logging.getLogger(__name__)


@contextmanager
def claimed_ports(
    host: str, ports: Mapping[str, int], home: Path, role: str, *, folder: Path | None = None
) -> Iterator[None]:
    """Claim ports for a process of a home while it lasts; 0, any free port, needs none.

    Args:
        host: address that is listened on.
        ports: by the setting that names each.
        role: of the process.
        folder: of the claims; that of this user and machine by default.

    Raises:
        Conflict: another home, or another program, has a port; the message names port and holder.
        InvalidInput: the host is no address of this machine.
    """
    folder = folder or _folder()
    mine = Holder.here(home, role, host)
    with ExitStack() as stack:
        with _one_at_a_time(folder):
            for name, port in ports.items():
                if not port:
                    continue
                others = [] if folder is None else port_holders(host, port, folder)
                for other in others:
                    if other.home != mine.home:
                        raise Conflict(
                            f"listen.{name} {port} is in use by another installation: {other}; end it, or set another port"
                        )
                if not others:  # whoever listens now is no process of this home
                    _refuse_strangers(name, host, port)
                if folder is not None:
                    path = folder / f"{_network()}-{port}-{mine.pid}-{role}.lock"
                    stack.callback(Claim.take(path, f"port {port}", mine).release)
        yield


def port_holders(host: str, port: int, folder: Path | None = None) -> list[Holder]:
    """Processes of this user, of every home, that have claimed a port on an address which overlaps with `host`."""
    folder = folder or _folder()
    paths = [] if folder is None else sorted(folder.glob(f"{_network()}-{port}-*.lock"))
    found = [holder for path in paths if (holder := holder_of(path)) is not None]
    return [holder for holder in found if not holder.host or _overlap(host, holder.host)]


def claims_of(role: str) -> list[tuple[int, Holder]]:
    """Ports that processes of a role have claimed, of every home of this user, and who has each."""
    folder = _folder()
    found = []
    for path in sorted(folder.glob(f"{_network()}-*-{role}.lock")) if folder is not None else ():
        port = path.name.removeprefix(f"{_network()}-").split("-")[0]
        if port.isdecimal() and (holder := holder_of(path)) is not None:
            found.append((int(port), holder))
    return found


def taken(host: str, port: int) -> str:
    """Why `host:port` cannot be had by one process alone; "": it can.

    Raises:
        InvalidInput: the host is no address of this machine.
    """
    for family, kind, protocol, _, address in _addresses(host, port):
        with closing(socket.socket(family, kind, protocol)) as probe:
            # Sockets of ended connections are no listeners; without SO_REUSEPORT every listener is in the way.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
            try:
                probe.bind(address)
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:
                    raise InvalidInput(f"listen.host {host} is not an address of this machine", "listen.host") from None
                return str(error.strerror)
    return ""


def listening(host: str, port: int) -> dict[int, str]:
    """Processes that listen on a port of an address that overlaps with `host`, with their commands; those of other users
    may be missing."""
    try:
        found = psutil.net_connections(kind="tcp")
    except (psutil.Error, OSError):
        return {}
    pids = [(c.pid, tuple(c.laddr)) for c in found if c.status == psutil.CONN_LISTEN and c.pid is not None]
    return {pid: _command(pid) for pid, (ip, at) in pids if at == port and _overlap(host, str(ip))}


@contextmanager
def _one_at_a_time(folder: Path | None) -> Iterator[None]:
    """Let one process at a time look and claim; claims that ended processes left behind are removed first."""
    if folder is None:
        yield
        return
    with open(folder / "ports.lock", "a") as mutex:
        fcntl.flock(mutex, fcntl.LOCK_EX)
        for path in folder.glob("*-*.lock"):
            if holder_of(path) is None:
                path.unlink(missing_ok=True)
        yield


def _refuse_strangers(name: str, host: str, port: int) -> None:
    why = taken(host, port)
    if not why:
        return
    who = ", ".join(f"`{command}` (pid {pid})" for pid, command in listening(host, port).items()) or "another program"
    raise Conflict(f"listen.{name} {port} cannot be used: {why}; {who} listens there: end it, or set another port")


def _addresses(host: str, port: int) -> Collection[tuple[int, int, int, str, tuple[object, ...]]]:
    try:
        return set(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE))
    except OSError as error:
        raise InvalidInput(f"listen.host {host}: {error}", "listen.host") from None


def _overlap(one: str, other: str) -> bool:
    """Whether a listener on one host meets connections to the other; names and wildcards count as what they stand for."""
    first, second = _reach(one), _reach(other)
    return any(
        a == b or (a.is_unspecified and (a.version == b.version or a.version == 6))
        or (b.is_unspecified and (b.version == a.version or b.version == 6))
        for a in first for b in second
    )  # fmt: skip


def _reach(host: str) -> set[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    try:
        return {ipaddress.ip_address(host)}
    except ValueError:
        return {ipaddress.ip_address(str(address[4][0])) for address in _addresses(host, 0)}


def _folder() -> Path | None:
    """Folder of this user's claims on this machine; None where it cannot be trusted or made."""
    try:
        return make_memory_folder(os.getuid())
    except NotReady as error:
        log.warning("claims of ports are not kept: %s", error)
        return None


def _network() -> int:
    """Number of the network that this process sees: containers may share a folder and not their ports."""
    try:
        return NETWORKS.stat().st_ino
    except OSError:
        return 0


def _command(pid: int) -> str:
    try:
        return spelled([word for word in psutil.Process(pid).cmdline() if word])
    except psutil.Error:
        return "?"

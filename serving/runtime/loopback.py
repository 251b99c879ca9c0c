"""Loopback addresses: what is on this machine, which no proxy can reach.

HTTP libraries and gRPC send calls through the proxy that the environment names, those to 127.0.0.1 too. The proxy is
another machine, and there nothing of ours listens. Calls to other machines may go through it.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import MutableMapping
from urllib.parse import unquote

__all__ = ["channel_arguments", "is_loopback", "is_loopback_host", "spare_from_proxies"]

_NAMES = ("localhost", "127.0.0.1", "::1", "127.0.0.0/8")
"""Exceptions from proxies in the forms that libraries know; gRPC alone knows networks."""
_VARIABLES = ("no_proxy", "NO_PROXY")
_OF_GRPC = "no_grpc_proxy"
"""Where it is set, gRPC does not look at the others."""


def is_loopback(target: str) -> bool:
    """Whether a target of gRPC (`host:port`, `dns:`, `ipv4:`, `ipv6:` or `unix:` with it) is on this machine.

    >>> [is_loopback(target) for target in ("localhost:1", "dns:///[::1]:1", "ipv4:127.0.0.1:1,127.0.0.2:1", "a:1")]
    [True, True, True, False]
    """
    kind, _, rest = target.partition(":")
    if kind in ("unix", "unix-abstract"):
        return True
    if kind == "dns":
        rest = rest.rpartition("/")[2]
    elif kind not in ("ipv4", "ipv6"):
        rest = target
    return all(is_loopback_host(_host(unquote(address))) for address in rest.split(","))


def is_loopback_host(host: str) -> bool:
    """Whether a host is this machine: an address, or `localhost`; other names are not looked up.

    >>> [is_loopback_host(host) for host in ("127.0.0.2", "::1", "localhost", "localhost.example")]
    [True, True, True, False]
    """
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def channel_arguments(target: str) -> list[tuple[str, int]]:
    """Arguments that a gRPC channel to a target takes beside its own."""
    return [("grpc.enable_http_proxy", 0)] if is_loopback(target) else []


def spare_from_proxies(environment: MutableMapping[str, str] | None = None) -> None:
    """Except loopback from the proxies that the environment names, for every library and for child processes."""
    environ = os.environ if environment is None else environment
    # Libraries differ in which spelling they prefer, so both get what either has.
    merged = _with_loopback([environ.get(name, "") for name in _VARIABLES])
    environ.update(dict.fromkeys(_VARIABLES, merged))
    if _OF_GRPC in environ:
        environ[_OF_GRPC] = _with_loopback([environ[_OF_GRPC]])


def _with_loopback(lists: list[str]) -> str:
    entries = [entry.strip() for text in lists for entry in text.split(",")]
    return ",".join(dict.fromkeys(entry for entry in (*entries, *_NAMES) if entry))


def _host(address: str) -> str:
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.rpartition(":")[0] if address.count(":") == 1 else address

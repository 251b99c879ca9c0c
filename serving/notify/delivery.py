"""One POST to a receiver, bounded in time, to an address that is looked at before it is used.

The name is resolved once and the connection goes to that address, so a name cannot answer the check with one address and the
connection with another. Redirects are not followed, and proxies of the environment are not used.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping

import httpx

__all__ = ["TIMEOUT_S", "Undelivered", "deliver"]

TIMEOUT_S = 5.0


class Undelivered(Exception):
    """A receiver was not reached, or did not answer with success."""


def deliver(url: str, body: bytes, headers: Mapping[str, str], *, private: bool, timeout: float = TIMEOUT_S) -> None:
    """POST a body.

    Args:
        private: whether the address may be one of this machine or of a private network.
        timeout: seconds for connecting, for sending and for the answer's first bytes, each.

    Raises:
        Undelivered: it was not taken with a status of 2xx.
    """
    target = httpx.URL(url)
    address = _address(target, private)
    try:
        with (
            httpx.Client(trust_env=False, follow_redirects=False, timeout=timeout) as client,
            client.stream(
                "POST",
                target.copy_with(host=address),
                content=body,
                headers={**headers, "host": target.netloc.decode()},
                extensions={"sni_hostname": target.host},
            ) as answer,
        ):
            if not answer.is_success:
                raise Undelivered(f"it answered {answer.status_code}")
    except httpx.HTTPError as error:
        raise Undelivered(f"{type(error).__name__}: {error}") from None


def _address(target: httpx.URL, private: bool) -> str:
    """An address of the receiver that may be used."""
    try:
        found = socket.getaddrinfo(target.host, target.port or 443, type=socket.SOCK_STREAM)
    except OSError as error:
        raise Undelivered(f"its name cannot be resolved: {error}") from None
    addresses = [str(each[4][0]) for each in found]
    for address in addresses:
        if not private and not ipaddress.ip_address(address.partition("%")[0]).is_global:
            raise Undelivered(
                f"its address {address} is of this machine or of a private network; `private: true` allows that"
            )
    return addresses[0]

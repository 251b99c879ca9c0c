"""Exposure of an installation, checked before any port opens: files that others can read, ports without authentication."""

from __future__ import annotations

from pipeline.errors import InvalidInput
from serving.config import Config
from serving.security.access_memory import AccessMemory
from serving.security.modes import weak_files
from serving.security.tokens import TokenStore

__all__ = ["exposure"]


def exposure(config: Config, *, supervised: bool = False) -> list[str]:
    """Warnings for the operator before the ports open.

    Args:
        supervised: whether the process belongs to a `baton serve` that runs: where what limited access has gone since its
            start, it goes on, and admits nobody without a token.

    Raises:
        InvalidInput: other users can read the installation's secret or tokens; a port would be open to other machines
            without any authentication; or what limited access before is gone.
    """
    warnings = []
    for path, weak in weak_files(config):
        if path in (config.secret, config.tokens):
            raise InvalidInput(weak, "home")
        warnings.append(weak)
    listen = config.listen
    tokens = TokenStore(config.tokens).tokens()
    memory = AccessMemory(config.access_memory, config.tokens)
    if not supervised:
        memory.check(tokens=tokens is not None, roles=listen.certified)
    memory.remember(tokens=tokens is not None, roles=listen.certified)
    certified = listen.tls is not None and listen.tls.require_client_cert
    if not listen.loopback and tokens is None and not certified:
        raise InvalidInput(
            f"listen.host {listen.host} is not loopback, and there is no authentication: make a token "
            "(baton token create NAME --role operator) or set listen.tls.require_client_cert",
            "listen.host",
        )
    if not listen.loopback and listen.tls is None:
        warnings.append(
            f"INSECURE: {listen.host} is served without TLS (listen.insecure): tokens, features and labels can be read "
            "and changed on the network in between"
        )
    if tokens is None and listen.loopback and listen.tls is not None and listen.certified and not listen.tls.roles:
        warnings.append(
            "no caller may use an admin verb over the ports: there are no tokens, and listen.tls.roles names no client "
            "certificate; make a token (baton token create NAME --role operator) or give a role"
        )
    elif tokens is None and listen.loopback and listen.certified:
        warnings.append("no tokens: admin verbs are for the client certificates that listen.tls.roles names")
    elif tokens is None and listen.loopback:
        warnings.append(
            "no tokens: everyone on this machine is an operator, and nothing is served off it; "
            "the first `baton token create` changes that"
        )
    elif tokens == {}:
        warnings.append("the last token was revoked: nobody has access; make one with `baton token create`")
    return warnings

"""Exposure of an installation, checked before any port opens: files that others can read, ports without authentication."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import InvalidInput
from serving.config import Config
from serving.security.tokens import TokenStore

__all__ = ["close_home", "exposure", "weak_files"]

OTHERS = stat.S_IRWXG | stat.S_IRWXO


def close_home(config: Config) -> None:
    """Create the home and its folder of sockets and status files. The folder, and a new home, are for the owner only.

    Raises:
        InvalidInput: they cannot be created.
    """
    try:
        config.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        run = config.shadow_socket.parent
        run.mkdir(mode=0o700, exist_ok=True)
        if stat.S_IMODE(run.stat().st_mode) & OTHERS:
            run.chmod(0o700)
    except OSError as error:
        raise InvalidInput(f"home {config.home}: {error.strerror}: {error.filename}", "home") from None


def weak_files(config: Config) -> Iterator[tuple[Path, str]]:
    """Files with secrets that other users can read or change, each with what to do."""
    listen = config.listen
    keys = [config.secret, config.tokens]
    if listen.tls is not None:
        keys.append(listen.tls.key)
    stores = [config.embedding.redis, config.traffic, config.state]
    keys += [store.password_file for store in stores if store is not None and store.password_file is not None]
    for path in keys:
        try:
            mode = stat.S_IMODE(os.stat(path).st_mode)
        except OSError:
            continue  # the process that needs it reports that it is missing
        if mode & OTHERS:
            yield path, f"{path} may be read or changed by others (mode {mode:04o}): chmod 600 {path}"


def exposure(config: Config) -> list[str]:
    """Warnings for the operator before the ports open.

    Raises:
        InvalidInput: other users can read the installation's secret or tokens, or a port would be open to other machines
            without any authentication.
    """
    warnings = []
    for path, weak in weak_files(config):
        if path in (config.secret, config.tokens):
            raise InvalidInput(weak, "home")
        warnings.append(weak)
    listen = config.listen
    tokens = TokenStore(config.tokens).tokens()
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

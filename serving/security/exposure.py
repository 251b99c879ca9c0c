"""What an installation lays open, looked at before anything is served: files that others can read, ports without a lock."""

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
    """Make the home, its owner's alone if it is new, and the folder of sockets and status files, always so.

    Raises:
        InvalidInput: they cannot be made.
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
    """Files whose content lets one in and that others can read or change, with what to do."""
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
            continue  # whoever needs it says that it is not there
        if mode & OTHERS:
            yield path, f"{path} may be read or changed by others (mode {mode:04o}): chmod 600 {path}"


def exposure(config: Config) -> list[str]:
    """What a person should know before the ports open.

    Raises:
        InvalidInput: the installation's secret or tokens lie open, or a port would be reached by others while nobody
            could say who he is.
    """
    said = []
    for path, weak in weak_files(config):
        if path in (config.secret, config.tokens):
            raise InvalidInput(weak, "home")
        said.append(weak)
    listen = config.listen
    tokens = TokenStore(config.tokens).tokens()
    certified = listen.tls is not None and listen.tls.require_client_cert
    if not listen.loopback and tokens is None and not certified:
        raise InvalidInput(
            f"listen.host {listen.host} is not loopback, and nobody could say who he is: make a token "
            "(baton token create NAME --role operator) or set listen.tls.require_client_cert",
            "listen.host",
        )
    if not listen.loopback and listen.tls is None:
        said.append(
            f"INSECURE: {listen.host} is served without TLS (listen.insecure): tokens, features and labels can be read "
            "and changed by whoever is between"
        )
    if tokens is None and listen.loopback:
        said.append(
            "no tokens: everyone on this machine is an operator, and nothing is served off it; "
            "the first `baton token create` changes that"
        )
    elif tokens == {}:
        said.append("the last token was revoked: nobody may do anything; make one with `baton token create`")
    return said

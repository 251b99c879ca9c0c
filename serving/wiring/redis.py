"""Address of a Redis from its settings, with the password."""

from __future__ import annotations

import os

from pipeline.errors import InvalidInput
from pipeline.redis.address import RedisAddress
from serving.config import RedisAccess
from serving.runtime.loopback import is_loopback_host

__all__ = ["open_to_others", "redis_address"]


def redis_address(config: RedisAccess, section: str) -> RedisAddress:
    """Address of a Redis.

    Args:
        section: of the configuration that names it, for messages.

    Raises:
        InvalidInput: the password is not where the configuration says, the URL is wrong, or the Redis is on another machine
            and without protection, see `open_to_others`.
    """
    password = ""
    if config.password_file is not None:
        try:
            password = config.password_file.read_text().partition("\n")[0].strip()
        except OSError as error:
            raise InvalidInput(
                f"{section}.password_file {config.password_file}: {error.strerror}", "password_file"
            ) from None
    elif config.password_env:
        password = os.environ.get(config.password_env, "")
    if not password and (config.password_file is not None or config.password_env):
        place = config.password_file or f"${config.password_env}"
        raise InvalidInput(f"{section}: there is no password in {place}", "password_file")
    address = RedisAddress(config.url, config.username, password, config.tls_ca)
    if not config.insecure and (lack := open_to_others(address)):
        raise InvalidInput(
            f"{section}: {lack}. Set {section}.password_file and a rediss:// URL; {section}.insecure: true allows it where "
            "nobody else reaches that network",
            f"{section}.insecure",
        )
    return address


def open_to_others(address: RedisAddress) -> str:
    """What an address lacks so that others cannot read and change what is there; empty: nothing, or it is on this machine."""
    if not address.host or is_loopback_host(address.host):
        return ""
    lacks = [what for what, there in (("a password", address.password), ("TLS", address.tls)) if not there]
    if not lacks:
        return ""
    return f"the Redis at {address.url} is on another machine and without {' and '.join(lacks)}, so others may read and change it"

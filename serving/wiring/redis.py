"""Address of a Redis from its settings, with the password."""

from __future__ import annotations

import os

from pipeline.errors import InvalidInput
from pipeline.redis.address import RedisAddress
from serving.config import RedisAccess

__all__ = ["redis_address"]


def redis_address(config: RedisAccess, section: str) -> RedisAddress:
    """Address of a Redis.

    Args:
        section: of the configuration that names it, for messages.

    Raises:
        InvalidInput: the password is not where the configuration says, or the URL is wrong.
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
    return RedisAddress(config.url, config.username, password, config.tls_ca)

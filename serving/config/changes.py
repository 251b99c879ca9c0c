"""Changes of a configuration that a restart of one process after another can bring in, and those that need a full stop.

Old and new processes run side by side for a while. They must share home, ports and stores; all else each reads at its own start.
"""

from __future__ import annotations

from serving.config.file import Config

__all__ = ["FIXED", "needs_full_stop"]

FIXED = (
    "home", "bundles", "listen.host", "listen.grpc_port", "listen.admin_port", "listen.http_port", "listen.tls",
    "state.url", "traffic.url",
)  # fmt: skip
"""Settings that need a full stop. Of `listen.tls` only whether there is any."""


def needs_full_stop(running: Config, changed: Config) -> list[str]:
    """Settings that differ and cannot change while processes of both run; empty: the change can be brought in.

    >>> needs_full_stop(Config(), Config.model_validate({"bundles_keep": 3, "listen": {"http_port": 9000}}))
    ['listen.http_port']
    """
    return [name for name in FIXED if _value(running, name) != _value(changed, name)]


def _value(config: Config, name: str) -> object:
    found: object = config
    for part in name.split("."):
        found = getattr(found, part)
    return found is not None if name == "listen.tls" else found

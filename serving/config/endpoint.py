"""`endpoints`: the names that clients call, with their arms."""

from __future__ import annotations

from serving.config.section import Section

__all__ = ["ArmConfig", "EndpointConfig"]


class ArmConfig(Section):
    bundle: str
    """Bundle name in the repository."""
    version: str = ""
    """Decimal version; empty: the newest that may serve."""


class EndpointConfig(Section):
    stable: ArmConfig
    candidate: ArmConfig | None = None
    salt: str | None = None
    """Of the assignment of keys to arms; the endpoint's name unless said. Changing it deals all keys anew."""
    overrides: bool | tuple[str, ...] = False
    """Who may choose the arm with the parameter `arm`: nobody, operators (true; on a machine without tokens that is
    everyone on it), or operators and the callers whose token or client certificate is named here."""

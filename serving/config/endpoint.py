"""`endpoints`: names that clients call, with their arms."""

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
    """Salt of the assignment of keys to arms; unset: the endpoint's name. A change assigns all keys again."""
    observe: bool = False
    """Whether callers may tell what other servers answered (`Observe`) for arms that Baton serves, too. For an arm
    `observed:NAME` they always may."""
    overrides: bool | tuple[str, ...] = False
    """Callers that may choose the arm with the parameter `arm`: none, operators (true; on a machine without tokens that is
    everyone on it), or operators and the callers whose token or client certificate is named here."""

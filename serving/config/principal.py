"""Who calls, and as what. Every door turns credentials into a `Principal` by one `PrincipalSource` and asks it nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from pipeline.errors import PermissionDenied

__all__ = ["Principal", "PrincipalSource", "Role"]


class Role(StrEnum):
    """What a caller may do; an operator may do all that a viewer may."""

    VIEWER = "viewer"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller. `name` is what the audit says."""

    name: str
    role: Role

    def require(self, role: Role) -> None:
        """Raises: PermissionDenied: the caller has less than `role`."""
        if role is Role.OPERATOR and self.role is not Role.OPERATOR:
            raise PermissionDenied(f"{self.name} is a {self.role}; this takes an {role}")


class PrincipalSource(Protocol):
    """Tells who calls."""

    def authenticate(self, authorization: str) -> Principal:
        """The caller whose `authorization` header or metadata this is (empty: none was sent).

        Raises:
            Unauthenticated: no, a wrong, or a revoked token where one is needed.
        """

"""Principals: callers with their roles. Every port turns credentials into a `Principal` by one `PrincipalSource`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from pipeline.errors import PermissionDenied

__all__ = ["Principal", "PrincipalSource", "Role"]


class Role(StrEnum):
    """Role of a caller; an operator may do all that a viewer may."""

    VIEWER = "viewer"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller. The audit has its `name`."""

    name: str
    role: Role

    def require(self, role: Role) -> None:
        """Check the role. Raises: PermissionDenied: the caller has less than `role`."""
        if role is Role.OPERATOR and self.role is not Role.OPERATOR:
            raise PermissionDenied(f"{self.name} is a {self.role}; this takes an {role}")


class PrincipalSource(Protocol):
    """Source of principals: turns credentials into the caller."""

    def authenticate(self, authorization: str) -> Principal:
        """Principal of an `authorization` header or metadata value (empty: none was sent).

        Raises:
            Unauthenticated: no, a wrong, or a revoked token where one is needed.
        """

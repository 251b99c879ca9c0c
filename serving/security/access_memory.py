"""Memory of a home that access was limited: by tokens, or by roles of client certificates.

Without its file of tokens a home on loopback is open to everyone on the machine. That is right where there never were any,
and a hole where the file has been lost. So a home remembers that there were some, beside the identity of its state.
"""

from __future__ import annotations

import logging
from pathlib import Path

from pipeline.disk import replacing
from pipeline.errors import InvalidInput

__all__ = ["AccessMemory"]

TOKENS, ROLES = "tokens", "roles"

log = logging.getLogger(__name__)


class AccessMemory:
    """Memory of one home, in a file with a word a line.

    Args:
        path: of the file. tokens: of the home's file of tokens.
    """

    def __init__(self, path: Path, tokens: Path) -> None:
        self._path, self._tokens = path, tokens

    @property
    def limited(self) -> bool:
        """Whether access was limited before."""
        return bool(self._read())

    def check(self, *, tokens: bool, roles: bool) -> None:
        """Check that what limited access still does. `tokens`: whether the file is there; `roles`: whether some are configured.

        Raises:
            InvalidInput: it does not, and everyone would be let in.
        """
        known = self._read()
        if TOKENS in known and not tokens:
            raise InvalidInput(
                f"{self._tokens} is missing, and this home had tokens: without it everyone on this machine would be an "
                "operator. Bring it back with `baton restore`, or make a new token (baton token create NAME --role operator), "
                "or open this machine on purpose: baton token open --reason '...'",
                "tokens",
            )
        if ROLES in known and not roles and not tokens:
            raise InvalidInput(
                "listen.tls.roles is missing from the configuration, and this home had roles: without them everyone on this "
                "machine would be an operator. Bring the file of the configuration back, or make a token (baton token create "
                "NAME --role operator), or open this machine on purpose: baton token open --reason '...'",
                "listen.tls.roles",
            )

    def remember(self, *, tokens: bool, roles: bool) -> None:
        """Note what limits access now; what was noted before stays."""
        known = self._read()
        wanted = known | {word for word, there in ((TOKENS, tokens), (ROLES, roles)) if there}
        if wanted == known:
            return
        try:
            with replacing(self._path, durable=True) as staging:
                staging.write_text("".join(f"{word}\n" for word in sorted(wanted)))
        except OSError as error:
            log.error("that access is limited is not remembered, %s: %s", self._path, error)

    def forget(self) -> None:
        """Forget all: from now on nothing limits access."""
        self._path.unlink(missing_ok=True)

    def _read(self) -> frozenset[str]:
        try:
            return frozenset(self._path.read_text(errors="replace").split())
        except FileNotFoundError:
            return frozenset()
        except OSError as error:
            raise InvalidInput(f"{self._path} cannot be read: {error.strerror}", "home") from None

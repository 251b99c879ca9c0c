"""Identity of a state store, as a home remembers it. A store without it, or with another one, is not this home's state.

A store that was emptied, replaced, or promoted without its data answers like one in which nothing was ever set. So a store
gets an identity when it is made, every home keeps it in a file, and what a store says counts only with that identity.
"""

from __future__ import annotations

import logging
import re
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pipeline.disk import replacing
from pipeline.errors import InvalidInput, NotReady

__all__ = ["HomeIdentity", "Loss", "StateLost", "new_identity", "shown_identity"]

Loss = Literal["empty", "another", "gone"]
_FORM = re.compile(r"[0-9a-f]{32}")
_SHOWN_LETTERS = 8

log = logging.getLogger(__name__)


class StateLost(NotReady):
    """The store is empty, another installation's, or its file is gone: what it lacks is no order.

    Args:
        kind: `empty`: it has no identity; `another`: it has that of another state; `gone`: there is no file.
        found: its identity; "": none.
    """

    def __init__(self, message: str, kind: Loss, found: str = "") -> None:
        super().__init__(message)
        self.kind: Loss = kind
        self.found = found


class HomeIdentity:
    """Identity that a home knows, in a file. Safe for several threads and processes.

    Args:
        path: of the file; it is made with its folder.

    Attributes:
        known: the identity; "": this home has met no state yet.

    Raises:
        InvalidInput: the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.known = self._read()

    def check(self, found: object, what: str) -> None:
        """Check the identity that a store has. Anything goes where this home knows none.

        Args:
            found: bytes or text as stored; None: it has none. what: name of the store, for the message.

        Raises:
            StateLost: it is not the one that is known.
        """
        text = found.decode(errors="replace") if isinstance(found, bytes) else str(found or "")
        if not self.known or text == self.known:
            return
        with suppress(InvalidInput):
            self.known = self._read() or self.known  # an operator may have chosen another one since
        if text == self.known:
            return
        mine = shown_identity(self.known)
        if not text:
            raise StateLost(
                f"{what} was emptied or replaced: it has no identity, and the state of this home is {mine}. Nothing is done "
                "on it. Fill it again: baton state restore",
                "empty",
            )
        raise StateLost(
            f"{what} is another installation's: it is {shown_identity(text)}, and the state of this home is {mine}. Nothing "
            "is done on it. Name the right one in state.url, or choose: baton state adopt, baton state restore --replace",
            "another",
            text,
        )

    def adopt(self, identity: str) -> None:
        """Make an identity the one that this home knows."""
        self.known = identity
        try:
            with replacing(self._path, durable=True) as staging:
                staging.write_text(identity + "\n")
        except OSError as error:
            log.error("the identity of the state is not remembered, %s: %s", self._path, error)

    def _read(self) -> str:
        try:
            text = self._path.read_text(errors="replace").strip()
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise InvalidInput(f"{self._path} cannot be read: {error.strerror}", "home") from None
        if not _FORM.fullmatch(text):
            raise InvalidInput(
                f"{self._path} is damaged: it holds the identity of the state, 32 hexadecimal digits. Follow the state that "
                "is configured now: baton state adopt",
                "home",
            )
        return text


def new_identity() -> str:
    """A random identity, 32 hexadecimal digits."""
    return secrets.token_hex(16)


def shown_identity(identity: str) -> str:
    """An identity as it is shown to people.

    >>> shown_identity("0f" * 16)
    '0f0f0f0f'
    """
    return identity[:_SHOWN_LETTERS]

"""Hash of routing keys for the traffic log, under the installation's secret.

With the secret, the rows of a user can be found by the key; the key cannot be found from the rows. Lanes hash the keys of
requests, the control process hashes the key of a user who is to be forgotten.
"""

from __future__ import annotations

import hashlib

__all__ = ["RoutingHash"]


class RoutingHash:
    """Keyed 64-bit hashes (BLAKE2b) of routing keys under one secret."""

    def __init__(self, secret: bytes) -> None:
        self._keyed = hashlib.blake2b(key=secret, digest_size=8, person=b"routing")

    def __call__(self, key: str) -> int:
        """The hash of a key, 1..2^64-1; 0 for no key.

        >>> RoutingHash(b"k" * 32)("")
        0
        """
        if not key:
            return 0
        keyed = self._keyed.copy()
        keyed.update(key.encode())
        return int.from_bytes(keyed.digest(), "big") or 1

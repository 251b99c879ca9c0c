"""The key of an id: ids of all tables of one width share a store, and one id may stand in several of them."""

from __future__ import annotations

import xxhash

__all__ = ["salt_of"]


def salt_of(table: str) -> int:
    """What is xor-ed into the ids of a table to make keys, signed 64-bit."""
    digest: int = xxhash.xxh3_64_intdigest(f"table:{table}".encode())
    return digest - (1 << 64) if digest >= 1 << 63 else digest

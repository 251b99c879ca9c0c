"""Place of a reader in the predictions of all lanes, as text: how far it has read each of them.

A lane's predictions stand in the order of their commits, so nothing ever appears before a place; between lanes there is no
such order, and one number could not say it.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.errors import InvalidInput

__all__ = ["pack_place", "unpack_place"]


def pack_place(place: Mapping[int, int]) -> str:
    """Write a place: the last seq read, by lane.

    >>> pack_place({3: 17, 0: 4})
    '0:4 3:17'
    """
    return " ".join(f"{lane}:{seq}" for lane, seq in sorted(place.items()))


def unpack_place(text: str) -> dict[int, int]:
    """Read what `pack_place` wrote; empty: the beginning, and so is a number alone, the place in a log of version 0.1.

    Raises:
        InvalidInput: it is not such a text.
    """
    if text.isdecimal():
        return {}
    try:
        return {int(lane): int(seq) for lane, seq in (pair.split(":") for pair in text.split())}
    except ValueError:
        raise InvalidInput(f"after: {text!r} is not a place in the predictions of this log", "after") from None

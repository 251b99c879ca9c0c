"""Which keys the candidate answers: a pure function of salt, key and weight.

A key's bucket never changes, so the same key stays on the same arm over restarts and processes, and a growing weight
only ever adds keys to the candidate. Nothing is drawn: a client that asks often is not assigned more often.
"""

from __future__ import annotations

from pipeline.hashing import bucket

__all__ = ["held_out", "on_candidate"]

_HOLDOUT = "holdout:"


def on_candidate(salt: str, key: str, weight: float) -> bool:
    """Whether `key` belongs to the candidate at `weight` percent (0..100).

    >>> on_candidate("r1", "712", 53.3), on_candidate("r1", "712", 53.4)
    (False, True)
    """
    return bucket(salt, key) < 100.0 * weight


def held_out(salt: str, key: str, share: float) -> bool:
    """Whether `key` is of the `share` (0..1) of keys that stay on stable at any weight.

    Sample under a salt of its own, so that the holdout is a fair sample of the keys of every bucket.
    """
    return share > 0.0 and bucket(_HOLDOUT + salt, key) < 10_000.0 * share

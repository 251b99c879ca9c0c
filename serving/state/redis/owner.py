"""Owner of a shared Redis: which state it holds, by the identity that is in it (`serving.rollout.identity`).

What one installation tells in a Redis, others would take for their own: a kill, a status, the address of a replica. So what
is told there is told to the Redis that the home knows, or to one that was emptied.
"""

from __future__ import annotations

from typing import Any

from pipeline.errors import NotReady

__all__ = ["IDENTITY", "refuse_other"]

IDENTITY = "control:identity"
"""Key of the identity."""


def refuse_other(found: Any, known: str, url: str) -> None:
    """Check the identity that a Redis has. `known`: that of the home; "": any will do.

    Raises:
        NotReady: it has another one.
    """
    if known and found and bytes(found) != known.encode():
        raise NotReady(f"state {url} is another installation's: nothing is read from it or written to it")

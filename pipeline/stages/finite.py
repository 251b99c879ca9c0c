"""Finite stage: the last look at scores that other stages than ours have rewritten."""

from __future__ import annotations

import numpy as np

from pipeline.errors import NotFinite
from pipeline.event import Event

__all__ = ["Finite"]


class Finite:
    """Refuses scores that a user's stage has made NaN or infinite. The model's own were looked at when it made them.

    Raises (from `run`):
        NotFinite: naming the first such candidate.
    """

    name = "finite"
    consumes = ("scores",)
    produces: tuple[str, ...] = ()

    def run(self, event: Event) -> None:
        assert event.scores is not None
        ill = np.flatnonzero(~np.isfinite(event.scores))
        if len(ill):
            raise NotFinite(
                f"a stage of setting `stages` gave {len(ill)} of {len(event.scores)} candidates a score that is not finite; "
                f"the first is candidate {int(ill[0])}"
            )

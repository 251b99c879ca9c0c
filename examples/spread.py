"""A stage of one's own: a re-ranker that keeps one seller, or one category, from filling the page.

stages:
  - {class: "spread:Spread", args: {field: category, keep: 0.8}}     # in baton.yaml; PYTHONPATH=examples
"""

from __future__ import annotations

import numpy as np

from pipeline.errors import InvalidInput
from pipeline.event import Event


class Spread:
    """Multiplies a candidate's score by `keep` for each better candidate with the same value of a field.

    Args:
        field: an id field of the candidates.
        keep: in 0..1.
    """

    name = "spread"
    consumes = ("scores", "features", "model")
    produces = ("scores",)  # consumed as well: it rewrites them

    def __init__(self, field: str, keep: float = 0.8) -> None:
        if not 0 <= keep <= 1:
            raise InvalidInput(f"keep is in 0..1, not {keep}", "keep")
        self._field = field
        self._keep = keep

    def run(self, event: Event) -> None:
        values = self._values(event)
        order = np.lexsort((-event.scores, values))  # equal values side by side, the best first
        ordered = values[order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        better = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
        scores = np.empty_like(event.scores)
        scores[order] = event.scores[order] * self._keep**better
        event.scores = scores  # a new array: the old one may be kept by others

    def _values(self, event: Event) -> np.ndarray:
        names = [field.name for field in event.model.schema.ids]
        if self._field in names:
            column = names.index(self._field)
            for part in event.features.ids:
                if column in part.columns and len(part.values) == len(event.scores):
                    return part.values[:, int(np.flatnonzero(part.columns == column)[0])]
        raise InvalidInput(f"{self._field!r} is no id field of the candidates", self._field)

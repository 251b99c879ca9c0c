"""Infer stage: from the network's inputs to calibrated probabilities."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.event import Event
from pipeline.inputs import DenseInputs

__all__ = ["Infer"]


class Infer:
    """Runs network and calibration, once for all requests of a batch; `scores` belong to the event.

    The network may be another server: then it is told until when each request waits. A request with a score that is not
    finite fails with `NotFinite`; the others of its batch are answered.
    """

    name = "infer"
    consumes = ("dense", "model")
    produces = ("scores",)

    def run(self, event: Event) -> None:
        assert event.model is not None
        assert event.dense is not None
        event.scores = event.model.infer(event.dense, event)
        # The thread reuses the buffers for its next event.
        event.dense = None

    def run_batch(self, events: Sequence[Event]) -> None:
        model = events[0].model
        assert model is not None
        windows: list[DenseInputs] = []
        for event in events:
            assert event.dense is not None
            windows.append(event.dense)
        for event, scores in zip(events, model.infer_batch(windows, events), strict=True):
            if isinstance(scores, Exception):
                event.error = scores
            else:
                event.scores = scores
            event.dense = None

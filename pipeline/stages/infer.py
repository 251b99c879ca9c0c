"""Infer: the network's inputs become calibrated probabilities."""

from __future__ import annotations

from pipeline.event import Event

__all__ = ["Infer"]


class Infer:
    """Runs network and calibration; `scores` belong to the event."""

    name = "infer"
    consumes = ("dense", "model")
    produces = ("scores",)

    def run(self, event: Event) -> None:
        assert event.model is not None
        assert event.dense is not None
        event.scores = event.model.infer(event.dense)
        # The buffers are the thread's, and the next event's.
        event.dense = None

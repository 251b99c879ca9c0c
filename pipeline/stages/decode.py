"""Decode stage: from the transport's request to features with the fields that the model's requests have."""

from __future__ import annotations

from pipeline.errors import InvalidInput, NotReady
from pipeline.event import Event

__all__ = ["Decode"]


class Decode:
    """Calls the event's decoder and checks its features against them, so that later loops stay within their arrays.

    Raises (from `run`):
        NotReady: the event has no model.
        InvalidInput: names the field at fault.
    """

    name = "decode"
    consumes = ("request", "model")
    produces = ("features",)

    def run(self, event: Event) -> None:
        if event.model is None:
            raise NotReady("no model is ready to answer")
        if event.features is None:
            if event.decoder is None:
                raise InvalidInput("the event has neither features nor a decoder")
            event.features = event.decoder(event.request, event.model)
        event.features.check(event.model.inputs)

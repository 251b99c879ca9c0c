"""Embed stage: from features to the network's inputs."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.event import Event
from pipeline.features import Features
from pipeline.inputs import DenseInputs
from pipeline.model.model import Model

__all__ = ["Embed"]


class Embed:
    """Looks up every id in the model's tables. Requests of a batch become rows of the same arrays, which the thread
    reuses for its next event or batch."""

    name = "embed"
    consumes = ("features", "model")
    produces = ("dense", "network")
    thread_bound = ("dense",)

    def run(self, event: Event) -> None:
        assert event.model is not None
        assert event.features is not None
        _take(event, event.model, event.model.embed(event.features))

    def run_batch(self, events: Sequence[Event]) -> None:
        model = events[0].model
        assert model is not None
        requests: list[Features] = []
        for event in events:
            assert event.features is not None
            requests.append(event.features)
        for event, found in zip(events, model.embed_batch(requests), strict=True):
            if isinstance(found, Exception):
                event.error = found
            else:
                _take(event, model, found)


def _take(event: Event, model: Model, inputs: DenseInputs) -> None:
    event.dense = inputs
    event.network = model.file_of(inputs)
    if event.traceparent:
        event.parts = {"embed": inputs.tiers}
    event.degraded.extend(inputs.degraded)

"""Embed: features become the network's inputs."""

from __future__ import annotations

from pipeline.event import Event

__all__ = ["Embed"]


class Embed:
    """Looks every id up in the model's tables. The inputs live in buffers of the thread until its next event."""

    name = "embed"
    consumes = ("features", "model")
    produces = ("dense",)
    thread_bound = ("dense",)

    def run(self, event: Event) -> None:
        assert event.model is not None
        assert event.features is not None
        event.dense = event.model.embed(event.features)

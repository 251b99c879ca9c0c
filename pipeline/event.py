"""An event: one request on its way through the engine, with what every stage added to it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.features import Features

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.inputs import DenseInputs
    from pipeline.model.model import Model

__all__ = ["Event"]


@dataclass(slots=True, eq=False)
class Event:
    """One request. The transport fills the first group, stages the second, the engine the third.

    Args:
        request: whatever `decoder` understands; the engine never looks at it.
        decoder: makes features of `request` for a model's schema; None when `features` are there already.
        model: the snapshot of the version that answers; a swap does not change it.
        rows: candidates, as far as known before decoding (0: unknown); decides about running inline.
        deadline: `Clock.monotonic` seconds after which nobody waits any more.
        priority: 1 is the most important; 0: the default level of the engine.
        queue_timeout: seconds in the queue after which the engine's `timeout_action` applies, where its policy lets a
            request say so; 0: the policy's own.
        prediction_id: empty: the answer is not recorded.
        endpoint, arm, routing_hash, overridden, candidate_ids: as in `PredictionRecord`.
        context: the transport's own.
        scores: float32 `[n]`, owned by the event.
        values: what a user's stages produce that is no attribute of an event, by name.
        degraded: why the answer is less than it should be, if it is.
        error: what went wrong; later stages are passed over, except those that handle errors.
        cancelled: set by anyone at any time; the event leaves the queue unanswered.
        timings: seconds of work by stage name (of its batch, where it was done in one), and of waiting under `queue`.
        traceparent: W3C trace context of whoever watches this event; "" where nobody does.
        parts: of a watched event, what a stage was made of: seconds by part, by stage name.
    """

    request: Any = None
    decoder: Callable[[Any, Model], Features] | None = None
    model: Model | None = None
    rows: int = 0
    deadline: float = math.inf
    priority: int = 0
    queue_timeout: float = 0.0
    prediction_id: str = ""
    endpoint: str = ""
    arm: str = "direct"
    routing_hash: int = 0
    overridden: bool = False
    candidate_ids: npt.NDArray[np.int64] | None = None
    context: Any = None

    features: Features | None = None
    dense: DenseInputs | None = None
    scores: npt.NDArray[np.float32] | None = None
    values: dict[str, Any] = field(default_factory=dict)
    degraded: list[str] = field(default_factory=list)
    error: Exception | None = None

    cancelled: bool = False
    timings: dict[str, float] = field(default_factory=dict)
    traceparent: str = ""
    parts: dict[str, dict[str, float]] | None = None

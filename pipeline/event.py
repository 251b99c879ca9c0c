"""Event: one request in the engine, with the results of every stage."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.arrays import F32, I64
from pipeline.features import Features
from pipeline.hashing import NO_BUCKET

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.inputs import DenseInputs
    from pipeline.model.model import Model

__all__ = ["Event"]


@dataclass(slots=True, eq=False)
class Event:
    """One request. The transport fills the first group, stages the second, the engine the third.

    Args:
        request: input of `decoder`; the engine does not read it.
        decoder: makes features of `request` for a model's schema; None if `features` are given.
        model: the snapshot of the version that answers; a swap does not change it.
        rows: candidates, if known before decoding (0: unknown); decides whether the event runs inline.
        deadline: `Clock.monotonic` seconds after which the caller no longer waits.
        priority: 1 is the most important; 0: the default level of the engine.
        queue_timeout: seconds in the queue after which the engine's `timeout_action` applies, if its policy lets requests
            set it; 0: the policy's own.
        prediction_id: empty: the answer is not recorded.
        endpoint, arm, routing_hash, bucket, overridden, candidate_ids, stable_version, candidate_version, request_id,
            candidate_texts: as in `PredictionRecord`.
        context: for the transport's own use.
        network: file of the bundle that `dense` is for.
        scores: float32 `[n]`, owned by the event.
        values: results of a user's stages that are no attribute of an event, by name.
        degraded: reasons for a reduced answer.
        error: the failure; later stages are skipped, except those that handle errors.
        cancelled: may be set at any time; the event then leaves the queue unanswered.
        abandon: set by a stage while it waits for another server; called once `cancelled` is set.
        load: seconds that the event was expected to wait when it came.
        timings: seconds by stage name (of the whole batch, if it was batched), and of waiting under `queue`.
        traceparent: W3C trace context of the request; "" if it is not traced.
        parts: of a traced event: seconds by part of a stage, by stage name.
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
    bucket: int = NO_BUCKET
    overridden: bool = False
    candidate_ids: I64 | None = None
    stable_version: int = 0
    candidate_version: int = 0
    request_id: str = ""
    candidate_texts: Sequence[str] = ()
    context: Any = None

    features: Features | None = None
    dense: DenseInputs | None = None
    network: str = ""
    scores: F32 | None = None
    values: dict[str, Any] = field(default_factory=dict)
    degraded: list[str] = field(default_factory=list)
    error: Exception | None = None

    cancelled: bool = False
    abandon: Callable[[], None] | None = None
    load: float = 0.0
    timings: dict[str, float] = field(default_factory=dict)
    traceparent: str = ""
    parts: dict[str, dict[str, float]] | None = None

"""Record stage: answers to the traffic log and to the shadow lane, which may never delay or fail the answer."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from pipeline.clock import Clock
from pipeline.context import context_once
from pipeline.event import Event
from pipeline.traffic.record import PredictionRecord, pack
from pipeline.traffic.requests import request_key

__all__ = ["Record"]

log = logging.getLogger(__name__)


class Record:
    """Packs one `PredictionRecord` per answer and offers its bytes.

    It records the model's own scores, before any stage rewrites them: labels, bias and the other arm's scores are compared
    with the model's scores, not with the order of the page.

    Args:
        clock: of the record's time.
        sink: takes a packed record without waiting; False if it dropped the record.
        shadow: the same for the queue of the shadow lane, with the event's trace; None: there is none.
        shadowed: whether an endpoint has two arms, so that the one that did not answer can be scored.
        inclusion_probability: of the answers that are recorded, in which share of all they are drawn.
        keep_text: whether the record has the caller's request id and candidate ids as texts.

    Counters: `recorded`, `dropped` and `failed` by receiver, `sink` and `shadow`. Events without a prediction id are not
    recorded. Events without another arm (a model called by name, an endpoint without a candidate) and overridden ones do
    not go to the shadow lane.
    """

    name = "record"
    consumes = ("features", "scores", "model")
    produces: tuple[str, ...] = ()
    as_produced = ("scores",)

    def __init__(
        self,
        clock: Clock,
        sink: Callable[[bytes], bool],
        shadow: Callable[[bytes, str], bool] | None = None,
        shadowed: Callable[[str], bool] = lambda endpoint: True,
        *,
        inclusion_probability: float = 1.0,
        keep_text: bool = False,
    ) -> None:
        self._clock = clock
        self._shadowed = shadowed
        self._inclusion_probability, self._keep_text = inclusion_probability, keep_text
        self._sink, self._shadow = sink, shadow
        self._lock = threading.Lock()
        self.recorded = {"sink": 0} if shadow is None else {"sink": 0, "shadow": 0}
        self.dropped = dict(self.recorded)
        self.failed = dict(self.recorded)

    def run(self, event: Event) -> None:
        if not event.prediction_id:
            return
        assert event.model is not None
        assert event.features is not None
        assert event.scores is not None
        try:
            blob = pack(
                PredictionRecord(
                    prediction_id=event.prediction_id,
                    time_ms=self._clock.wall_ms(),
                    endpoint=event.endpoint,
                    arm=event.arm,
                    bundle=event.model.name,
                    version=int(event.model.version),
                    features=context_once(event.features, event.model.inputs),
                    fields=event.model.fields,
                    scores=event.scores,
                    routing_hash=event.routing_hash,
                    bucket=event.bucket,
                    overridden=event.overridden,
                    candidate_ids=event.candidate_ids,
                    network=event.network,
                    stable_version=event.stable_version,
                    candidate_version=event.candidate_version,
                    inclusion_probability=self._inclusion_probability,
                    request_id=event.request_id if self._keep_text else "",
                    candidate_texts=event.candidate_texts if self._keep_text else (),
                    load=event.load,
                    request_key=request_key(event.endpoint, event.request_id),
                )
            )
        except Exception:
            self._fail("sink")
            return
        self._offer("sink", self._sink, blob)
        shadow = self._shadow
        if shadow is not None and event.arm != "direct" and not event.overridden and self._shadowed(event.endpoint):
            self._offer("shadow", shadow, blob, event.traceparent)

    def _offer(self, name: str, offer: Callable[..., bool], *what: object) -> None:
        try:
            kept = offer(*what)
        except Exception:
            self._fail(name)
        else:
            with self._lock:
                (self.recorded if kept else self.dropped)[name] += 1

    def _fail(self, name: str) -> None:
        with self._lock:
            self.failed[name] += 1
            first = self.failed[name] == 1
        if first:
            log.exception("the %s cannot take prediction records; answers go on, further failures are counted", name)

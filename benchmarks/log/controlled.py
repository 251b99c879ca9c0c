"""A controller with rollouts over a real log, by a clock that is set by hand: labels of hours are made in seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from benchmarks.log.traffic import CONTEXT_FIELDS, FIELDS, WINDOW_S, Traffic, config_of, opened
from pipeline.errors import BatonError
from pipeline.schema import FieldSpec, Schema
from pipeline.traffic.log import TrafficLog
from pipeline.traffic.prediction import PredictionIds
from serving.rollout.controller import RolloutController
from serving.rollout.reconcile import Decision, Observed
from serving.rollout.routing import ArmSpec, Endpoint
from serving.rollout.spec import Rollout
from serving.rollout.store import ControlStore, StoredRollout, Who
from serving.wiring.state import open_control_store

__all__ = ["Controlled", "HandClock", "controlled", "rollout"]

AUTHOR = "bench"
BLOCK_S, INTERVAL_S = 1.0, 0.01
SPAN_S = 2000.0
"""Longest time over which predictions are spread: 2,000 blocks. Of few each endpoint gets one a second, or labels are stale."""
BEFORE_MS = 12 * 3_600_000
"""How long ago it all begins: longer than any span, and within the late limit."""
NEVER_POSITIVES = 1_000_000_000
MOST_PASSES = 2_000
SMALL_FIELDS = 4
SAVED_AFTER_MS = 61_000
"""Sums are stored once a minute."""
Observe = Callable[[], Callable[[StoredRollout, Endpoint], Observed]]


class HandClock:
    """Clock whose `now_ms` is set by hand."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms

    def wall_ms(self) -> int:
        """Unix milliseconds."""
        return self.now_ms

    def monotonic(self) -> float:
        """Seconds."""
        return self.now_ms / 1000


def schema(_: str = "") -> Schema:
    """Fields of the predictions of `Traffic`."""
    roles = ["context" if at < CONTEXT_FIELDS else "candidate" for at in range(FIELDS)]
    return Schema(fields=tuple(FieldSpec(name=f"f{at}", role=role, kind="id") for at, role in enumerate(roles)))


def rollout(endpoint: str, *, held: bool, segments: Sequence[str] = ()) -> Rollout:
    """A rollout that stays in shadow (`held`), or takes its first step once there are labels."""
    return Rollout.model_validate(
        {
            "endpoint": endpoint,
            "candidate": {"bundle": "new"},
            "steps": [
                {"shadow": True, "min_positives": NEVER_POSITIVES if held else 100},
                {"weight": 10, "bias_below": 0.5},
                {"weight": 100, "bias_below": 0.5},
            ],
            "guards": {"auc_delta_min": -0.9, "logloss_delta_max": 10.0},
            "analysis": {
                "block": BLOCK_S,
                "interval": INTERVAL_S,
                "min_step_time": 1.0,
                "breach_window": 100 * BLOCK_S,
                "evidence_span": 0.0,
                "segments": list(segments),
            },
        }
    )


class Controlled:
    """A home with endpoints that have a rollout each, and a controller.

    Attributes:
        begin_ms: before the first prediction; the clock stands there until labels are made.
    """

    def __init__(self, log: TrafficLog, ids: PredictionIds, store: ControlStore, specs: Sequence[Rollout]) -> None:
        self.log, self.ids, self.store = log, ids, store
        self.begin_ms = log.now_ms() - BEFORE_MS
        self.clock = HandClock(self.begin_ms)
        self.controller = self.new_controller()
        self.endpoints = [spec.endpoint for spec in specs]
        for name in self.endpoints:
            stable = ArmSpec(bundle="old", version=1)
            store.put_endpoint(Endpoint(name=name, stable=stable), Who(AUTHOR, "measured", self.begin_ms))
        self.rollouts = [self.controller.start(spec, AUTHOR, "measured", version=1).id for spec in specs]

    def new_controller(self, observe: Observe = lambda: lambda rollout, endpoint: Observed()) -> RolloutController:
        """A controller that remembers nothing."""
        return RolloutController(self.store, self.log, self.clock, observe, schema, lambda endpoint, reason: None)

    def label(self, count: int, rows: int, span_s: float | None = None, *, small: bool = False) -> None:
        """Write labelled predictions, evenly over a time that begins at the clock's; the clock stands after it.

        Args:
            small: of few fields, where millions are written and no figure is about fields.
        """
        span_s = min(SPAN_S, count / len(self.endpoints)) if span_s is None else span_s
        begin, span_ms = self.clock.now_ms, round(1000 * span_s)
        times = [begin + at * span_ms // count for at in range(1, count + 1)]
        traffic = Traffic(self.ids, rows, SMALL_FIELDS, SMALL_FIELDS // 2) if small else Traffic(self.ids, rows)
        traffic.labelled(self.log, times, self.endpoints)
        self.clock.now_ms = begin + span_ms + round(1000 * WINDOW_S) + 1

    def step(self) -> list[tuple[str, Decision]]:
        """One pass, in which every rollout looks at its labels."""
        self.clock.now_ms += round(1000 * INTERVAL_S) + 1
        return self.controller.step()

    def read(self, until: Callable[[list[tuple[str, Decision]]], bool] | None = None) -> None:
        """Passes until all labels are read: until every rollout decides on figures, and then once more.

        Args:
            until: another end, told the decisions of a pass.

        Raises:
            BatonError: that never comes.
        """
        done = until or (lambda decisions: all(decision.evidence for _, decision in decisions))
        for _ in range(MOST_PASSES):
            decisions = self.step()
            if done(decisions):
                if until is None:
                    self.step()
                return
        raise BatonError(f"the labels are never read: {decisions[0][1].reason}")

    def exposed(self, controller: RolloutController | None = None) -> int:
        """Labelled rows that the rollouts have read."""
        return sum((controller or self.controller).snapshot(name).exposed for name in self.rollouts)


@contextmanager
def controlled(home: Path, specs: Sequence[Rollout]) -> Iterator[Controlled]:
    """A home with these rollouts."""
    with opened(home) as (log, ids), closing(open_control_store(config_of(home))) as store:
        yield Controlled(log, ids, store, specs)

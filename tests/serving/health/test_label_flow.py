"""Whether labels are missing is judged by an endpoint's own pace: a quiet night is no outage, a busy minute without one is."""

from __future__ import annotations

import numpy as np

from serving.health.label_flow import LabelFlows, missing
from serving.runtime.status import (
    LABEL_EDGES_S,
    LabelArrivals,
    LabelFlow,
    LabelStatus,
    LaneArm,
    LaneStatus,
    Report,
    Statuses,
)

STEP_MS = 20_000
NONE = LabelFlow()


class World:
    """A lane that answers requests, and labels that come after a delay for a share of them."""

    def __init__(self, share: float, delay_s: float = 60.0, seed: int = 1) -> None:
        self.flows = LabelFlows({})
        self.now_ms, self.pid = 1_000_000_000_000, 7
        self.requests = 0.0
        self.last_ms = 0
        self.share, self.delay_s = share, delay_s
        self.random = np.random.default_rng(seed)
        self._due: list[float] = []
        self.found = NONE

    def run(self, minutes: float, per_minute: float, *, labels: bool = True) -> bool:
        """Go on for a time; whether labels were missing at any step."""
        ever = False
        for _ in range(round(minutes * 60_000 / STEP_MS)):
            self.now_ms += STEP_MS
            arrived = self.random.poisson(per_minute * STEP_MS / 60_000)
            self.requests += arrived
            delays = self.random.exponential(self.delay_s, self.random.binomial(arrived, self.share))
            self._due += [self.now_ms + 1000 * delay for delay in delays if labels]
            came = [due for due in self._due if due <= self.now_ms]
            self._due = [due for due in self._due if due > self.now_ms]
            if came and labels:
                self.last_ms = self.now_ms
            self.found = self.flows.step(self._statuses(), self.now_ms)["ranker"]["labelled"]
            ever = ever or missing(self.found)
        return ever

    def restart_lane(self) -> None:
        self.pid, self.requests, self.last_ms = self.pid + 1, 0, 0

    def restart_control(self) -> None:
        self.flows = LabelFlows({"ranker": {"labelled": self.found}})

    def _statuses(self) -> Statuses:
        bucket = int(np.searchsorted(LABEL_EDGES_S, 2.3 * self.delay_s))  # nine of ten of an exponential delay
        labels = LabelArrivals(entries=9, counts={bucket: 9} if self.last_ms else {}, last_ms=self.last_ms)
        lane = LaneStatus(
            process="lane-0",
            pid=self.pid,
            time_ms=self.now_ms,
            endpoints={"ranker": {"stable": LaneArm(requests=int(self.requests))}},
            labels={"ranker": LabelStatus(labelled=labels)},
        )
        return Statuses(lanes={"lane-0": Report(lane, 0.0, {})})


def test_a_quiet_night_of_ten_requests_a_minute_is_well() -> None:
    for seed in range(3):
        world = World(share=0.05, delay_s=300.0, seed=seed)
        assert not world.run(60, 600)
        assert not world.run(8 * 60, 10)
        assert not world.run(60, 600)  # and the morning after it


def test_an_outage_is_found_by_day_and_by_night() -> None:
    world = World(share=0.05)
    world.run(60, 600)
    assert world.run(10, 600, labels=False)
    world = World(share=0.05)
    world.run(12 * 60, 10)
    assert not world.run(
        60, 10, labels=False
    )  # thirty labels fewer than expected are a chance no longer, twelve are one
    assert world.run(6 * 60, 10, labels=False)


def test_a_day_without_requests_says_nothing() -> None:
    world = World(share=0.5)
    world.run(30, 600)
    assert not world.run(24 * 60, 0, labels=False)


def test_restarts_of_lane_and_control_forget_nothing_and_invent_nothing() -> None:
    world = World(share=0.2)
    world.run(30, 120)
    world.restart_control()
    assert not world.run(10, 120)
    world.restart_lane()
    assert not world.run(10, 120)
    gaps = world.found.gaps
    world.run(2, 120, labels=False)
    world.restart_control()
    assert world.found.gaps >= gaps
    assert world.run(10, 120, labels=False)


def test_an_endpoint_that_never_had_labels_is_not_missing_them() -> None:
    assert not World(share=0.0).run(120, 600)

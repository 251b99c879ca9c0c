"""Two scorers outside, labels in: the rollout runs on what is told as it does on what is served here."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from rollout_world import IDS, SPEC, World

from pipeline.traffic.log import ACCEPTED, FeedbackEntry, Scores
from pipeline.traffic.observing import Observed, append_observed
from pipeline.traffic.record import PredictionRecord
from protos.baton.ranking.v1 import ranking_pb2 as pb
from serving.rollout.routing import ArmSpec, Endpoint
from serving.rollout.state import Phase, Undo
from serving.rollout.store import Who
from serving.wire.observing import ObserveCodec, TellableArm

ARMS = {"stable": TellableArm("observed:old", 0, True), "candidate": TellableArm("observed:new", 0, True)}
SHORT = SPEC.model_copy(
    update={
        "analysis": SPEC.analysis.model_copy(update={"min_step_time": 2.0}),
        "after_full": SPEC.after_full.model_copy(update={"watch": 2.0}),
    }
)
ELSEWHERE = SHORT.model_copy(update={"candidate": SPEC.candidate.model_copy(update={"bundle": "observed:new"})})


class Outside(World):
    """The same traffic, answered elsewhere: told by Observe with both arms' scores, labelled by request id."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        stable = ArmSpec(bundle=ARMS["stable"].bundle)
        self.store.put_endpoint(Endpoint(name="ranker", stable=stable), Who("ada", "set", 1))
        self.codec = ObserveCodec(IDS, lambda key: int(key or 0), 1000)
        self.told = 0

    def tell(self, record: PredictionRecord, other: Scores | None, entry: FeedbackEntry | None) -> None:
        self.told += 1
        message = pb.ObservedPrediction(
            request_id=f"r{self.told}", time_ms=record.time_ms, routing_key=str(record.routing_hash)
        )
        message.answered.arm = record.arm
        message.answered.scores.extend(record.scores.tolist())
        if other is not None:
            message.other.arm = other.arm
            message.other.scores.extend(other.scores.tolist())
        read = self.codec.read(message, "ranker", ARMS, None, self.clock.now, lambda _: record.bucket)
        assert isinstance(read, Observed)
        (reply,) = append_observed(self.log, [read], self.clock.now)
        assert reply.status == ACCEPTED
        if entry is not None:
            by_request = replace(entry, prediction_id="", request_id=message.request_id, endpoint="ranker")
            self.log.append_feedback([by_request], self.clock.now)


def same(mine: Any, theirs: Any, where: str = "figures") -> None:
    """Every number of two trees of figures is the other's within 1e-6."""
    if isinstance(mine, dict):
        assert mine.keys() == theirs.keys(), where
        for name in mine:
            same(mine[name], theirs[name], f"{where}.{name}")
    elif isinstance(mine, list | tuple):
        assert len(mine) == len(theirs), where
        for at, (one, other) in enumerate(zip(mine, theirs, strict=True)):
            same(one, other, f"{where}.{at}")
    elif isinstance(mine, float):
        assert theirs == pytest.approx(mine, rel=1e-6, abs=1e-6, nan_ok=True), where
    else:
        assert mine == theirs, where


def test_observed_traffic_gives_the_figures_of_the_same_traffic_served_here(tmp_path: Path) -> None:
    inside, outside = World(tmp_path / "inside"), Outside(tmp_path / "outside")
    for world, spec, version in ((inside, SHORT, 1), (outside, ELSEWHERE, 0)):
        world.controller.start(spec, "ada", "try it", version=version)
        world.seconds(120, until=Phase.WATCHING)
        assert world.store.endpoint("ranker").weight == 100
        world.seconds(40, until=Phase.COMPLETED)
    assert inside.clock.now == outside.clock.now
    figures = [asdict(world.controller.snapshot("ranker")) for world in (inside, outside)]
    assert figures[0]["paired"] > 2000
    same(figures[0], figures[1])
    verdicts = [[(entry.verb, entry.time_ms) for entry in world.store.audit("ranker")] for world in (inside, outside)]
    assert verdicts[0] == verdicts[1][1:], "the outside's endpoint was set twice"
    last = outside.store.audit("ranker")[-1]
    assert last.verb == "complete"
    assert outside.controller.explain(last.seq).same
    for world in (inside, outside):
        world.controller.command("ranker", Undo(), "ada", "back")
        assert world.store.endpoint("ranker").weight == 0
        world.seconds(2)
        world.log.close()

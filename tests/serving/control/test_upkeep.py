"""What the control process throws away, and what it must not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from clocks import HandClock
from installation import eventually

from pipeline.errors import LogFull
from pipeline.features import Features, IdPart
from pipeline.traffic.log import FeedbackEntry, Outcome
from pipeline.traffic.prediction import PredictionIds, load_secret
from pipeline.traffic.record import PredictionRecord, pack
from serving.config import Config, TrafficConfig, WorkerConfig
from serving.control import loops as control_loops
from serving.control.loops import ControlLoops
from serving.control.traffic_upkeep import TrafficUpkeep
from serving.rollout.sqlite_store import SqliteControlStore
from serving.runtime.status import WorkerStatus
from serving.telemetry import Telemetry
from serving.wiring.backends import open_backends
from serving.wiring.state import open_lead
from serving.wiring.traffic import open_traffic_log


def test_rows_that_the_worker_would_read_again_after_a_crash_are_kept(tmp_path: Path) -> None:
    config = Config(home=tmp_path, worker=WorkerConfig(endpoint="ranker"), traffic=TrafficConfig(retention=5400.0))
    store, log = SqliteControlStore(config.control_db), open_traffic_log(config)
    ids = PredictionIds(load_secret(config.secret))
    features = Features(2, (IdPart(np.zeros(1, np.int32), np.ones((2, 1), np.int64)),))
    scores = np.full(2, 0.5, np.float32)
    made = [ids.new(1000 + at) for at in range(10)]
    log.append_predictions(
        [pack(PredictionRecord(one, 1000, "ranker", "stable", "m", 1, features, scores)) for one in made]
    )
    shown = [Outcome(i, 1.0, final=True) for i in range(2)]
    log.append_feedback([FeedbackEntry(one, outcomes=shown, exposed_all=True) for one in made], 2000)
    assert log.join(3000) == 10
    upkeep = TrafficUpkeep(config, log, store)
    upkeep.step(WorkerStatus(time_ms=0, position=10, committed=4), 5_460_000)
    assert [entry.seq for entry in log.labelled(0)] == [5, 6, 7, 8, 9, 10]
    assert (upkeep.removed["predictions"], upkeep.held.unread) == (4, 6)
    upkeep.step(None, 5_460_000)
    assert len(log.labelled(0)) == 6
    telemetry = Telemetry("control")
    upkeep.publish(telemetry)
    telemetry.write(tmp_path / "metrics")
    told = (tmp_path / "metrics" / "control.prom").read_text()
    assert 'baton_traffic_held_back{process="control",what="unread"} 6.0' in told
    assert 'baton_traffic_removed_total{kind="labelled",process="control"} 4.0' in told
    log.close()
    store.close()


def _busy(now_ms: int, limit: int = 1000) -> int:
    return 1


def _refused(now_ms: int, limit: int = 1000) -> int:
    raise LogFull("stops")


@pytest.mark.parametrize("join", [_busy, _refused])
def test_retention_goes_on_whatever_the_join_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, join: Callable[..., int]
) -> None:
    monkeypatch.setattr(control_loops, "UPKEEP_EVERY_S", 0.05)
    config, clock = Config(home=tmp_path), HandClock()
    log = open_traffic_log(config)
    loops = ControlLoops(config, open_backends(config), log, open_traffic_log(config), open_lead(config, clock), clock)
    ids = PredictionIds(load_secret(config.secret))
    log.append_feedback([FeedbackEntry(ids.new(1000), outcomes=[Outcome(0, 1.0)])], 1000)  # its prediction never comes
    monkeypatch.setattr(log, "join", join)
    clock.now += 120
    loops.start()
    try:
        eventually(lambda: log.stats(clock.wall_ms()).parked_expired == 1, "what expired is deleted")
    finally:
        loops.close()

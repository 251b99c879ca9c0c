"""The traffic log as it is opened from a configuration: its limits of time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.features import Features
from pipeline.traffic.log import ACCEPTED, EXPIRED, FeedbackEntry, Outcome
from pipeline.traffic.prediction import PredictionIds
from pipeline.traffic.record import PredictionRecord, pack
from serving.config import Config
from serving.wiring.state import installation_secret
from serving.wiring.traffic import open_traffic_log


def test_labels_of_days_are_taken_inside_their_window_and_expire_after_it(tmp_path: Path) -> None:
    config = Config.model_validate({"home": tmp_path, "traffic": {"attribution_window": "3d"}})
    day_ms, secret = 86_400_000, installation_secret(config)
    log = open_traffic_log(config, lane=0)
    now_ms = log.now_ms()
    made = now_ms - round(3.2 * day_ms)
    prediction_id = PredictionIds(secret).new(made)
    record = PredictionRecord(
        prediction_id, made, "ranker", "stable", "teacher", 1, Features(2), np.array([0.1, 0.2], np.float32)
    )
    log.append_predictions([pack(record)])
    told = [FeedbackEntry(prediction_id, (), [Outcome(0, 1.0)], exposed_all=True)]
    assert log.append_feedback(told, made + round(2.9 * day_ms))[0].outcomes == (ACCEPTED,)
    assert log.append_feedback(told, now_ms)[0].outcomes == (EXPIRED,), "3.2 days by the log's clock"
    assert config.traffic.late_limit_s == 3 * 86_400 + 3600
    assert config.traffic.retention_s == 7 * 86_400
    long = Config.model_validate({"home": tmp_path, "traffic": {"attribution_window": "10d"}}).traffic
    assert (long.late_limit_s, long.retention_s) == (10 * 86_400 + 3600, 10 * 86_400 + 3600)
    with pytest.raises(ValueError, match=r"retention 604800 s is below attribution_window 864000 s and an hour"):
        Config.model_validate({"home": tmp_path, "traffic": {"attribution_window": "10d", "retention": "7d"}})
    log.close()

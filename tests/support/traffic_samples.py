"""Small predictions for the tests of the traffic log."""

from __future__ import annotations

import numpy as np

from pipeline.features import Features, IdPart
from pipeline.traffic.prediction import PredictionIds
from pipeline.traffic.record import PredictionRecord, pack
from pipeline.traffic.requests import request_key

IDS = PredictionIds(b"k" * 32, lane=3)
WINDOW_MS = 1000
LATE_MS = 100_000
CANDIDATE = 7000
"""Candidate i of every sample that has candidate ids is known as CANDIDATE + i."""


def sample(
    prediction_id: str,
    time_ms: int,
    n: int = 4,
    *,
    routing_hash: int = 0,
    candidate_ids: bool = True,
    fill: int = 5,
    request_id: str = "",
) -> bytes:
    """A packed record with one id column."""
    return pack(
        PredictionRecord(
            prediction_id,
            time_ms,
            "ranker",
            "stable",
            "teacher",
            1,
            Features(n, (IdPart(np.zeros(1, np.int32), np.full((n, 1), fill, np.int64)),)),
            np.linspace(0.1, 0.9, n, dtype=np.float32),
            routing_hash,
            False,
            np.arange(CANDIDATE, CANDIDATE + n, dtype=np.int64) if candidate_ids else None,
            request_key=request_key("ranker", request_id),
        )
    )

"""Opens the traffic log that the configuration names, in the same way in every process."""

from __future__ import annotations

from pipeline.prediction import PredictionIds, load_secret
from pipeline.traffic.sqlite import SqliteTrafficLog
from serving.config import Config

__all__ = ["open_traffic_log"]


def open_traffic_log(config: Config) -> SqliteTrafficLog:
    """The installation's traffic log, made when absent."""
    config.home.mkdir(parents=True, exist_ok=True)
    return SqliteTrafficLog(
        config.traffic_db,
        PredictionIds(load_secret(config.secret)),
        attribution_window_ms=round(1000 * config.traffic.attribution_window),
        late_limit_ms=round(1000 * config.traffic.late_limit),
    )

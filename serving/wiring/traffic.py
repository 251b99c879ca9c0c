"""Traffic log of an installation, as configured."""

from __future__ import annotations

import contextlib

from pipeline.clock import SystemClock
from pipeline.errors import BatonError
from pipeline.traffic.local.log import LocalTrafficLog
from pipeline.traffic.log import TrafficLog
from pipeline.traffic.prediction import PredictionIds
from serving.config import Config
from serving.wiring.state import installation_secret

__all__ = ["IMPORT_LANE", "SHADOW_LANE", "now_ms_of", "open_traffic_log"]


IMPORT_LANE = (1 << 16) - 1
"""Ids of imported predictions name this lane (`pipeline.traffic.prediction`)."""
SHADOW_LANE = IMPORT_LANE - 1


def open_traffic_log(config: Config, lane: int = IMPORT_LANE) -> TrafficLog:
    """Open the traffic log, created when absent.

    Args:
        lane: whose folder the process writes, in a log of this machine: that which the ids of its predictions name.

    Raises:
        InvalidInput: the file or Redis is no traffic log, or the Redis is not durable.
        NotReady: it cannot be reached now.
    """
    config.home.mkdir(parents=True, exist_ok=True)
    traffic = config.traffic
    ids = PredictionIds(installation_secret(config))
    window_ms, late_ms = round(1000 * traffic.attribution_window), round(1000 * traffic.late_limit_s)
    if not traffic.url:
        return LocalTrafficLog(config.traffic_folder, ids, window_ms, late_ms, lane=lane)
    # `redis` is imported only where one is configured.
    from pipeline.traffic.redis.log import RedisTrafficLog
    from serving.wiring.redis import redis_address

    return RedisTrafficLog(
        redis_address(traffic, "traffic"),
        ids,
        window_ms,
        late_ms,
        reserve_bytes=traffic.reserve_bytes,
        begun_before=config.state_snapshot.exists(),
    )


def now_ms_of(config: Config) -> int:
    """The time by which processes date their reports (Unix milliseconds): the log's; this machine's where a Redis is away."""
    if config.traffic.url:
        with contextlib.suppress(BatonError), contextlib.closing(open_traffic_log(config)) as log:
            return log.now_ms()
    return SystemClock().wall_ms()

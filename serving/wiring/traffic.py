"""Traffic log of an installation, as configured."""

from __future__ import annotations

import contextlib

from pipeline.clock import SystemClock
from pipeline.errors import BatonError
from pipeline.traffic.log import TrafficLog
from pipeline.traffic.prediction import PredictionIds
from pipeline.traffic.sqlite.log import SqliteTrafficLog
from serving.config import Config
from serving.wiring.state import installation_secret

__all__ = ["now_ms_of", "open_traffic_log"]


def open_traffic_log(config: Config) -> TrafficLog:
    """Open the traffic log, created when absent.

    Raises:
        InvalidInput: the file or Redis is no traffic log, or the Redis is not durable.
        NotReady: it cannot be reached now.
    """
    config.home.mkdir(parents=True, exist_ok=True)
    traffic = config.traffic
    ids = PredictionIds(installation_secret(config))
    window_ms, late_ms = round(1000 * traffic.attribution_window), round(1000 * traffic.late_limit_s)
    if not traffic.url:
        return SqliteTrafficLog(config.traffic_db, ids, window_ms, late_ms)
    # `redis` is imported only where one is configured.
    from pipeline.traffic.redis.log import RedisTrafficLog
    from serving.wiring.redis import redis_address

    return RedisTrafficLog(
        redis_address(traffic, "traffic"), ids, window_ms, late_ms, reserve_bytes=traffic.reserve_bytes
    )


def now_ms_of(config: Config) -> int:
    """The time by which processes date their reports (Unix milliseconds): the log's; this machine's where a Redis is away."""
    if config.traffic.url:
        with contextlib.suppress(BatonError), contextlib.closing(open_traffic_log(config)) as log:
            return log.now_ms()
    return SystemClock().wall_ms()

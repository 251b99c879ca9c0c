"""Puts the transfer worker together from the configuration: the one place where serving's settings meet training."""

from __future__ import annotations

import json
from collections.abc import Callable

import torch

from pipeline.errors import InvalidInput
from serving.bundles import open_repository
from serving.config import Config, EndpointConfig
from serving.routing import Endpoint
from serving.state import stored_endpoints
from serving.traffic import open_traffic_log
from transfer.adapt import AdaptSettings
from transfer.gate import GateLimits
from transfer.worker import Worker, WorkerSettings

__all__ = ["build"]


def build(config: Config) -> Worker:
    """The worker of an installation; its teacher and student are the arms of its endpoint.

    Raises:
        InvalidInput: the endpoint has no candidate, or the worker's models do not fit together.
    """
    w = config.worker
    assert w is not None
    stable, candidate = _arms(config, w.endpoint)
    torch.set_num_threads(w.threads)
    settings = WorkerSettings(
        endpoint=w.endpoint,
        teacher=stable,
        student=candidate,
        folder=config.home / "worker",
        segments=config.segments,
        status=config.status / "worker.json",
        batch_rows=w.batch_rows,
        adapt=AdaptSettings(a=w.weight, replay=w.replay_ratio, every=w.teacher_every, adapt=w.adapt),
        retained=w.retained,
        holdout=w.holdout,
        publish_interval=w.publish_interval,
        publish_batches=w.publish_batches,
        teacher_publish_interval=w.teacher_publish_interval,
        gate=GateLimits(w.gate_logloss_margin, w.gate_auc_margin, w.gate_bias),
        gate_rows=w.gate_rows,
        compact_after=w.compact_after,
        rows=w.rows,
        seed=w.seed,
    )
    return Worker(settings, open_traffic_log(config), open_repository(config), anchor=_anchor(config, w.endpoint))


def _arms(config: Config, endpoint: str) -> tuple[str, str]:
    # The live endpoint counts; the file is for the first start.
    arms: Endpoint | EndpointConfig | None = stored_endpoints(config).get(endpoint) or config.endpoints.get(endpoint)
    if arms is None or arms.candidate is None:
        raise InvalidInput(
            f"endpoint {endpoint!r} has no candidate to teach; set one with `baton endpoint set` or in the config",
            "worker.endpoint",
        )
    return arms.stable.bundle, arms.candidate.bundle


def _anchor(config: Config, endpoint: str) -> Callable[[], str | None]:
    """Reads the version at which the current rollout step began from the control process's status."""
    path = config.status / "control.json"

    def read() -> str | None:
        try:
            version = json.loads(path.read_text())["endpoints"][endpoint]["step_version"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return version or None

    return read

"""Assembly of the transfer worker from the configuration."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import torch

from pipeline.clock import Clock
from pipeline.errors import InvalidInput
from pipeline.traffic.clock import LogClock
from serving.config import Config, EndpointConfig
from serving.rollout.routing import Endpoint
from serving.runtime import status
from serving.wiring.bundles import open_repository
from serving.wiring.state import open_control_store, stored_endpoints
from serving.wiring.traffic import open_traffic_log
from transfer.click_model.device import device_for
from transfer.online.adapt import AdaptSettings
from transfer.online.arms import Arms, Follower
from transfer.online.worker import Worker, WorkerSettings
from transfer.quality.gate import GateLimits

__all__ = ["build"]


def build(config: Config) -> Follower:
    """The worker of an installation; its teacher and student are the arms of its endpoint.

    Raises:
        InvalidInput: the endpoint does not exist, or the device does not.
    """
    w = config.worker
    assert w is not None
    torch.set_num_threads(w.threads)
    device_for(w.device)
    traffic, repository = open_traffic_log(config), open_repository(config)
    clock = LogClock(traffic).start()

    def make(arms: Arms, begin: int) -> Worker:
        settings = WorkerSettings(
            endpoint=w.endpoint,
            teacher=arms.teacher,
            student=arms.student,
            folder=config.home / "worker" / f"{arms.teacher}+{arms.student}",
            segments=config.segments,
            status=config.status / "worker.json",
            batch_rows=w.batch_rows,
            adapt=AdaptSettings(teacher_weight=w.weight, replay=w.replay_ratio, every=w.teacher_every, adapt=w.adapt),
            retained=w.retained,
            holdout=w.holdout,
            publish_interval=w.publish_interval,
            publish_batches=w.publish_batches,
            teacher_publish_interval=w.teacher_publish_interval,
            gate=GateLimits(w.gate_logloss_margin, w.gate_auc_margin, w.gate_bias),
            gate_rows=w.gate_rows,
            compact_after=w.compact_after,
            rows=w.rows,
            device=w.device,
            seed=w.seed,
        )
        return Worker(
            settings, traffic, repository, anchor=_anchor(config, w.endpoint, clock), clock=clock, begin=begin
        )

    return Follower(lambda: _arms(config, w.endpoint), make, status=config.status / "worker.json")


def _arms(config: Config, endpoint: str) -> Arms | None:
    # The live endpoint counts; the configuration is for the first start.
    arms: Endpoint | EndpointConfig | None = stored_endpoints(config).get(endpoint) or config.endpoints.get(endpoint)
    if arms is None:
        raise InvalidInput(
            f"there is no endpoint {endpoint!r}; set it with `baton endpoint set` or in the config", "worker.endpoint"
        )
    if arms.candidate is None:
        return None
    return Arms(arms.stable.bundle, arms.candidate.bundle, retired=_handed_over(config, arms))


def _handed_over(config: Config, endpoint: Endpoint | EndpointConfig) -> bool:
    """Whether the candidate has all traffic and no rollout watches it any more."""
    if not isinstance(endpoint, Endpoint) or endpoint.weight < 100:
        return False
    with closing(open_control_store(config)) as store:
        return not store.rollouts(active=True, endpoint=endpoint.name)


def _anchor(config: Config, endpoint: str, clock: Clock) -> Callable[[], str | None]:
    """Reads the version at which the current rollout step began from the control process's status."""

    def read() -> str | None:
        control = status.read(config.status, clock.wall_ms()).control
        step = None if control is None else control.status.endpoints.get(endpoint)
        return None if step is None else step.step_version or None

    return read

"""Assembly of the transfer worker from the configuration, and its run.

Where machines share a state, one worker of an endpoint learns and those of other machines stand by. Whoever takes over goes
on from the last version and the place that the one before has noted, not from checkpoints of its own, which are older.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import torch

from pipeline.clock import Clock, SystemClock
from pipeline.errors import InvalidInput, NotReady
from pipeline.traffic.clock import LogClock
from serving.config import Config, EndpointConfig
from serving.rollout.routing import Endpoint, is_observed
from serving.runtime import status
from serving.supervisor.pulse import own_heart
from serving.wiring.bundles import open_repository
from serving.wiring.home import learned_place
from serving.wiring.state import node_name, open_control_store, open_tenure, stored_endpoints
from serving.wiring.traffic import open_traffic_log
from transfer.click_model.device import device_for
from transfer.model_zoo import Architectures
from transfer.online.adapt import AdaptSettings
from transfer.online.arms import Arms, Follower
from transfer.online.tenure import Tenure
from transfer.online.worker import Worker, WorkerSettings
from transfer.quality.gate import GateLimits

if TYPE_CHECKING:
    from serving.state.redis.tenure import LastPlace, RedisTenure

__all__ = ["build", "run_worker"]

LOOK_EVERY_S = 0.5
ROUND_LIMIT_S = 1800.0
"""Time that one round may take: between two batches a version is judged, exported and published."""

log = logging.getLogger(__name__)


def run_worker(config: Config, stop: threading.Event) -> None:
    """Learn until `stop` is set, as long as no worker of another machine has the tenure.

    Raises:
        InvalidInput, NotReady: as of `build`.
    """
    assert config.worker is not None
    endpoint = config.worker.endpoint
    tenure = open_tenure(config, endpoint, SystemClock())
    follower = build(config, tenure)
    if tenure is None:
        follower.run(stop)
        return

    def others() -> str:
        if holder := tenure.holder():
            return f"the worker of endpoint {endpoint!r} is {holder}"
        return f"state {config.state.url} does not say who is the worker of endpoint {endpoint!r}"

    try:
        while _taken(config, tenure, stop, follower, others):
            with tenure.kept(stop) as over:
                follower.run(over, _inherited(config, tenure))
            if not stop.is_set():
                log.error("nothing is learned here any more: the lease was lost; %s", others())
    finally:
        tenure.release()


def _taken(
    config: Config, tenure: RedisTenure, stop: threading.Event, follower: Follower, others: Callable[[], str]
) -> bool:
    """Stand by until the tenure is free, saying who has it; False: `stop` is set."""
    said, position = "", 0
    while not stop.is_set():
        if tenure.take():
            return True
        waiting = others()
        if waiting != said:
            log.info("standing by: %s", waiting)
            said = waiting
        with suppress(NotReady):
            position = _start(config, tenure.last())
        follower.idle(waiting, position, status.STANDS_BY)
        stop.wait(LOOK_EVERY_S)
    return False


def _start(config: Config, last: LastPlace | None) -> int:
    """Place in the log that a worker of this machine starts after where it has no checkpoint."""
    # Places in a log that is this machine's alone mean nothing to others.
    return last.position if last is not None and config.traffic.url else learned_place(config.home / "worker")


def _inherited(config: Config, tenure: RedisTenure) -> int:
    """Take over what the last worker has left; the place in the log to start after where there is no checkpoint.

    Raises:
        NotReady: Redis cannot be reached.
    """
    last, folder = tenure.last(), config.home / "worker"
    begin = _start(config, last)
    if last is not None and last.node != node_name(config) and folder.exists():
        aside = config.home / "worker-before"
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        log.warning("the worker of %s has learned since: its versions are gone on from, not %s", last.node, aside)
    tenure.published(begin)
    return begin


def build(config: Config, tenure: Tenure | None = None) -> Follower:
    """The worker of an installation; its teacher and student are the arms of its endpoint.

    Args:
        tenure: that it needs to publish.

    Raises:
        InvalidInput: the endpoint does not exist, or the device does not.
    """
    w = config.worker
    assert w is not None
    torch.set_num_threads(w.threads)
    device_for(w.device)
    # A class that is not to be had here may be the teacher's, which teaches by its logged scores.
    architectures = Architectures(w.architectures, tolerant=True)
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
            architectures=architectures,
        )
        return Worker(
            settings,
            traffic,
            repository,
            anchor=_anchor(config, w.endpoint, clock),
            clock=clock,
            begin=begin,
            tenure=tenure,
        )

    heart = own_heart("learning", ROUND_LIMIT_S)
    return Follower(lambda: _arms(config, w.endpoint), make, clock, config.status / "worker.json", heart.beat)


def _arms(config: Config, endpoint: str) -> Arms | None:
    # The live endpoint counts; the configuration is for the first start.
    arms: Endpoint | EndpointConfig | None = stored_endpoints(config).get(endpoint) or config.endpoints.get(endpoint)
    if arms is None:
        raise InvalidInput(
            f"there is no endpoint {endpoint!r}; set it with `baton endpoint set` or in the config", "worker.endpoint"
        )
    if arms.candidate is None or is_observed(arms.stable.bundle) or is_observed(arms.candidate.bundle):
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

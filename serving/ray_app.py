"""Ray Serve application: Ray places, watches, replaces and scales replicas of Baton; requests never pass through it.

    serve run serving.ray_app:build config=/etc/baton/baton.yaml      or `baton serve --ray ADDRESS`

Each replica is an actor that starts lanes as processes of their own (`serving.processes.replica`), so a request meets the
same server as without Ray. Models are data and are swapped in place; only a change of code or configuration replaces
replicas, new ones first. This is the only file of serving that imports Ray.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

import ray
from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from pipeline.errors import NotReady
from serving.config import Config
from serving.processes.replica import STALLED_S, ControlReplica, LaneReplica
from serving.processes.scaling import Load, wanted_replicas
from serving.runtime.process import private_files
from serving.security.modes import close_home

__all__ = ["APP", "Arguments", "Control", "Lanes", "ScalingPolicy", "application", "build", "remove", "serve_on"]

APP = "baton"
DRAIN_TIMEOUT_S = 90.0
"""Seconds that a replica may take to end; what it has accepted is answered in 10."""

log = logging.getLogger(__name__)


class Arguments(BaseModel):
    """Arguments that `serve run` or a Serve config file pass."""

    model_config = ConfigDict(extra="forbid")

    config: Path
    """Path of baton.yaml where the application is built; the nodes get its content. Every node must be able to write to
    its `home`."""


class Lanes:
    """Deployment of the lanes.

    Args:
        config: as `Config.model_dump_json` wrote it.
        control: deployment of the control process, so that both start together.
    """

    def __init__(self, config: str, control: Any = None) -> None:
        logging.basicConfig(level=logging.INFO)
        settings = _closed(config)
        context = serve.get_replica_context()
        runtime = ray.get_runtime_context()
        self._replica = LaneReplica(
            settings,
            context.replica_id.unique_id,
            ray.util.get_node_ip_address(),  # type: ignore[no-untyped-call]
            runtime.get_node_id(),
        )
        self._replica.start()

    def check_health(self) -> None:
        """Called by Ray Serve; raises where the replica is to be replaced."""
        try:
            self._replica.check()
        except OSError as error:
            raise NotReady(f"{self._replica.record.address} accepts no connection: {error}") from None

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Ray Serve; the result goes to `ScalingPolicy`."""
        load = self._replica.load()
        return {"utilisation": load.utilisation, "queue_wait": load.queue_wait}

    def where(self) -> dict[str, Any]:
        """Name, address and node of this replica."""
        record = self._replica.record
        return {"replica": record.replica, "address": record.address, "node": record.node}

    def __del__(self) -> None:
        # Ray Serve's hook for a replica that ends; there is no replica where the start has failed.
        if hasattr(self, "_replica"):
            self._replica.drain()


class Control:
    """Deployment of the control process."""

    def __init__(self, config: str) -> None:
        logging.basicConfig(level=logging.INFO)
        self._replica = ControlReplica(_closed(config))

    def check_health(self) -> None:
        """Called by Ray Serve."""
        self._replica.check()

    def __del__(self) -> None:
        if hasattr(self, "_replica"):
            self._replica.drain()


def _closed(text: str) -> Config:
    """The configuration on a node, whose home is this process's user's alone from here on."""
    private_files()
    config = Config.model_validate_json(text)
    for warning in close_home(config):
        log.warning("%s", warning)
    return config


class ScalingPolicy:
    """Autoscaling policy of Ray Serve; the rule is `serving.processes.scaling`."""

    def __init__(self, utilisation: float, queue_wait: float) -> None:
        self._utilisation = utilisation
        self._queue_wait = queue_wait

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        metrics = context.aggregated_metrics or {}
        waits = metrics.get("queue_wait", {})
        loads = [Load(busy, waits.get(replica, 0.0)) for replica, busy in metrics.get("utilisation", {}).items()]
        wanted = wanted_replicas(
            loads,
            running=context.current_num_replicas,
            lowest=context.capacity_adjusted_min_replicas,
            highest=context.capacity_adjusted_max_replicas,
            utilisation=self._utilisation,
            queue_wait=self._queue_wait,
        )
        return wanted, {}


def _deployment(kind: type) -> serve.Deployment:
    return cast(serve.Deployment, serve.deployment(kind))


def application(config: Config) -> serve.Application:
    """Application of a configuration, to be deployed."""
    text = config.model_dump_json(by_alias=True)
    settings = config.ray
    actor: dict[str, Any] = {
        "num_cpus": settings.num_cpus or float(config.engine.lanes),
        "resources": settings.resources,
    }
    if settings.memory_bytes:
        actor["memory"] = settings.memory_bytes
    placement: dict[str, Any] = {}
    if settings.replicas_per_node:
        placement["max_replicas_per_node"] = settings.replicas_per_node
    lanes = _deployment(Lanes).options(
        ray_actor_options=actor,
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.min_replicas,
            max_replicas=settings.max_replicas,
            upscale_delay_s=settings.upscale_delay,
            downscale_delay_s=settings.downscale_delay,
            look_back_period_s=settings.look_back,
            policy=AutoscalingPolicy(  # type: ignore[no-untyped-call]
                policy_function="serving.ray_app:ScalingPolicy",
                policy_kwargs={"utilisation": settings.utilisation, "queue_wait": settings.queue_wait},
            ),
        ),
        **placement,
        max_surge_percent=100,  # a new version answers before the old one goes
        health_check_period_s=settings.health_period,
        health_check_timeout_s=STALLED_S,
        graceful_shutdown_timeout_s=DRAIN_TIMEOUT_S,
        graceful_shutdown_wait_loop_s=0.1,  # no request comes through Serve, so there is nothing to wait for
    )
    if not settings.control:
        return lanes.bind(text)
    control = _deployment(Control).options(
        num_replicas=1,
        ray_actor_options={
            "num_cpus": 1.0 if config.worker is None else 1.0 + config.worker.threads,
            "resources": settings.control_resources,
        },
        graceful_shutdown_timeout_s=DRAIN_TIMEOUT_S,
        graceful_shutdown_wait_loop_s=0.1,
    )
    return lanes.bind(text, control.bind(text))


def build(arguments: Arguments) -> serve.Application:
    """Application builder for `serve run serving.ray_app:build config=...` and Serve config files."""
    return application(Config.load(arguments.config))


def serve_on(address: str, config: Config) -> None:
    """Deploy on a running cluster and return once every replica answers; the application outlives this process.

    Args:
        address: of the cluster: `auto`, HOST:PORT of its head, or ray://HOST:PORT.

    Raises:
        NotReady: there is no such cluster, or replicas do not get ready.
    """
    try:
        if not ray.is_initialized():
            ray.init(address=address, namespace=APP, log_to_driver=False)
        # Requests do not use Ray Serve's proxies, so there are none.
        serve.start(proxy_location="Disabled")
        serve.run(application(config), name=APP, route_prefix=None)
    except (ConnectionError, RuntimeError) as error:
        raise NotReady(f"the application does not run on the Ray cluster at {address}: {error}") from error


def remove() -> None:
    """End the application on the cluster that `serve_on` connected this process to, and disconnect."""
    if ray.is_initialized():
        serve.delete(APP)
        ray.shutdown()

"""`ray`: replicas of the lanes on a Ray cluster, and their scaling."""

from __future__ import annotations

from pydantic import Field, model_validator

from pipeline.faults import refuse
from serving.config.section import Seconds, Section

__all__ = ["RayConfig"]


class RayConfig(Section):
    min_replicas: int = Field(2, ge=1)
    """Fewest replicas, each with `engine.lanes` lanes. With a single one, its loss stops all answers."""
    max_replicas: int = Field(4, ge=1)
    """Most replicas."""
    num_cpus: float | None = Field(None, gt=0)
    """Cores that Ray reserves per replica; unset: one per lane."""
    memory_bytes: int | None = Field(None, ge=1)
    """Memory that Ray reserves per replica (docs/scaling.md says how to estimate it); unset: none."""
    resources: dict[str, float] = Field(default_factory=dict)
    """Custom resources of Ray that a replica takes, so that lanes run on the nodes that have them."""
    control_resources: dict[str, float] = Field(default_factory=dict)
    """Custom resources of the control process, for example to keep it on the head node."""
    replicas_per_node: int | None = Field(None, ge=1, le=100)
    """Most replicas on one node; unset: as many as fit, so the loss of a node may be the loss of all. With 1 an upgrade
    needs a spare node."""
    fixed_port: bool = False
    """Whether every replica answers at `listen.grpc_port`, as headless DNS needs it: one per node, each with its own
    `home`. Otherwise the n-th replica of a home answers at `listen.grpc_port` + n."""
    control: bool = True
    """Whether the control process, and the worker where there is one, run on the cluster too."""
    advertise_host: str = ""
    """Host under which clients reach a replica; empty: `listen.host`, or where that is 0.0.0.0 or ::, the node's address
    as Ray knows it."""
    utilisation: float = Field(0.6, gt=0, lt=1)
    """Target fraction of time that a worker thread is busy; above it, replicas are added."""
    queue_wait: Seconds = Field(0.005, gt=0)
    """Mean time in the queue above which a replica is added at any utilisation."""
    upscale_delay: Seconds = 10.0
    """How long more replicas must be needed before they are added."""
    downscale_delay: Seconds = 300.0
    """How long fewer replicas must be enough before one is removed."""
    look_back: Seconds = Field(20.0, gt=0)
    """Time over which both signals are averaged."""
    start_limit: Seconds = Field(300.0, gt=0)
    """How long a replica may take to fetch and load its models before it is restarted elsewhere."""
    health_period: Seconds = Field(5.0, gt=0)
    """Time between Ray's health checks of a replica; after three failures in a row it is replaced."""

    @model_validator(mode="after")
    def _bounds(self) -> RayConfig:
        faults = []
        if self.max_replicas < self.min_replicas:
            faults.append(f"max_replicas {self.max_replicas} is below min_replicas {self.min_replicas}")
        if self.fixed_port and self.replicas_per_node != 1:
            faults.append("fixed_port: two replicas of a node cannot answer at one port; set replicas_per_node: 1")
        refuse(faults)
        return self

"""`ray`: how many replicas of the lanes run on a Ray cluster, and when there are to be more or fewer."""

from __future__ import annotations

from pydantic import Field, model_validator

from serving.config.section import Seconds, Section

__all__ = ["RayConfig"]


class RayConfig(Section):
    min_replicas: int = Field(2, ge=1)
    """Fewest replicas, each with `engine.lanes` lanes. With one alone, its loss leaves nobody to answer."""
    max_replicas: int = Field(4, ge=1)
    """Most replicas."""
    num_cpus: float | None = Field(None, gt=0)
    """Cores that Ray sets aside per replica; one per lane unless said."""
    memory_bytes: int | None = Field(None, ge=1)
    """Memory that Ray sets aside per replica (docs/scaling.md says how to estimate it); none unless said."""
    resources: dict[str, float] = Field(default_factory=dict)
    """Custom resources of Ray that a replica takes, so that lanes run where these are."""
    control_resources: dict[str, float] = Field(default_factory=dict)
    """The same of the control process; they keep it on the head, for example."""
    replicas_per_node: int | None = Field(None, ge=1, le=100)
    """Most replicas on one node; unsaid, as many as fit, and then a node that is lost may have been that of all. With 1 an
    upgrade takes a node to spare."""
    fixed_port: bool = False
    """Whether every replica answers at `listen.grpc_port`, as headless DNS needs it: one per node, each in a `home` of its
    own. Else the n-th replica of a home answers at `listen.grpc_port` + n."""
    control: bool = True
    """Whether the control process, and the worker where there is one, run on the cluster too."""
    advertise_host: str = ""
    """Host under which clients reach a replica; unless said `listen.host`, or where that is 0.0.0.0 or ::, the node's
    address as Ray knows it."""
    utilisation: float = Field(0.6, gt=0, lt=1)
    """Share of the time for which a worker thread should be at work; more replicas come when it is more."""
    queue_wait: Seconds = Field(0.005, gt=0)
    """Mean time in the queue above which one more replica comes, whatever the utilisation."""
    upscale_delay: Seconds = 10.0
    """How long more replicas must have been wanted before they come."""
    downscale_delay: Seconds = 300.0
    """How long fewer must have been wanted before one goes."""
    look_back: Seconds = Field(20.0, gt=0)
    """Time over which both signals are averaged."""
    start_limit: Seconds = Field(300.0, gt=0)
    """How long a replica may take to fetch and load its models before it is started anew elsewhere."""
    health_period: Seconds = Field(5.0, gt=0)
    """How often Ray asks a replica for its health; after three failures in a row it is replaced."""

    @model_validator(mode="after")
    def _bounds(self) -> RayConfig:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is below min_replicas {self.min_replicas}")
        if self.fixed_port and self.replicas_per_node != 1:
            raise ValueError("fixed_port: two replicas of a node cannot answer at one port; set replicas_per_node: 1")
        return self

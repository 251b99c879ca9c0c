"""`engine` and `stages`: execution of requests in a lane."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from pipeline.engine.batching import BatchPolicy, QueuePolicy
from pipeline.errors import InvalidInput
from pipeline.faults import refuse
from pipeline.host import cores
from serving.config.section import Seconds, Section

__all__ = ["EngineConfig", "StageConfig"]


class QueueConfig(Section):
    """Settings of one priority level; unset ones are those of the engine."""

    max_queue_size: int | None = Field(None, ge=1)
    timeout_action: Literal["REJECT", "DELAY"] | None = None
    default_timeout_microseconds: int | None = Field(None, ge=0)
    allow_timeout_override: bool | None = None


def _lanes(cores: int) -> int:
    return min(cores, max(2, cores - 1))


class EngineConfig(Section):
    lanes: int = Field(default_factory=lambda: _lanes(cores().amount), ge=1, le=256)
    """Processes that answer, sharing one port. By default one per core that Baton may use (by
    affinity and control group), and from three cores on one core is left for other
    processes; on two cores a second lane adds more than half of the throughput, since other processes have lower priority
    anyway. `baton bench lanes` measures the best split into lanes, `workers` and `network_threads` on this machine."""
    workers: int = Field(1, ge=1, le=64)
    """Threads per lane that run the fused stages of a request."""
    network_threads: int = Field(1, ge=1, le=64)
    """Threads inside one ONNX Runtime session."""
    max_batch_size: int = Field(512, ge=1)
    """Most rows of a batch: waiting requests of one version go through the network together. A larger request goes alone."""
    preferred_batch_size: tuple[int, ...] = ()
    """Preferred numbers of rows; a batch ends at the largest of these that the waiting requests reach."""
    max_queue_delay_microseconds: int = Field(0, ge=0)
    """Longest time that the only free worker delays the oldest request to fill a batch."""
    max_queue_size: int = Field(512, ge=1)
    """Most requests that wait per lane; a further one is refused with RESOURCE_EXHAUSTED or replaces a less important one."""
    timeout_action: Literal["REJECT", "DELAY"] = "REJECT"
    """Action on a request that waited for its queue timeout: refuse it with RESOURCE_EXHAUSTED, or move it to the end."""
    default_timeout_microseconds: int = Field(0, ge=0)
    """Queue timeout; 0: none. A request's deadline always applies."""
    allow_timeout_override: bool = False
    """Whether a request may shorten its queue timeout by the parameter `timeout`, which is a deadline otherwise."""
    priority_levels: int = Field(0, ge=0, le=64)
    """Priority levels, 1 the highest; 0: all requests have the same priority."""
    default_priority_level: int = Field(0, ge=0)
    """Level of requests without one."""
    priority_queue_policy: dict[int, QueueConfig] = Field(default_factory=dict)
    """Settings of single levels, in place of those above; `max_queue_size` above bounds all levels together."""
    default_deadline: Seconds = 10.0
    """Deadline of a request without one, and longest deadline of a message in a stream."""
    memory_reserve_bytes: int = Field(256 << 20, ge=0)
    """Bytes that must stay free on the machine (or in its container) after a version is loaded; a version that does not
    fit is not loaded, and tried again later."""
    load_timeout: Seconds = Field(20.0, ge=1)
    """Processor time that loading and warming a version may take in a probe process, before any other process loads it. A
    version that needs more, or kills its probe, is tried twice and then set aside."""
    load_memory_bytes: int = Field(2 << 30, ge=64 << 20)
    """Memory that it may take there, beside four times the size of its network's files."""
    shadow_queue: int = Field(2048, ge=1)
    """Most predictions that wait for the shadow lane; beyond it the oldest are dropped and counted."""
    shadow_nice: int = Field(19, ge=0, le=19)
    """Nice value of the shadow lane, so that primary lanes go first; 19: it uses only idle processor time."""

    @model_validator(mode="after")
    def _valid_policy(self) -> EngineConfig:
        faults = []
        try:
            self.policy()
        except InvalidInput as error:
            faults.append(str(error))
        if self.max_queue_delay_microseconds >= 1e6 * self.default_deadline:
            faults.append(
                f"max_queue_delay_microseconds {self.max_queue_delay_microseconds} is not below default_deadline "
                f"{self.default_deadline:g} s: a request would wait for others until it is too late to answer it"
            )
        refuse(faults)
        return self

    def policy(self) -> BatchPolicy:
        """Settings of queue and batches for the engine."""
        default = QueuePolicy(
            self.max_queue_size, self.timeout_action, self.default_timeout_microseconds, self.allow_timeout_override
        )
        return BatchPolicy(
            max_batch_size=self.max_batch_size,
            preferred_batch_size=self.preferred_batch_size,
            max_queue_delay_microseconds=self.max_queue_delay_microseconds,
            priority_levels=self.priority_levels,
            default_priority_level=self.default_priority_level,
            default_queue_policy=default,
            priority_queue_policy={
                level: replace(default, **own.model_dump(exclude_none=True))
                for level, own in self.priority_queue_policy.items()
            },
        )


class StageConfig(Section):
    model_config = ConfigDict(populate_by_name=True)

    class_: str = Field(alias="class", pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """`package.module:Class`, importable where Baton runs: installed, or on PYTHONPATH."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Named arguments of the class."""

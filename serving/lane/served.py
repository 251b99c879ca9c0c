"""Immutable snapshot of the versions that may answer, and reports on them. `serving.lane.registry` makes a new snapshot on
every change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.errors import Conflict
from pipeline.model.model import Model
from serving.rollout.routing import Arm, Endpoint, arm_of_bucket, bucket_of
from serving.wire.inference import InferCodec
from serving.wire.ranking import RankCodec

__all__ = ["ARM_NAMES", "Key", "ModelReport", "Served", "ServedEndpoint", "Snapshot", "mismatch"]

ARM_NAMES: tuple[Arm, Arm] = ("stable", "candidate")

Key = tuple[str, str]
"""Bundle and version."""


@dataclass(frozen=True, slots=True)
class Served:
    """A version that may answer, with the codecs that read requests for it: of its own fields, or as an arm of an
    endpoint of those of both arms."""

    model: Model
    rank: RankCodec
    infer: InferCodec

    @property
    def key(self) -> Key:
        return self.model.name, self.model.version


@dataclass(frozen=True, slots=True)
class ServedEndpoint:
    """An endpoint as requests see it; an arm that cannot answer is None. `killed`: nothing goes to the candidate."""

    endpoint: Endpoint
    stable: Served | None
    candidate: Served | None
    killed: bool

    @property
    def versions(self) -> tuple[int, int]:
        """Of the models of both arms, 0 where one has none."""
        stable, candidate = self.stable, self.candidate
        return int(stable.model.version) if stable else 0, int(candidate.model.version) if candidate else 0

    def arm(self, name: str) -> Served | None:
        return self.candidate if name == "candidate" else self.stable

    def observed(self, arm: str) -> bool:
        """Whether another server answers for an arm."""
        spec = self.endpoint.candidate if arm == "candidate" else self.endpoint.stable
        return spec is not None and spec.observed

    def arm_of(self, key: str) -> Arm:
        """The arm that a routing key belongs to now."""
        return self.arm_of_bucket(bucket_of(self.endpoint, key))

    def arm_of_bucket(self, bucket: int) -> Arm:
        """The arm that the keys of a bucket belong to now."""
        return "stable" if self.killed or self.endpoint.killed else arm_of_bucket(bucket, self.endpoint.weight)

    def check_here(self, arm: str) -> None:
        """Refuse what an arm cannot do that another server answers. Raises: Conflict."""
        if self.observed(arm):
            raise Conflict(
                f"the {arm} arm of endpoint {self.endpoint.name!r} is answered by another server, which tells it by Observe; "
                "ask that server"
            )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that may answer at one moment."""

    endpoints: Mapping[str, ServedEndpoint]
    models: Mapping[Key, Served]

    def newest(self, bundle: str) -> Served | None:
        """The newest ready version of a bundle."""
        versions = [int(version) for name, version in self.models if name == bundle]
        return self.models[bundle, str(max(versions))] if versions else None


@dataclass(frozen=True, slots=True)
class ModelReport:
    """State of a version in the repository index, in Triton's words: READY, LOADING, UNLOADING, UNAVAILABLE."""

    bundle: str
    version: str
    state: str
    reason: str


def mismatch(stable: Served, candidate: Served) -> str:
    """Reason why two models cannot be arms of one endpoint; "" when they can."""
    difference = candidate.model.schema.inputs_match(stable.model.schema)
    if difference is None:
        return ""
    return f"the candidate {candidate.model.name} contradicts stable {stable.model.name}: {difference}"

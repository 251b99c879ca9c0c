"""Endpoints, their arms, and the assignment of routing keys to arms: a pure function of salt, key and weight.

A key's bucket never changes, so the same key stays on the same arm over restarts and processes, and a growing weight
only ever adds keys to the candidate. Nothing is drawn at random: a client that asks often is not assigned more often.
Read next: `serving.rollout.store`, which keeps the endpoints.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.hashing import HELD_BUCKET, NO_BUCKET, bucket

__all__ = [
    "OBSERVED",
    "Arm",
    "ArmSpec",
    "Endpoint",
    "arm_of_bucket",
    "bucket_of",
    "choose_arm",
    "held_out",
    "is_observed",
    "on_candidate",
]

Arm = Literal["stable", "candidate"]

OBSERVED = "observed:"
"""Begins the name of an arm that another server answers: `observed:triton`. No bundle has such a name."""
_HOLDOUT = "holdout:"


class ArmSpec(BaseModel):
    """A bundle and its version that an arm serves; version 0: the newest one that is ready.

    `observed:NAME` in place of a bundle: another server answers, and tells it by `Observe`; nothing is loaded for it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: str = Field(min_length=1)
    version: int = Field(0, ge=0)

    @property
    def observed(self) -> bool:
        """Whether another server answers for this arm."""
        return is_observed(self.bundle)


class Endpoint(BaseModel):
    """An endpoint: the name that clients call, its arms, and the split of keys between them.

    `holdout` is the fraction of keys that stays on stable even at a weight of 100; set it to 0 where the weight must be
    met exactly. `stable_held`: newest version that a stable arm without a version of its own may answer with; 0: any
    (`serving.rollout.held_stable`). `killed` sends everything to stable at any weight. `resource_version` counts the changes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    stable: ArmSpec
    candidate: ArmSpec | None = None
    weight: float = Field(0.0, ge=0, le=100)
    salt: str = ""
    holdout: float = Field(0.0, ge=0, lt=1)
    killed: bool = False
    stable_held: int = Field(0, ge=0)
    resource_version: int = Field(0, ge=0)

    @property
    def stable_now(self) -> ArmSpec:
        """Stable with the version that it is pinned to or held at, 0 where it is neither."""
        return ArmSpec(bundle=self.stable.bundle, version=self.stable.version or self.stable_held)

    @model_validator(mode="after")
    def _weight_needs_candidate(self) -> Endpoint:
        if self.weight > 0 and self.candidate is None:
            raise ValueError(
                f"endpoint {self.name!r} has weight {self.weight} but no candidate; name one or set weight 0"
            )
        return self


def is_observed(bundle: str) -> bool:
    """Whether the bundle of an arm stands for another server.

    >>> is_observed("observed:triton"), is_observed("ranker-deepfm")
    (True, False)
    """
    return bundle.startswith(OBSERVED)


def choose_arm(endpoint: Endpoint, key: str) -> Arm:
    """The arm that answers `key`; a missing (empty) key goes to stable, and the caller counts it.

    The caller answers with stable where the endpoint's kill flag is set (`serving.state.kill`) and does not call this.
    """
    return "stable" if endpoint.killed else arm_of_bucket(bucket_of(endpoint, key), endpoint.weight)


def bucket_of(endpoint: Endpoint, key: str) -> int:
    """Bucket of a routing key, which its arm follows from at every weight: 0..9999; `HELD_BUCKET` for one of the holdout;
    `NO_BUCKET` without a key, or where there is no candidate."""
    if not key or endpoint.candidate is None:
        return NO_BUCKET
    return HELD_BUCKET if held_out(endpoint.salt, key, endpoint.holdout) else bucket(endpoint.salt, key)


def arm_of_bucket(number: int, weight: float) -> Arm:
    """The arm of the keys of a bucket at `weight` percent (0..100).

    >>> arm_of_bucket(4999, 50.0), arm_of_bucket(5000, 50.0), arm_of_bucket(HELD_BUCKET, 100.0), arm_of_bucket(NO_BUCKET, 100.0)
    ('candidate', 'stable', 'stable', 'stable')
    """
    return "candidate" if NO_BUCKET < number < 100.0 * weight else "stable"


def on_candidate(salt: str, key: str, weight: float) -> bool:
    """Whether `key` belongs to the candidate at `weight` percent (0..100).

    >>> on_candidate("r1", "712", 53.3), on_candidate("r1", "712", 53.4)
    (False, True)
    """
    return bucket(salt, key) < 100.0 * weight


def held_out(salt: str, key: str, fraction: float) -> bool:
    """Whether `key` is of the `fraction` (0..1) of keys that stay on stable at any weight.

    The holdout has a salt of its own, so that it is a fair sample of the keys of every bucket.
    """
    return fraction > 0.0 and bucket(_HOLDOUT + salt, key) < 10_000.0 * fraction

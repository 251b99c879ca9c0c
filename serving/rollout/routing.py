"""Endpoints and their arms: what a lane must know to choose who answers. Where endpoints are kept is the store's business.

Read next: `serving.rollout.assign` for the rule of keys, `serving.rollout.store` for where endpoints live.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serving.rollout.assign import held_out, on_candidate

__all__ = ["Arm", "ArmSpec", "Endpoint", "choose_arm"]

Arm = Literal["stable", "candidate"]


class ArmSpec(BaseModel):
    """A bundle and the version of it that an arm serves; version 0 stands for the newest one that is ready."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: str = Field(min_length=1)
    version: int = Field(0, ge=0)


class Endpoint(BaseModel):
    """The name that clients call, its arms and how keys are split between them.

    `holdout` is the share of keys that stays on stable even at a weight of 100; set it to 0 where the weight must be
    met exactly. `killed` sends everything to stable whatever the weight says. `resource_version` counts its changes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    stable: ArmSpec
    candidate: ArmSpec | None = None
    weight: float = Field(0.0, ge=0, le=100)
    salt: str = ""
    holdout: float = Field(0.0, ge=0, lt=1)
    killed: bool = False
    resource_version: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _weight_needs_candidate(self) -> Endpoint:
        if self.weight > 0 and self.candidate is None:
            raise ValueError(
                f"endpoint {self.name!r} has weight {self.weight} but no candidate; name one or set weight 0"
            )
        return self


def choose_arm(endpoint: Endpoint, key: str) -> Arm:
    """The arm that answers `key`; a missing (empty) key goes to stable, and the caller counts it.

    An endpoint whose kill flag is set (`serving.state.kill`) never reaches this question: the caller answers with stable.
    """
    if not key or endpoint.killed or endpoint.candidate is None:
        return "stable"
    if held_out(endpoint.salt, key, endpoint.holdout) or not on_candidate(endpoint.salt, key, endpoint.weight):
        return "stable"
    return "candidate"

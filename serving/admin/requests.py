"""Requests of the admin verbs. gRPC, REST and the console fill the same classes, so all refuse the same in the same words.

Field names are those of `baton.admin.v1` and of REST bodies and queries. Read next: `answers`, `verbs`.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

__all__ = [
    "ArmRequest",
    "AuditList",
    "AuditSeq",
    "BackupMake",
    "CacheWarm",
    "EndpointChange",
    "EndpointKill",
    "EndpointList",
    "EndpointName",
    "EndpointPin",
    "EndpointRelease",
    "EndpointSet",
    "FreezeUntil",
    "Lift",
    "LogExport",
    "LogForget",
    "LogHold",
    "LogRelease",
    "MetricsOf",
    "ModelChange",
    "ModelList",
    "ModelLoad",
    "ModelRetire",
    "Mutation",
    "Nothing",
    "Override",
    "Page",
    "Pin",
    "Release",
    "Request",
    "Retire",
    "RolloutFile",
    "RolloutList",
    "RolloutName",
    "RolloutPromote",
    "RolloutSetWeight",
    "RolloutSteer",
    "RolloutWatch",
    "Steer",
    "SteerForward",
    "SteerWeight",
    "Warm",
]

LARGEST_VERSION = 2**63 - 1
"""Largest INTEGER of SQLite and int64 on the wire."""

Name = Annotated[str, Field(min_length=1, max_length=200)]
Expected = Annotated[
    int | None,
    Field(ge=0, le=LARGEST_VERSION, description="resource version that the caller read; absent: any"),
]
Weight = Annotated[
    float, Field(ge=0, le=100, allow_inf_nan=False, description="percent of routing keys for the candidate")
]


class Request(BaseModel):
    """Request of any verb. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Nothing(Request):
    """Request without fields."""


class Mutation(Request):
    """Request of a changing verb. Values must have the types of their fields; nothing is converted."""

    model_config = ConfigDict(strict=True)

    reason: str = Field("", max_length=2000, description="why; written into the audit")


def _needs_reason(schema: dict[str, Any]) -> None:
    schema["required"] = [*schema.get("required", ()), "reason"]
    schema["properties"]["reason"]["minLength"] = 1


class Override(Mutation):
    """Request of a verb that overrides what evidence or configuration decide: the audit must say why."""

    model_config = ConfigDict(json_schema_extra=_needs_reason)

    reason: str = Field(
        "", max_length=2000, description="why; written into the audit; must not be empty", validate_default=True
    )

    @field_validator("reason")
    @classmethod
    def _says_why(cls, reason: str) -> str:
        if not reason.strip():
            raise PydanticCustomError("no_reason", "must not be empty; say why (--reason), the audit keeps it")
        return reason


class Page(Request):
    """Request of a list."""

    page_size: int = Field(100, ge=1, le=1000, description="entries at most")
    page_token: str = Field("", max_length=2000, description="`next_page_token` of the page before; empty: the first")


# Endpoints


class ArmRequest(Request):
    bundle: str = Field(max_length=200)
    version: str = Field("", max_length=20, description="decimal; empty: the newest that may serve")


class EndpointList(Page):
    pass


class EndpointName(Request):
    name: Name


class EndpointChange(Override):
    stable: ArmRequest
    candidate: ArmRequest | None = None
    weight: Weight = 0.0
    salt: str = Field("", max_length=200, description="of the assignment of keys; empty: as it was")
    expected: Expected = None


class EndpointSet(EndpointChange):
    name: Name


class Pin(Override):
    stable: ArmRequest = Field(
        description="the stable arm's bundle with a version; without one it follows the newest again"
    )
    expected: Expected = None


class EndpointPin(Pin):
    name: Name


class EndpointKill(Mutation):
    name: Name


class Release(Mutation):
    expected: Expected = None


class EndpointRelease(Release):
    name: Name


# Models


class ModelList(Page):
    bundle: str = Field("", max_length=200, description="only this bundle's versions")


class ModelChange(Mutation):
    wait_seconds: float = Field(
        0.0, ge=0, le=120, allow_inf_nan=False, description="how long to wait for the lanes; 0: not at all"
    )


class ModelLoad(ModelChange):
    bundle: Name


class Retire(Override):
    version: str = Field(min_length=1, max_length=20, description="decimal")
    restore: bool = Field(False, description="take it back")


class ModelRetire(Retire):
    bundle: Name


# Rollouts


class RolloutFile(Mutation):
    file: str = Field(max_length=1 << 20, description="the rollout file, as text")
    name: str = Field("rollout", max_length=200, description="name of the file in messages")
    expected: Expected = Field(None, description="resource version of the endpoint that the caller read")
    version: str = Field(
        "", pattern=r"^([1-9][0-9]{0,17})?$", description="of the candidate to begin with; empty: the newest"
    )


class RolloutList(Page):
    endpoint: str = Field("", max_length=200, description="only this endpoint's")
    active: bool = Field(False, description="only rollouts that can still move by themselves")


class RolloutName(Request):
    name: Name


class RolloutWatch(RolloutName):
    interval: float = Field(1.0, ge=0.2, le=60, allow_inf_nan=False, description="seconds between two looks")


class Steer(Override):
    expected: Expected = None


class SteerForward(Steer):
    full: bool = Field(False, description="straight to the last step")
    force: bool = Field(False, description="although the evidence is not there; what is not met goes into the audit")


class SteerWeight(Steer):
    weight: Weight


class RolloutSteer(Steer):
    name: Name


class RolloutPromote(SteerForward):
    name: Name


class RolloutSetWeight(SteerWeight):
    name: Name


class FreezeUntil(Override):
    until_ms: int = Field(ge=0, le=LARGEST_VERSION, description="end of the freeze, Unix milliseconds")


class Lift(Override):
    pass


# Processes


class ProcessRestart(Mutation):
    process: Name
    """Name of a process of the supervisor's machine; `all`: one after another."""


# Figures, audit, cache


class MetricsOf(Request):
    endpoint: Name


class AuditList(Page):
    endpoint: str = Field("", max_length=200, description="only this endpoint's")
    newest_first: bool = False


class AuditSeq(Request):
    seq: int = Field(ge=1, le=LARGEST_VERSION, description="number of the entry")
    rows: bool = Field(
        False, description="compute the figures from the rows of the log, which takes as long as reading them"
    )


class Warm(Mutation):
    version: str = Field("", max_length=20, description="of the bundle; empty: the newest that may serve")


class CacheWarm(Warm):
    name: Name = Field(description="endpoint (both its arms) or bundle")


# Traffic log


class _OneUser(Mutation):
    """Names a user by exactly one of the two fields."""

    routing_key: str = Field("", max_length=1000, description="of the user")
    prediction_id: str = Field(
        "", max_length=100, description="one of the user's; those of the same routing key are meant too"
    )

    @model_validator(mode="after")
    def _names_one_user(self) -> Self:
        if bool(self.routing_key) == bool(self.prediction_id):
            raise ValueError("name the user by routing_key or by prediction_id, one of them")
        return self


class LogForget(_OneUser):
    """Names the user whose records are deleted."""


class LogHold(_OneUser, Override):
    """Names the user whose records are to stay, and the case as the reason."""


class LogRelease(Mutation):
    """Names a held user by exactly one of the three fields."""

    routing_key: str = Field("", max_length=1000, description="of the user")
    prediction_id: str = Field("", max_length=100, description="one of the user's")
    key: str = Field("", pattern="^([0-9a-f]{16})?$", description="name of the key in the list of holds")

    @model_validator(mode="after")
    def _names_one_user(self) -> Self:
        if sum(map(bool, (self.routing_key, self.prediction_id, self.key))) != 1:
            raise ValueError("name the user by routing_key, prediction_id or key, one of them")
        return self


class LogExport(Mutation):
    """Which labelled rows are exported, and what is left out or hashed again of them."""

    endpoint: str = Field("", max_length=200, description="of the rows; empty: all")
    since_ms: int | None = Field(
        None, ge=0, le=LARGEST_VERSION, description="predictions from then on; Unix milliseconds"
    )
    until_ms: int | None = Field(None, ge=0, le=LARGEST_VERSION, description="predictions before then")
    drop: list[Name] = Field([], max_length=1000, description="fields or columns to leave out")
    rekey: list[Name] = Field(
        [], max_length=1000, description="fields whose ids are hashed again, with a key of this export"
    )


class BackupMake(Mutation):
    """A backup has no choices."""

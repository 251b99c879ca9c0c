from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Arm(_message.Message):
    __slots__ = ("bundle", "version")
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    bundle: str
    version: str
    def __init__(self, bundle: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class Endpoint(_message.Message):
    __slots__ = ("name", "stable", "candidate", "weight", "salt", "holdout", "killed", "killed_reason", "killed_by", "resource_version", "stable_held")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STABLE_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    HOLDOUT_FIELD_NUMBER: _ClassVar[int]
    KILLED_FIELD_NUMBER: _ClassVar[int]
    KILLED_REASON_FIELD_NUMBER: _ClassVar[int]
    KILLED_BY_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_VERSION_FIELD_NUMBER: _ClassVar[int]
    STABLE_HELD_FIELD_NUMBER: _ClassVar[int]
    name: str
    stable: Arm
    candidate: Arm
    weight: float
    salt: str
    holdout: float
    killed: bool
    killed_reason: str
    killed_by: str
    resource_version: int
    stable_held: str
    def __init__(self, name: _Optional[str] = ..., stable: _Optional[_Union[Arm, _Mapping]] = ..., candidate: _Optional[_Union[Arm, _Mapping]] = ..., weight: _Optional[float] = ..., salt: _Optional[str] = ..., holdout: _Optional[float] = ..., killed: bool = ..., killed_reason: _Optional[str] = ..., killed_by: _Optional[str] = ..., resource_version: _Optional[int] = ..., stable_held: _Optional[str] = ...) -> None: ...

class ListEndpointsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListEndpointsResponse(_message.Message):
    __slots__ = ("endpoints", "next_page_token")
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    endpoints: _containers.RepeatedCompositeFieldContainer[Endpoint]
    next_page_token: str
    def __init__(self, endpoints: _Optional[_Iterable[_Union[Endpoint, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetEndpointRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class SetEndpointRequest(_message.Message):
    __slots__ = ("name", "stable", "candidate", "weight", "salt", "expected", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STABLE_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    stable: Arm
    candidate: Arm
    weight: float
    salt: str
    expected: int
    reason: str
    def __init__(self, name: _Optional[str] = ..., stable: _Optional[_Union[Arm, _Mapping]] = ..., candidate: _Optional[_Union[Arm, _Mapping]] = ..., weight: _Optional[float] = ..., salt: _Optional[str] = ..., expected: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class PinEndpointRequest(_message.Message):
    __slots__ = ("name", "stable", "expected", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STABLE_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    stable: Arm
    expected: int
    reason: str
    def __init__(self, name: _Optional[str] = ..., stable: _Optional[_Union[Arm, _Mapping]] = ..., expected: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class KillEndpointRequest(_message.Message):
    __slots__ = ("name", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    reason: str
    def __init__(self, name: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ReleaseEndpointRequest(_message.Message):
    __slots__ = ("name", "reason", "expected")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    name: str
    reason: str
    expected: int
    def __init__(self, name: _Optional[str] = ..., reason: _Optional[str] = ..., expected: _Optional[int] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("bundle", "version", "architecture", "base", "servable", "reasons", "fault", "metrics", "arms", "lanes")
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    SERVABLE_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    ARMS_FIELD_NUMBER: _ClassVar[int]
    LANES_FIELD_NUMBER: _ClassVar[int]
    bundle: str
    version: str
    architecture: str
    base: str
    servable: bool
    reasons: _containers.RepeatedScalarFieldContainer[str]
    fault: str
    metrics: _struct_pb2.Struct
    arms: _containers.RepeatedScalarFieldContainer[str]
    lanes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, bundle: _Optional[str] = ..., version: _Optional[str] = ..., architecture: _Optional[str] = ..., base: _Optional[str] = ..., servable: bool = ..., reasons: _Optional[_Iterable[str]] = ..., fault: _Optional[str] = ..., metrics: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., arms: _Optional[_Iterable[str]] = ..., lanes: _Optional[_Iterable[str]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ("bundle", "page_size", "page_token")
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    bundle: str
    page_size: int
    page_token: str
    def __init__(self, bundle: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "next_page_token")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    next_page_token: str
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ModelRequest(_message.Message):
    __slots__ = ("bundle", "wait_seconds", "reason")
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    bundle: str
    wait_seconds: float
    reason: str
    def __init__(self, bundle: _Optional[str] = ..., wait_seconds: _Optional[float] = ..., reason: _Optional[str] = ...) -> None: ...

class RetireModelRequest(_message.Message):
    __slots__ = ("bundle", "version", "restore", "reason")
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RESTORE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    bundle: str
    version: str
    restore: bool
    reason: str
    def __init__(self, bundle: _Optional[str] = ..., version: _Optional[str] = ..., restore: bool = ..., reason: _Optional[str] = ...) -> None: ...

class Retired(_message.Message):
    __slots__ = ("bundle", "version", "retired")
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RETIRED_FIELD_NUMBER: _ClassVar[int]
    bundle: str
    version: str
    retired: bool
    def __init__(self, bundle: _Optional[str] = ..., version: _Optional[str] = ..., retired: bool = ...) -> None: ...

class ModelLoaded(_message.Message):
    __slots__ = ("bundle", "version", "wanted", "done", "lanes")
    class LanesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    LANES_FIELD_NUMBER: _ClassVar[int]
    bundle: str
    version: str
    wanted: bool
    done: bool
    lanes: _containers.ScalarMap[str, str]
    def __init__(self, bundle: _Optional[str] = ..., version: _Optional[str] = ..., wanted: bool = ..., done: bool = ..., lanes: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("shadow", "min_positives", "weight", "bias_below", "approve")
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    MIN_POSITIVES_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    BIAS_BELOW_FIELD_NUMBER: _ClassVar[int]
    APPROVE_FIELD_NUMBER: _ClassVar[int]
    shadow: bool
    min_positives: int
    weight: float
    bias_below: float
    approve: bool
    def __init__(self, shadow: bool = ..., min_positives: _Optional[int] = ..., weight: _Optional[float] = ..., bias_below: _Optional[float] = ..., approve: bool = ...) -> None: ...

class RolloutSummary(_message.Message):
    __slots__ = ("id", "endpoint", "candidate", "phase", "step", "weight", "steps", "steps_on_evidence", "stepped_back", "attempt", "entered_ms", "waiting", "next_look_ms", "missing_clicks", "evidence", "created_ms", "resource_version", "cause", "code", "what_to_do", "page", "held_since_ms", "hours_left", "overdue", "step_backs", "alarm", "refused_version")
    ID_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    STEPS_ON_EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    STEPPED_BACK_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    ENTERED_MS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    NEXT_LOOK_MS_FIELD_NUMBER: _ClassVar[int]
    MISSING_CLICKS_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    CREATED_MS_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_VERSION_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    WHAT_TO_DO_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    HELD_SINCE_MS_FIELD_NUMBER: _ClassVar[int]
    HOURS_LEFT_FIELD_NUMBER: _ClassVar[int]
    OVERDUE_FIELD_NUMBER: _ClassVar[int]
    STEP_BACKS_FIELD_NUMBER: _ClassVar[int]
    ALARM_FIELD_NUMBER: _ClassVar[int]
    REFUSED_VERSION_FIELD_NUMBER: _ClassVar[int]
    id: str
    endpoint: str
    candidate: Arm
    phase: str
    step: int
    weight: float
    steps: _containers.RepeatedCompositeFieldContainer[Step]
    steps_on_evidence: _containers.RepeatedScalarFieldContainer[int]
    stepped_back: int
    attempt: int
    entered_ms: int
    waiting: str
    next_look_ms: int
    missing_clicks: float
    evidence: _struct_pb2.Struct
    created_ms: int
    resource_version: int
    cause: Cause
    code: str
    what_to_do: str
    page: str
    held_since_ms: int
    hours_left: float
    overdue: bool
    step_backs: _struct_pb2.Struct
    alarm: str
    refused_version: str
    def __init__(self, id: _Optional[str] = ..., endpoint: _Optional[str] = ..., candidate: _Optional[_Union[Arm, _Mapping]] = ..., phase: _Optional[str] = ..., step: _Optional[int] = ..., weight: _Optional[float] = ..., steps: _Optional[_Iterable[_Union[Step, _Mapping]]] = ..., steps_on_evidence: _Optional[_Iterable[int]] = ..., stepped_back: _Optional[int] = ..., attempt: _Optional[int] = ..., entered_ms: _Optional[int] = ..., waiting: _Optional[str] = ..., next_look_ms: _Optional[int] = ..., missing_clicks: _Optional[float] = ..., evidence: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., created_ms: _Optional[int] = ..., resource_version: _Optional[int] = ..., cause: _Optional[_Union[Cause, _Mapping]] = ..., code: _Optional[str] = ..., what_to_do: _Optional[str] = ..., page: _Optional[str] = ..., held_since_ms: _Optional[int] = ..., hours_left: _Optional[float] = ..., overdue: bool = ..., step_backs: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., alarm: _Optional[str] = ..., refused_version: _Optional[str] = ...) -> None: ...

class Rollout(_message.Message):
    __slots__ = ("id", "endpoint", "candidate", "phase", "step", "weight", "steps", "steps_on_evidence", "stepped_back", "attempt", "entered_ms", "waiting", "next_look_ms", "missing_clicks", "evidence", "created_ms", "resource_version", "coverage", "phases", "cause", "code", "what_to_do", "page", "held_since_ms", "hours_left", "overdue", "step_backs", "alarm", "refused_version")
    ID_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    STEPS_ON_EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    STEPPED_BACK_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    ENTERED_MS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    NEXT_LOOK_MS_FIELD_NUMBER: _ClassVar[int]
    MISSING_CLICKS_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    CREATED_MS_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_VERSION_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    WHAT_TO_DO_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    HELD_SINCE_MS_FIELD_NUMBER: _ClassVar[int]
    HOURS_LEFT_FIELD_NUMBER: _ClassVar[int]
    OVERDUE_FIELD_NUMBER: _ClassVar[int]
    STEP_BACKS_FIELD_NUMBER: _ClassVar[int]
    ALARM_FIELD_NUMBER: _ClassVar[int]
    REFUSED_VERSION_FIELD_NUMBER: _ClassVar[int]
    id: str
    endpoint: str
    candidate: Arm
    phase: str
    step: int
    weight: float
    steps: _containers.RepeatedCompositeFieldContainer[Step]
    steps_on_evidence: _containers.RepeatedScalarFieldContainer[int]
    stepped_back: int
    attempt: int
    entered_ms: int
    waiting: str
    next_look_ms: int
    missing_clicks: float
    evidence: _struct_pb2.Struct
    created_ms: int
    resource_version: int
    coverage: float
    phases: _containers.RepeatedCompositeFieldContainer[_struct_pb2.Struct]
    cause: Cause
    code: str
    what_to_do: str
    page: str
    held_since_ms: int
    hours_left: float
    overdue: bool
    step_backs: _struct_pb2.Struct
    alarm: str
    refused_version: str
    def __init__(self, id: _Optional[str] = ..., endpoint: _Optional[str] = ..., candidate: _Optional[_Union[Arm, _Mapping]] = ..., phase: _Optional[str] = ..., step: _Optional[int] = ..., weight: _Optional[float] = ..., steps: _Optional[_Iterable[_Union[Step, _Mapping]]] = ..., steps_on_evidence: _Optional[_Iterable[int]] = ..., stepped_back: _Optional[int] = ..., attempt: _Optional[int] = ..., entered_ms: _Optional[int] = ..., waiting: _Optional[str] = ..., next_look_ms: _Optional[int] = ..., missing_clicks: _Optional[float] = ..., evidence: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., created_ms: _Optional[int] = ..., resource_version: _Optional[int] = ..., coverage: _Optional[float] = ..., phases: _Optional[_Iterable[_Union[_struct_pb2.Struct, _Mapping]]] = ..., cause: _Optional[_Union[Cause, _Mapping]] = ..., code: _Optional[str] = ..., what_to_do: _Optional[str] = ..., page: _Optional[str] = ..., held_since_ms: _Optional[int] = ..., hours_left: _Optional[float] = ..., overdue: bool = ..., step_backs: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., alarm: _Optional[str] = ..., refused_version: _Optional[str] = ...) -> None: ...

class Cause(_message.Message):
    __slots__ = ("verb", "actor", "reason", "time_ms", "unmet")
    VERB_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    UNMET_FIELD_NUMBER: _ClassVar[int]
    verb: str
    actor: str
    reason: str
    time_ms: int
    unmet: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, verb: _Optional[str] = ..., actor: _Optional[str] = ..., reason: _Optional[str] = ..., time_ms: _Optional[int] = ..., unmet: _Optional[_Iterable[str]] = ...) -> None: ...

class StartRolloutRequest(_message.Message):
    __slots__ = ("file", "name", "expected", "reason", "version")
    FILE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    file: str
    name: str
    expected: int
    reason: str
    version: str
    def __init__(self, file: _Optional[str] = ..., name: _Optional[str] = ..., expected: _Optional[int] = ..., reason: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class ListRolloutsRequest(_message.Message):
    __slots__ = ("endpoint", "active", "page_size", "page_token")
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    endpoint: str
    active: bool
    page_size: int
    page_token: str
    def __init__(self, endpoint: _Optional[str] = ..., active: bool = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListRolloutsResponse(_message.Message):
    __slots__ = ("rollouts", "next_page_token")
    ROLLOUTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    rollouts: _containers.RepeatedCompositeFieldContainer[RolloutSummary]
    next_page_token: str
    def __init__(self, rollouts: _Optional[_Iterable[_Union[RolloutSummary, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetRolloutRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class WatchRolloutRequest(_message.Message):
    __slots__ = ("name", "interval")
    NAME_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_FIELD_NUMBER: _ClassVar[int]
    name: str
    interval: float
    def __init__(self, name: _Optional[str] = ..., interval: _Optional[float] = ...) -> None: ...

class SteerRequest(_message.Message):
    __slots__ = ("name", "expected", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    expected: int
    reason: str
    def __init__(self, name: _Optional[str] = ..., expected: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class PromoteRequest(_message.Message):
    __slots__ = ("name", "full", "expected", "reason", "force")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FULL_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    full: bool
    expected: int
    reason: str
    force: bool
    def __init__(self, name: _Optional[str] = ..., full: bool = ..., expected: _Optional[int] = ..., reason: _Optional[str] = ..., force: bool = ...) -> None: ...

class FreezeRequest(_message.Message):
    __slots__ = ("until_ms", "reason")
    UNTIL_MS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    until_ms: int
    reason: str
    def __init__(self, until_ms: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class LiftRequest(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class FreezeState(_message.Message):
    __slots__ = ("until_ms", "actor", "reason", "since_ms")
    UNTIL_MS_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SINCE_MS_FIELD_NUMBER: _ClassVar[int]
    until_ms: int
    actor: str
    reason: str
    since_ms: int
    def __init__(self, until_ms: _Optional[int] = ..., actor: _Optional[str] = ..., reason: _Optional[str] = ..., since_ms: _Optional[int] = ...) -> None: ...

class SetWeightRequest(_message.Message):
    __slots__ = ("name", "weight", "expected", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    weight: float
    expected: int
    reason: str
    def __init__(self, name: _Optional[str] = ..., weight: _Optional[float] = ..., expected: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class GetMetricsRequest(_message.Message):
    __slots__ = ("endpoint",)
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    endpoint: str
    def __init__(self, endpoint: _Optional[str] = ...) -> None: ...

class EndpointMetrics(_message.Message):
    __slots__ = ("seq", "newest_ms", "exposed", "paired", "overridden", "coverage", "phases", "segments", "psi", "long_run", "not_finite", "left_out")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    NEWEST_MS_FIELD_NUMBER: _ClassVar[int]
    EXPOSED_FIELD_NUMBER: _ClassVar[int]
    PAIRED_FIELD_NUMBER: _ClassVar[int]
    OVERRIDDEN_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    PSI_FIELD_NUMBER: _ClassVar[int]
    LONG_RUN_FIELD_NUMBER: _ClassVar[int]
    NOT_FINITE_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    seq: int
    newest_ms: int
    exposed: int
    paired: int
    overridden: int
    coverage: float
    phases: _containers.RepeatedCompositeFieldContainer[_struct_pb2.Struct]
    segments: _containers.RepeatedCompositeFieldContainer[_struct_pb2.Struct]
    psi: _struct_pb2.Struct
    long_run: _struct_pb2.Struct
    not_finite: int
    left_out: int
    def __init__(self, seq: _Optional[int] = ..., newest_ms: _Optional[int] = ..., exposed: _Optional[int] = ..., paired: _Optional[int] = ..., overridden: _Optional[int] = ..., coverage: _Optional[float] = ..., phases: _Optional[_Iterable[_Union[_struct_pb2.Struct, _Mapping]]] = ..., segments: _Optional[_Iterable[_Union[_struct_pb2.Struct, _Mapping]]] = ..., psi: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., long_run: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., not_finite: _Optional[int] = ..., left_out: _Optional[int] = ...) -> None: ...

class ProcessesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ProcessesResponse(_message.Message):
    __slots__ = ("lanes", "shadow", "worker", "supervisor", "traffic", "damaged", "control", "processes", "freeze", "stores", "faults")
    LANES_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    SUPERVISOR_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    CONTROL_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    FREEZE_FIELD_NUMBER: _ClassVar[int]
    STORES_FIELD_NUMBER: _ClassVar[int]
    FAULTS_FIELD_NUMBER: _ClassVar[int]
    lanes: _struct_pb2.Struct
    shadow: _struct_pb2.Struct
    worker: _struct_pb2.Struct
    supervisor: _struct_pb2.Struct
    traffic: _struct_pb2.Struct
    damaged: _containers.RepeatedCompositeFieldContainer[DamagedStatus]
    control: _struct_pb2.Struct
    processes: _containers.RepeatedCompositeFieldContainer[ProcessState]
    freeze: FreezeState
    stores: _containers.RepeatedCompositeFieldContainer[StoreState]
    faults: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, lanes: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., shadow: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., worker: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., supervisor: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., traffic: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., damaged: _Optional[_Iterable[_Union[DamagedStatus, _Mapping]]] = ..., control: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., processes: _Optional[_Iterable[_Union[ProcessState, _Mapping]]] = ..., freeze: _Optional[_Union[FreezeState, _Mapping]] = ..., stores: _Optional[_Iterable[_Union[StoreState, _Mapping]]] = ..., faults: _Optional[_Iterable[str]] = ...) -> None: ...

class StoreState(_message.Message):
    __slots__ = ("name", "kind", "where", "size_bytes", "used_bytes", "free_bytes", "refused", "reason", "full")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FULL_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    where: str
    size_bytes: int
    used_bytes: int
    free_bytes: int
    refused: int
    reason: str
    full: bool
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., where: _Optional[str] = ..., size_bytes: _Optional[int] = ..., used_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., refused: _Optional[int] = ..., reason: _Optional[str] = ..., full: bool = ...) -> None: ...

class HealthRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HealthResponse(_message.Message):
    __slots__ = ("level", "time_ms", "source", "facts")
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    level: str
    time_ms: int
    source: str
    facts: _containers.RepeatedCompositeFieldContainer[HealthFact]
    def __init__(self, level: _Optional[str] = ..., time_ms: _Optional[int] = ..., source: _Optional[str] = ..., facts: _Optional[_Iterable[_Union[HealthFact, _Mapping]]] = ...) -> None: ...

class HealthFact(_message.Message):
    __slots__ = ("about", "name", "level", "says", "do")
    ABOUT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    SAYS_FIELD_NUMBER: _ClassVar[int]
    DO_FIELD_NUMBER: _ClassVar[int]
    about: str
    name: str
    level: str
    says: str
    do: str
    def __init__(self, about: _Optional[str] = ..., name: _Optional[str] = ..., level: _Optional[str] = ..., says: _Optional[str] = ..., do: _Optional[str] = ...) -> None: ...

class ProcessState(_message.Message):
    __slots__ = ("name", "state", "doing", "why", "pid", "age_s", "restarts", "last_exit")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DOING_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    LAST_EXIT_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: str
    doing: str
    why: str
    pid: int
    age_s: float
    restarts: int
    last_exit: str
    def __init__(self, name: _Optional[str] = ..., state: _Optional[str] = ..., doing: _Optional[str] = ..., why: _Optional[str] = ..., pid: _Optional[int] = ..., age_s: _Optional[float] = ..., restarts: _Optional[int] = ..., last_exit: _Optional[str] = ...) -> None: ...

class ListProcessesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListProcessesResponse(_message.Message):
    __slots__ = ("processes", "restart")
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    RESTART_FIELD_NUMBER: _ClassVar[int]
    processes: _containers.RepeatedCompositeFieldContainer[ProcessState]
    restart: ProcessRestart
    def __init__(self, processes: _Optional[_Iterable[_Union[ProcessState, _Mapping]]] = ..., restart: _Optional[_Union[ProcessRestart, _Mapping]] = ...) -> None: ...

class RestartProcessRequest(_message.Message):
    __slots__ = ("process", "reason")
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    process: str
    reason: str
    def __init__(self, process: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ProcessRestart(_message.Message):
    __slots__ = ("id", "process", "by", "reason", "state", "doing", "why", "seconds")
    class SecondsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DOING_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    id: str
    process: str
    by: str
    reason: str
    state: str
    doing: str
    why: str
    seconds: _containers.ScalarMap[str, float]
    def __init__(self, id: _Optional[str] = ..., process: _Optional[str] = ..., by: _Optional[str] = ..., reason: _Optional[str] = ..., state: _Optional[str] = ..., doing: _Optional[str] = ..., why: _Optional[str] = ..., seconds: _Optional[_Mapping[str, float]] = ...) -> None: ...

class DamagedStatus(_message.Message):
    __slots__ = ("file", "reason")
    FILE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    file: str
    reason: str
    def __init__(self, file: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class AuditEntry(_message.Message):
    __slots__ = ("seq", "time_ms", "endpoint", "rollout", "actor", "reason", "verb", "before", "after", "evidence")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    VERB_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    seq: int
    time_ms: int
    endpoint: str
    rollout: str
    actor: str
    reason: str
    verb: str
    before: _struct_pb2.Struct
    after: _struct_pb2.Struct
    evidence: _struct_pb2.Struct
    def __init__(self, seq: _Optional[int] = ..., time_ms: _Optional[int] = ..., endpoint: _Optional[str] = ..., rollout: _Optional[str] = ..., actor: _Optional[str] = ..., reason: _Optional[str] = ..., verb: _Optional[str] = ..., before: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., after: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., evidence: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class ListAuditRequest(_message.Message):
    __slots__ = ("endpoint", "newest_first", "page_size", "page_token")
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    NEWEST_FIRST_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    endpoint: str
    newest_first: bool
    page_size: int
    page_token: str
    def __init__(self, endpoint: _Optional[str] = ..., newest_first: bool = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListAuditResponse(_message.Message):
    __slots__ = ("entries", "next_page_token")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[AuditEntry]
    next_page_token: str
    def __init__(self, entries: _Optional[_Iterable[_Union[AuditEntry, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("seq", "rows")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    seq: int
    rows: bool
    def __init__(self, seq: _Optional[int] = ..., rows: bool = ...) -> None: ...

class Figure(_message.Message):
    __slots__ = ("name", "used", "recomputed", "same")
    NAME_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    RECOMPUTED_FIELD_NUMBER: _ClassVar[int]
    SAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    used: _struct_pb2.Value
    recomputed: _struct_pb2.Value
    same: bool
    def __init__(self, name: _Optional[str] = ..., used: _Optional[_Union[_struct_pb2.Value, _Mapping]] = ..., recomputed: _Optional[_Union[_struct_pb2.Value, _Mapping]] = ..., same: bool = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("entry", "figures", "verdict", "same", "note")
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    SAME_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    entry: AuditEntry
    figures: _containers.RepeatedCompositeFieldContainer[Figure]
    verdict: str
    same: bool
    note: str
    def __init__(self, entry: _Optional[_Union[AuditEntry, _Mapping]] = ..., figures: _Optional[_Iterable[_Union[Figure, _Mapping]]] = ..., verdict: _Optional[str] = ..., same: bool = ..., note: _Optional[str] = ...) -> None: ...

class CacheStatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CacheStats(_message.Message):
    __slots__ = ("tables", "tiers", "shared", "warming")
    TABLES_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    WARMING_FIELD_NUMBER: _ClassVar[int]
    tables: _containers.RepeatedCompositeFieldContainer[_struct_pb2.Struct]
    tiers: _containers.RepeatedCompositeFieldContainer[_struct_pb2.Struct]
    shared: _struct_pb2.Struct
    warming: CacheWarming
    def __init__(self, tables: _Optional[_Iterable[_Union[_struct_pb2.Struct, _Mapping]]] = ..., tiers: _Optional[_Iterable[_Union[_struct_pb2.Struct, _Mapping]]] = ..., shared: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., warming: _Optional[_Union[CacheWarming, _Mapping]] = ...) -> None: ...

class WarmCacheRequest(_message.Message):
    __slots__ = ("name", "version", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    reason: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class CacheWarming(_message.Message):
    __slots__ = ("name", "running", "total", "written", "seconds", "error", "loaded")
    NAME_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    LOADED_FIELD_NUMBER: _ClassVar[int]
    name: str
    running: bool
    total: int
    written: int
    seconds: float
    error: str
    loaded: _containers.RepeatedCompositeFieldContainer[_struct_pb2.Struct]
    def __init__(self, name: _Optional[str] = ..., running: bool = ..., total: _Optional[int] = ..., written: _Optional[int] = ..., seconds: _Optional[float] = ..., error: _Optional[str] = ..., loaded: _Optional[_Iterable[_Union[_struct_pb2.Struct, _Mapping]]] = ...) -> None: ...

class WorkerStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RefusedVersion(_message.Message):
    __slots__ = ("bundle", "version", "reasons")
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    bundle: str
    version: str
    reasons: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, bundle: _Optional[str] = ..., version: _Optional[str] = ..., reasons: _Optional[_Iterable[str]] = ...) -> None: ...

class WorkerStatus(_message.Message):
    __slots__ = ("running", "age_seconds", "weight", "replay_ratio", "teacher_every", "versions", "refused", "batches", "trained_rows", "held_rows", "loss", "position", "committed", "reports", "teacher", "teacher_kind", "teacher_reason", "unguided_rows", "featureless")
    class VersionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    REPLAY_RATIO_FIELD_NUMBER: _ClassVar[int]
    TEACHER_EVERY_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    TRAINED_ROWS_FIELD_NUMBER: _ClassVar[int]
    HELD_ROWS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    TEACHER_FIELD_NUMBER: _ClassVar[int]
    TEACHER_KIND_FIELD_NUMBER: _ClassVar[int]
    TEACHER_REASON_FIELD_NUMBER: _ClassVar[int]
    UNGUIDED_ROWS_FIELD_NUMBER: _ClassVar[int]
    FEATURELESS_FIELD_NUMBER: _ClassVar[int]
    running: bool
    age_seconds: float
    weight: float
    replay_ratio: float
    teacher_every: int
    versions: _containers.ScalarMap[str, str]
    refused: _containers.RepeatedCompositeFieldContainer[RefusedVersion]
    batches: int
    trained_rows: int
    held_rows: int
    loss: float
    position: int
    committed: int
    reports: _struct_pb2.Struct
    teacher: str
    teacher_kind: str
    teacher_reason: str
    unguided_rows: int
    featureless: int
    def __init__(self, running: bool = ..., age_seconds: _Optional[float] = ..., weight: _Optional[float] = ..., replay_ratio: _Optional[float] = ..., teacher_every: _Optional[int] = ..., versions: _Optional[_Mapping[str, str]] = ..., refused: _Optional[_Iterable[_Union[RefusedVersion, _Mapping]]] = ..., batches: _Optional[int] = ..., trained_rows: _Optional[int] = ..., held_rows: _Optional[int] = ..., loss: _Optional[float] = ..., position: _Optional[int] = ..., committed: _Optional[int] = ..., reports: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., teacher: _Optional[str] = ..., teacher_kind: _Optional[str] = ..., teacher_reason: _Optional[str] = ..., unguided_rows: _Optional[int] = ..., featureless: _Optional[int] = ...) -> None: ...

class ForgetRequest(_message.Message):
    __slots__ = ("routing_key", "prediction_id", "reason")
    ROUTING_KEY_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    routing_key: str
    prediction_id: str
    reason: str
    def __init__(self, routing_key: _Optional[str] = ..., prediction_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Forgotten(_message.Message):
    __slots__ = ("predictions",)
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    predictions: int
    def __init__(self, predictions: _Optional[int] = ...) -> None: ...

class HoldRequest(_message.Message):
    __slots__ = ("routing_key", "prediction_id", "reason")
    ROUTING_KEY_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    routing_key: str
    prediction_id: str
    reason: str
    def __init__(self, routing_key: _Optional[str] = ..., prediction_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class HeldKey(_message.Message):
    __slots__ = ("key", "actor", "reason", "since_ms")
    KEY_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SINCE_MS_FIELD_NUMBER: _ClassVar[int]
    key: str
    actor: str
    reason: str
    since_ms: int
    def __init__(self, key: _Optional[str] = ..., actor: _Optional[str] = ..., reason: _Optional[str] = ..., since_ms: _Optional[int] = ...) -> None: ...

class HoldsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HoldsResponse(_message.Message):
    __slots__ = ("holds",)
    HOLDS_FIELD_NUMBER: _ClassVar[int]
    holds: _containers.RepeatedCompositeFieldContainer[HeldKey]
    def __init__(self, holds: _Optional[_Iterable[_Union[HeldKey, _Mapping]]] = ...) -> None: ...

class ReleaseHoldRequest(_message.Message):
    __slots__ = ("routing_key", "prediction_id", "key", "reason")
    ROUTING_KEY_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    routing_key: str
    prediction_id: str
    key: str
    reason: str
    def __init__(self, routing_key: _Optional[str] = ..., prediction_id: _Optional[str] = ..., key: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ExportRequest(_message.Message):
    __slots__ = ("endpoint", "since_ms", "until_ms", "drop", "rekey", "reason")
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    SINCE_MS_FIELD_NUMBER: _ClassVar[int]
    UNTIL_MS_FIELD_NUMBER: _ClassVar[int]
    DROP_FIELD_NUMBER: _ClassVar[int]
    REKEY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    endpoint: str
    since_ms: int
    until_ms: int
    drop: _containers.RepeatedScalarFieldContainer[str]
    rekey: _containers.RepeatedScalarFieldContainer[str]
    reason: str
    def __init__(self, endpoint: _Optional[str] = ..., since_ms: _Optional[int] = ..., until_ms: _Optional[int] = ..., drop: _Optional[_Iterable[str]] = ..., rekey: _Optional[_Iterable[str]] = ..., reason: _Optional[str] = ...) -> None: ...

class BackupRequest(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

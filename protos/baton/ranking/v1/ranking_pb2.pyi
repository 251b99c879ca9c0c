from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Criticality(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CRITICALITY_UNSPECIFIED: _ClassVar[Criticality]
    SHEDDABLE: _ClassVar[Criticality]
    CRITICAL: _ClassVar[Criticality]

class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATUS_UNSPECIFIED: _ClassVar[Status]
    ACCEPTED: _ClassVar[Status]
    DUPLICATE: _ClassVar[Status]
    EXPIRED: _ClassVar[Status]
    INVALID: _ClassVar[Status]
CRITICALITY_UNSPECIFIED: Criticality
SHEDDABLE: Criticality
CRITICAL: Criticality
STATUS_UNSPECIFIED: Status
ACCEPTED: Status
DUPLICATE: Status
EXPIRED: Status
INVALID: Status

class Column(_message.Message):
    __slots__ = ("field", "ids", "integers", "strings", "numbers", "bags")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    INTEGERS_FIELD_NUMBER: _ClassVar[int]
    STRINGS_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    BAGS_FIELD_NUMBER: _ClassVar[int]
    field: str
    ids: Ids
    integers: Integers
    strings: Strings
    numbers: Numbers
    bags: Bags
    def __init__(self, field: _Optional[str] = ..., ids: _Optional[_Union[Ids, _Mapping]] = ..., integers: _Optional[_Union[Integers, _Mapping]] = ..., strings: _Optional[_Union[Strings, _Mapping]] = ..., numbers: _Optional[_Union[Numbers, _Mapping]] = ..., bags: _Optional[_Union[Bags, _Mapping]] = ...) -> None: ...

class Ids(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, values: _Optional[_Iterable[int]] = ...) -> None: ...

class Integers(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, values: _Optional[_Iterable[int]] = ...) -> None: ...

class Strings(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, values: _Optional[_Iterable[str]] = ...) -> None: ...

class Numbers(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class Bags(_message.Message):
    __slots__ = ("values", "offsets")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    OFFSETS_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[int]
    offsets: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, values: _Optional[_Iterable[int]] = ..., offsets: _Optional[_Iterable[int]] = ...) -> None: ...

class IdMatrix(_message.Message):
    __slots__ = ("fields", "values")
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    fields: _containers.RepeatedScalarFieldContainer[str]
    values: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, fields: _Optional[_Iterable[str]] = ..., values: _Optional[_Iterable[int]] = ...) -> None: ...

class NumberMatrix(_message.Message):
    __slots__ = ("fields", "values")
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    fields: _containers.RepeatedScalarFieldContainer[str]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, fields: _Optional[_Iterable[str]] = ..., values: _Optional[_Iterable[float]] = ...) -> None: ...

class Rows(_message.Message):
    __slots__ = ("columns", "ids", "numbers")
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    columns: _containers.RepeatedCompositeFieldContainer[Column]
    ids: IdMatrix
    numbers: NumberMatrix
    def __init__(self, columns: _Optional[_Iterable[_Union[Column, _Mapping]]] = ..., ids: _Optional[_Union[IdMatrix, _Mapping]] = ..., numbers: _Optional[_Union[NumberMatrix, _Mapping]] = ...) -> None: ...

class RankRequest(_message.Message):
    __slots__ = ("endpoint", "request_id", "routing_key", "context", "candidates", "candidate_ids", "recall_scores", "top_k", "criticality", "arm")
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ROUTING_KEY_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_IDS_FIELD_NUMBER: _ClassVar[int]
    RECALL_SCORES_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    CRITICALITY_FIELD_NUMBER: _ClassVar[int]
    ARM_FIELD_NUMBER: _ClassVar[int]
    endpoint: str
    request_id: str
    routing_key: str
    context: Rows
    candidates: Rows
    candidate_ids: _containers.RepeatedScalarFieldContainer[str]
    recall_scores: _containers.RepeatedScalarFieldContainer[float]
    top_k: int
    criticality: Criticality
    arm: str
    def __init__(self, endpoint: _Optional[str] = ..., request_id: _Optional[str] = ..., routing_key: _Optional[str] = ..., context: _Optional[_Union[Rows, _Mapping]] = ..., candidates: _Optional[_Union[Rows, _Mapping]] = ..., candidate_ids: _Optional[_Iterable[str]] = ..., recall_scores: _Optional[_Iterable[float]] = ..., top_k: _Optional[int] = ..., criticality: _Optional[_Union[Criticality, str]] = ..., arm: _Optional[str] = ...) -> None: ...

class RankResponse(_message.Message):
    __slots__ = ("prediction_id", "scores", "ranking", "arm", "version", "degraded", "request_id", "bundle")
    PREDICTION_ID_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    RANKING_FIELD_NUMBER: _ClassVar[int]
    ARM_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    prediction_id: str
    scores: _containers.RepeatedScalarFieldContainer[float]
    ranking: Ranking
    arm: str
    version: str
    degraded: _containers.RepeatedScalarFieldContainer[str]
    request_id: str
    bundle: str
    def __init__(self, prediction_id: _Optional[str] = ..., scores: _Optional[_Iterable[float]] = ..., ranking: _Optional[_Union[Ranking, _Mapping]] = ..., arm: _Optional[str] = ..., version: _Optional[str] = ..., degraded: _Optional[_Iterable[str]] = ..., request_id: _Optional[str] = ..., bundle: _Optional[str] = ...) -> None: ...

class Ranking(_message.Message):
    __slots__ = ("indices", "scores", "candidate_ids")
    INDICES_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_IDS_FIELD_NUMBER: _ClassVar[int]
    indices: _containers.RepeatedScalarFieldContainer[int]
    scores: _containers.RepeatedScalarFieldContainer[float]
    candidate_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, indices: _Optional[_Iterable[int]] = ..., scores: _Optional[_Iterable[float]] = ..., candidate_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class FeedbackRequest(_message.Message):
    __slots__ = ("predictions", "request_id")
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    predictions: _containers.RepeatedCompositeFieldContainer[PredictionFeedback]
    request_id: str
    def __init__(self, predictions: _Optional[_Iterable[_Union[PredictionFeedback, _Mapping]]] = ..., request_id: _Optional[str] = ...) -> None: ...

class PredictionFeedback(_message.Message):
    __slots__ = ("prediction_id", "exposed", "outcomes", "exposed_all", "request_id", "endpoint")
    PREDICTION_ID_FIELD_NUMBER: _ClassVar[int]
    EXPOSED_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    EXPOSED_ALL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    prediction_id: str
    exposed: _containers.RepeatedCompositeFieldContainer[Exposure]
    outcomes: _containers.RepeatedCompositeFieldContainer[Outcome]
    exposed_all: bool
    request_id: str
    endpoint: str
    def __init__(self, prediction_id: _Optional[str] = ..., exposed: _Optional[_Iterable[_Union[Exposure, _Mapping]]] = ..., outcomes: _Optional[_Iterable[_Union[Outcome, _Mapping]]] = ..., exposed_all: bool = ..., request_id: _Optional[str] = ..., endpoint: _Optional[str] = ...) -> None: ...

class Exposure(_message.Message):
    __slots__ = ("index", "candidate_id", "position", "time_ms")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_ID_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    index: int
    candidate_id: str
    position: int
    time_ms: int
    def __init__(self, index: _Optional[int] = ..., candidate_id: _Optional[str] = ..., position: _Optional[int] = ..., time_ms: _Optional[int] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("index", "candidate_id", "label", "time_ms", "final")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_ID_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    index: int
    candidate_id: str
    label: float
    time_ms: int
    final: bool
    def __init__(self, index: _Optional[int] = ..., candidate_id: _Optional[str] = ..., label: _Optional[float] = ..., time_ms: _Optional[int] = ..., final: bool = ...) -> None: ...

class FeedbackResponse(_message.Message):
    __slots__ = ("results", "request_id")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[PredictionResult]
    request_id: str
    def __init__(self, results: _Optional[_Iterable[_Union[PredictionResult, _Mapping]]] = ..., request_id: _Optional[str] = ...) -> None: ...

class PredictionResult(_message.Message):
    __slots__ = ("prediction_id", "exposed", "outcomes", "reason", "request_id")
    PREDICTION_ID_FIELD_NUMBER: _ClassVar[int]
    EXPOSED_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    prediction_id: str
    exposed: _containers.RepeatedScalarFieldContainer[Status]
    outcomes: _containers.RepeatedScalarFieldContainer[Status]
    reason: str
    request_id: str
    def __init__(self, prediction_id: _Optional[str] = ..., exposed: _Optional[_Iterable[_Union[Status, str]]] = ..., outcomes: _Optional[_Iterable[_Union[Status, str]]] = ..., reason: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class ObserveRequest(_message.Message):
    __slots__ = ("endpoint", "predictions", "request_id")
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    endpoint: str
    predictions: _containers.RepeatedCompositeFieldContainer[ObservedPrediction]
    request_id: str
    def __init__(self, endpoint: _Optional[str] = ..., predictions: _Optional[_Iterable[_Union[ObservedPrediction, _Mapping]]] = ..., request_id: _Optional[str] = ...) -> None: ...

class ObservedPrediction(_message.Message):
    __slots__ = ("request_id", "time_ms", "routing_key", "answered", "other", "candidate_ids", "inclusion_probability", "context", "candidates", "overridden", "exposed_all")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    ROUTING_KEY_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    OTHER_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_IDS_FIELD_NUMBER: _ClassVar[int]
    INCLUSION_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    OVERRIDDEN_FIELD_NUMBER: _ClassVar[int]
    EXPOSED_ALL_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    time_ms: int
    routing_key: str
    answered: ArmScores
    other: ArmScores
    candidate_ids: _containers.RepeatedScalarFieldContainer[str]
    inclusion_probability: float
    context: Rows
    candidates: Rows
    overridden: bool
    exposed_all: bool
    def __init__(self, request_id: _Optional[str] = ..., time_ms: _Optional[int] = ..., routing_key: _Optional[str] = ..., answered: _Optional[_Union[ArmScores, _Mapping]] = ..., other: _Optional[_Union[ArmScores, _Mapping]] = ..., candidate_ids: _Optional[_Iterable[str]] = ..., inclusion_probability: _Optional[float] = ..., context: _Optional[_Union[Rows, _Mapping]] = ..., candidates: _Optional[_Union[Rows, _Mapping]] = ..., overridden: bool = ..., exposed_all: bool = ...) -> None: ...

class ArmScores(_message.Message):
    __slots__ = ("arm", "bundle", "version", "scores")
    ARM_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    arm: str
    bundle: str
    version: str
    scores: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, arm: _Optional[str] = ..., bundle: _Optional[str] = ..., version: _Optional[str] = ..., scores: _Optional[_Iterable[float]] = ...) -> None: ...

class ObserveResponse(_message.Message):
    __slots__ = ("results", "request_id")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[ObservedResult]
    request_id: str
    def __init__(self, results: _Optional[_Iterable[_Union[ObservedResult, _Mapping]]] = ..., request_id: _Optional[str] = ...) -> None: ...

class ObservedResult(_message.Message):
    __slots__ = ("request_id", "prediction_id", "status", "reason")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    prediction_id: str
    status: Status
    reason: str
    def __init__(self, request_id: _Optional[str] = ..., prediction_id: _Optional[str] = ..., status: _Optional[_Union[Status, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class AssignRequest(_message.Message):
    __slots__ = ("endpoint", "routing_keys")
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    ROUTING_KEYS_FIELD_NUMBER: _ClassVar[int]
    endpoint: str
    routing_keys: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, endpoint: _Optional[str] = ..., routing_keys: _Optional[_Iterable[str]] = ...) -> None: ...

class AssignResponse(_message.Message):
    __slots__ = ("arms", "resource_version", "weight", "salt", "holdout", "killed")
    ARMS_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_VERSION_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    HOLDOUT_FIELD_NUMBER: _ClassVar[int]
    KILLED_FIELD_NUMBER: _ClassVar[int]
    arms: _containers.RepeatedScalarFieldContainer[str]
    resource_version: int
    weight: float
    salt: str
    holdout: float
    killed: bool
    def __init__(self, arms: _Optional[_Iterable[str]] = ..., resource_version: _Optional[int] = ..., weight: _Optional[float] = ..., salt: _Optional[str] = ..., holdout: _Optional[float] = ..., killed: bool = ...) -> None: ...

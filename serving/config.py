"""baton.yaml: everything a person sets, in one file. Each setting says here what it does.

A relative path is relative to the file. Nothing here is read from a bundle or a request.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pipeline.batching import BatchPolicy, QueuePolicy
from pipeline.errors import InvalidInput
from pipeline.row_format import RowFormat

__all__ = [
    "ArmConfig",
    "Config",
    "EndpointConfig",
    "RedisAccess",
    "RedisConfig",
    "SampleConfig",
    "Seconds",
    "TelemetryConfig",
    "TrafficConfig",
    "WorkerConfig",
    "parse_duration",
]

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(value: Any) -> float:
    """Seconds of `30m`, `0.5s`, `250ms`, `24h` or a plain number of seconds.

    >>> parse_duration("30m"), parse_duration(2)
    (1800.0, 2.0)
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*", value) if isinstance(value, str) else None
    if not match:
        raise ValueError(f"{value!r} is not a duration; write for example 250ms, 20s, 30m or 24h")
    return float(match[1]) * _UNITS[match[2]]


Seconds = Annotated[float, BeforeValidator(parse_duration), Field(ge=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ListenConfig(_Section):
    host: str = "127.0.0.1"
    """Address that all servers bind. Off loopback is refused until tokens can be configured."""
    grpc_port: int = Field(8001, ge=0, le=65535)
    """Data plane: Open Inference, ranking, health."""
    http_port: int = Field(8000, ge=0, le=65535)
    """REST admin, /metrics, /healthz, /readyz."""
    max_message_bytes: int = Field(16 << 20, ge=1 << 16, le=1 << 30)
    """Largest request or answer; a larger request is refused before it is read."""
    max_candidates: int = Field(10_000, ge=1)
    """Most rows in one request."""
    max_connection_age: Seconds = 0.0
    """After which a client is asked to connect anew, so that connections spread over lanes and hosts that came later; a
    tenth more or less, so that not all do at once. 0, the default, is never: right on one machine, where lanes come and
    go together. Behind a balancer of connections set some minutes. Calls under way are finished."""
    max_connection_age_grace: Seconds = 30.0
    """How long calls under way may go on after that; streams, too, end then and are opened anew by their clients."""

    def address(self, port: int) -> str:
        """host:port, an IPv6 address in brackets."""
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"

    @model_validator(mode="after")
    def _loopback(self) -> ListenConfig:
        if self.host != "localhost" and not ipaddress.ip_address(self.host).is_loopback:
            raise ValueError(
                f"host {self.host} is not loopback: without configured tokens nothing is served off this machine; "
                "use 127.0.0.1 and a proxy that authenticates"
            )
        return self


class QueueConfig(_Section):
    """What a priority level has of its own; unsaid settings are those of the engine."""

    max_queue_size: int | None = Field(None, ge=1)
    timeout_action: Literal["REJECT", "DELAY"] | None = None
    default_timeout_microseconds: int | None = Field(None, ge=0)
    allow_timeout_override: bool | None = None


def _lanes(cores: int) -> int:
    return min(cores, max(2, cores - 1))


class EngineConfig(_Section):
    lanes: int = Field(default_factory=lambda: _lanes(os.cpu_count() or 1), ge=1, le=256)
    """Processes that answer, sharing one port. By default one a core, and from three cores on one core is left for the
    rest; on two cores a second lane answers more than half as much again, since the rest steps back for lanes anyway.
    `baton bench lanes` tells what split into lanes, `workers` and `network_threads` answers most on this machine."""
    workers: int = Field(1, ge=1, le=64)
    """Threads per lane that run the fused stages of a request."""
    network_threads: int = Field(1, ge=1, le=64)
    """Threads inside one ONNX Runtime session."""
    max_batch_size: int = Field(512, ge=1)
    """Rows of one batch; requests of one version that wait go through the network together. A larger request goes alone."""
    preferred_batch_size: tuple[int, ...] = ()
    """Rows; a batch ends at the largest of these that the waiting requests reach."""
    max_queue_delay_microseconds: int = Field(0, ge=0)
    """How long a free worker may hold the oldest request back for company, while all others are busy."""
    max_queue_size: int = Field(512, ge=1)
    """Requests that may wait per lane; one more is refused with RESOURCE_EXHAUSTED or takes a less important one's place."""
    timeout_action: Literal["REJECT", "DELAY"] = "REJECT"
    """What becomes of a request that waited for its queue timeout: RESOURCE_EXHAUSTED, or to go behind the others."""
    default_timeout_microseconds: int = Field(0, ge=0)
    """Queue timeout; 0: none. A request's deadline holds in any case."""
    allow_timeout_override: bool = False
    """Whether a request may shorten its queue timeout by the parameter `timeout`, which is a deadline otherwise."""
    priority_levels: int = Field(0, ge=0, le=64)
    """Levels of importance, 1 the highest; 0: all requests are alike."""
    default_priority_level: int = Field(0, ge=0)
    """Level of requests that name none."""
    priority_queue_policy: dict[int, QueueConfig] = {}
    """Settings of single levels, over those above; `max_queue_size` above bounds all levels together."""
    default_deadline: Seconds = 10.0
    """Deadline of a request that brings none, and longest one of a message in a stream."""
    memory_reserve_bytes: int = Field(256 << 20, ge=0)
    """What must stay free on the machine (or in its container) once a version is loaded; one that does not fit is not
    loaded, and tried again later."""
    shadow_queue: int = Field(2048, ge=1)
    """Predictions that may wait for the shadow lane; beyond it the oldest are dropped and counted."""
    shadow_nice: int = Field(10, ge=0, le=19)
    """How far the shadow lane steps back for the primary lanes."""

    @model_validator(mode="after")
    def _valid_policy(self) -> EngineConfig:
        try:
            self.policy()
        except InvalidInput as error:
            raise ValueError(str(error)) from None
        return self

    def policy(self) -> BatchPolicy:
        """The settings of queue and batches as the engine takes them."""
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


class StageConfig(_Section):
    model_config = ConfigDict(populate_by_name=True)

    class_: str = Field(alias="class", pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """`package.module:Class`, importable where Baton runs: installed, or on PYTHONPATH."""
    args: dict[str, Any] = {}
    """Named arguments of the class."""


class ArmConfig(_Section):
    bundle: str
    """Bundle name in the repository."""
    version: str = ""
    """Decimal version; empty: the newest that may serve."""


class EndpointConfig(_Section):
    stable: ArmConfig
    candidate: ArmConfig | None = None
    salt: str | None = None
    """Of the assignment of keys to arms; the endpoint's name unless said. Changing it deals all keys anew."""
    overrides: bool = False
    """Whether a caller may choose the arm with the parameter `arm`."""


class RedisAccess(_Section):
    """How to get into a Redis."""

    url: str = Field("", pattern=r"^((rediss?|unix)://[^@]+)?$")
    """redis://HOST:PORT/DB, rediss:// for TLS or unix:///PATH; without user and password."""
    username: str = ""
    """User of an access list; empty: the default user."""
    password_file: Path | None = None
    """File whose first line is the password."""
    password_env: str = ""
    """Environment variable that holds the password, where there is no file."""
    tls_ca: Path | None = None
    """Certificates to trust under rediss://; the machine's unless said."""

    @model_validator(mode="after")
    def _one_password(self) -> RedisAccess:
        if self.password_file is not None and self.password_env:
            raise ValueError("the password is in password_file or in password_env, not in both")
        return self

    def below(self, base: Path) -> Self:
        """The same with relative paths read from `base`."""
        named = {key: getattr(self, key) for key in ("password_file", "tls_ca")}
        return self.model_copy(update={key: base / path for key, path in named.items() if path is not None})


class SampleConfig(_Section):
    rate: float = Field(1.0, ge=0, le=1)
    """Share of answers that are recorded, and so can be labelled, learned from and judged by."""
    by: Literal["request", "key"] = "request"
    """Whether each request is drawn by itself, or all requests of a routing key together; without a key by itself."""


class TrafficConfig(RedisAccess):
    """Where predictions and labels are kept: in `home`, or in the Redis of `url`, a server of the log's own that evicts
    nothing and keeps an append-only file."""

    sample: SampleConfig = SampleConfig()
    """What is recorded of the answers."""
    attribution_window: Seconds = 1800.0
    """How long after its exposure a row waits for an outcome before it counts as a 0."""
    late_limit: Seconds = 86400.0
    """Labels for predictions older than this are answered `expired`."""
    retention: Seconds = 7 * 86400.0
    """How long predictions and labels are kept, unless the worker still needs them."""
    retention_bytes: int = Field(0, ge=0)
    """What the log may take; beyond it the oldest predictions go, unless the worker still needs them. 0: no limit."""
    buffer: int = Field(10_000, ge=1)
    """Predictions that may wait to be written per lane; beyond it they are dropped and counted."""
    commit_interval: Seconds = 0.05
    """Longest time that a prediction or a label waits for its commit."""
    record_direct: bool = False
    """Whether answers of models called by their own name are recorded. Nothing learns from them or judges by them."""


class TelemetryConfig(_Section):
    otlp_endpoint: str = Field("", pattern=r"^(https?://.+)?$")
    """Where OpenTelemetry spans go by OTLP/gRPC, for example http://127.0.0.1:4317; empty: none are made. Needs the
    extra `otel`."""
    sample: float = Field(0.01, ge=0, le=1)
    """Share of requests that get spans; a request with a `traceparent` follows its caller's choice."""


class WorkerConfig(_Section):
    endpoint: str
    """Endpoint whose labelled traffic the worker learns from; its arms are the teacher (stable) and student (candidate)."""
    batch_rows: int = Field(4096, ge=1)
    """Rows of one student step."""
    teacher_every: int = Field(10, ge=1, le=1000)
    """K: the teacher takes one step on the mean gradient of K batches."""
    weight: float = Field(0.7, ge=0, le=0.9)
    """a: share of the teacher in the student's loss, before adaptation."""
    replay_ratio: float = Field(0.1, ge=0, le=0.3)
    """r: rows from the retained window per row of the stream, before adaptation."""
    retained: Path | None = None
    """Rows of the retained window to replay, as `baton transfer` wrote them; none: no replay."""
    holdout: float = Field(0.05, gt=0, lt=0.5)
    """Share of requests never trained on, for the gate and for calibration."""
    publish_interval: Seconds = 60.0
    """Shortest time between two published versions of the student."""
    publish_batches: int = Field(20, ge=1)
    """Fewest student steps between two published versions."""
    teacher_publish_interval: Seconds = 600.0
    """Shortest time between two published versions of the teacher."""
    gate_logloss_margin: float = Field(0.002, ge=0)
    """How much worse in LogLoss than the serving version a new one may be on rows that none was trained on."""
    gate_auc_margin: float = Field(0.003, ge=0)
    """The same for AUC."""
    gate_bias: float = Field(0.05, gt=0)
    """Largest |bias| after calibration."""
    gate_rows: int = Field(20_000, ge=100)
    """How many recent held-out rows the gate and the calibration look at, at most."""
    compact_after: int = Field(16, ge=1)
    """Deltas after which a version is written as a new base."""
    rows: RowFormat | None = None
    """How versions store their rows: float32, float16 or int8 (docs/embeddings.md); unless said as the bundle that the
    worker goes on from does. Training goes on in float32."""
    threads: int = Field(1, ge=1)
    """Threads of the training."""
    nice: int = Field(15, ge=0, le=19)
    """How far the worker steps back for serving."""
    seed: int = 0


class RedisConfig(RedisAccess):
    url: str = Field(pattern=r"^(rediss?|unix)://[^@]+$")
    """redis://HOST:PORT/DB, rediss:// for TLS or unix:///PATH; without user and password."""
    rows: RowFormat = "float32"
    """How rows are stored there; all installations that share a Redis and a bundle should say the same."""
    connections: int = Field(0, ge=0, le=256)
    """Lookups at a time per lane; 0: one per worker thread, and one."""
    breaker_failures: int = Field(3, ge=1)
    """Lookups that fail or are late in a row before the lane leaves Redis alone."""
    breaker_pause: Seconds = 0.1
    """Pause before the first probe whether it is back; doubles, with jitter, up to `breaker_longest_pause`."""
    breaker_longest_pause: Seconds = 2.0
    max_staleness: Seconds = 3600.0
    """By how much rows may be older than the version that asks; rows beyond it are not used."""
    keep_unused: Seconds = 3600.0
    """How long a base generation stays in Redis after every installation has stopped serving it."""


class DeviceConfig(_Section):
    backend: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the cache lies: `cuda` in the memory of a card (docs/gpu.md), else in that of the lane."""
    capacity_rows: int | None = Field(None, ge=1)
    """Rows that a lane caches per base generation, of all widths together; unless said, what `capacity_bytes` holds."""
    capacity_bytes: int = Field(256 << 20, ge=1 << 16)
    """Bytes that the cache of one base generation takes per lane; while lanes swap to a new base there are two."""
    rows: RowFormat = "float32"
    """How rows are cached; below float32 a score may depend on whether its rows were cached."""
    max_age: Seconds = Field(60.0, gt=0)
    """Age at which a cached row is looked up again, where it may have come from Redis; rows of segments never age."""
    save_interval: Seconds = Field(60.0, gt=0)
    """How often the hot keys are written that the next start begins with."""


class EmbeddingConfig(_Section):
    tiers: tuple[Literal["device", "segment", "redis"], ...] = ("segment",)
    """Where rows are looked up, in this order; what no tier holds gets the default row of its table."""
    budget: Seconds = Field(0.005, gt=0)
    """How long one lookup may wait for tiers that are not local."""
    device: DeviceConfig = DeviceConfig()
    """The cache in a lane's memory."""
    redis: RedisConfig | None = None
    """A Redis that shares rows between machines; the control process keeps it up to date."""

    @model_validator(mode="after")
    def _tiers(self) -> EmbeddingConfig:
        if not self.tiers or len(set(self.tiers)) < len(self.tiers):
            raise ValueError(f"tiers {list(self.tiers)} must name at least one tier, and each once")
        if self.tiers[-1] == "device":
            raise ValueError(f"tiers {list(self.tiers)}: the device is a cache; put it above segment or redis")
        if "redis" in self.tiers and self.redis is None:
            raise ValueError("tiers name redis; say where it is in embedding.redis.url")
        return self


class Config(_Section):
    """The whole file."""

    home: Path = Path(".baton")
    """State of this installation: traffic log, rollouts, audit, embedding segments, secret."""
    bundles: Path | None = None
    """Repository of bundles; `<home>/bundles` unless said."""
    bundles_keep: int = Field(20, ge=1)
    """Newest versions of each bundle that are kept beside those in use; older ones are removed."""
    listen: ListenConfig = ListenConfig()
    engine: EngineConfig = Field(default_factory=EngineConfig)
    stages: tuple[StageConfig, ...] = ()
    """Stages of your own, put into every lane's plan where the values that they consume and produce say; see
    docs/pipeline.md."""
    endpoints: dict[str, EndpointConfig] = {}
    """Endpoints that are made at start when the installation does not know them yet."""
    traffic: TrafficConfig = TrafficConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    worker: WorkerConfig | None = None
    embedding: EmbeddingConfig = EmbeddingConfig()
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.worker is not None and self.endpoints and self.worker.endpoint not in self.endpoints:
            raise ValueError(
                f"worker.endpoint {self.worker.endpoint!r} is not one of the endpoints {sorted(self.endpoints)}"
            )
        return self

    @classmethod
    def load(cls, path: Path) -> Config:
        """Read a file.

        Raises:
            InvalidInput: naming the setting at fault.
        """
        try:
            raw = yaml.safe_load(path.read_text()) or {}
        except OSError as error:
            raise InvalidInput(f"config {path} cannot be read: {error.strerror}", "config") from None
        except yaml.YAMLError as error:
            raise InvalidInput(f"config {path} is not YAML: {error}", "config") from None
        if not isinstance(raw, dict):
            raise InvalidInput(f"config {path} must be a mapping of settings", "config")
        try:
            config = cls.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "config"
            raise InvalidInput(f"config {path}: {where}: {first['msg']}", where) from None
        base = path.resolve().parent
        worker = config.worker
        if worker is not None and worker.retained is not None:
            worker = worker.model_copy(update={"retained": base / worker.retained})
        embedding = config.embedding
        if embedding.redis is not None:
            embedding = embedding.model_copy(update={"redis": embedding.redis.below(base)})
        return config.model_copy(
            update={
                "embedding": embedding,
                "traffic": config.traffic.below(base),
                "home": base / config.home,
                "bundles": base / config.bundles if config.bundles else None,
                "worker": worker,
            }
        )

    # One place for every path under home, so that all processes agree.

    @property
    def repository(self) -> Path:
        return self.bundles or self.home / "bundles"

    @property
    def traffic_db(self) -> Path:
        return self.home / "traffic.db"

    @property
    def control_db(self) -> Path:
        return self.home / "control.db"

    @property
    def segments(self) -> Path:
        return self.home / "segments"

    @property
    def hot_keys(self) -> Path:
        """Keys that device caches begin with."""
        return self.home / "hotkeys"

    @property
    def secret(self) -> Path:
        return self.home / "secret.key"

    @property
    def shadow_socket(self) -> Path:
        return self.home / "run" / "shadow.sock"

    @property
    def status(self) -> Path:
        """Folder where each process writes what it is doing, as JSON, for the control process to read."""
        return self.home / "run" / "status"

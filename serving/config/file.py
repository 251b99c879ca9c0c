"""The whole baton.yaml, and all paths derived from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from pipeline.documents import parse_yaml
from pipeline.errors import InvalidInput
from pipeline.faults import faults_of, fields_of, refuse, told
from serving.config.embedding import EmbeddingConfig
from serving.config.endpoint import EndpointConfig
from serving.config.engine import EngineConfig, StageConfig
from serving.config.listen import ListenConfig
from serving.config.notify import NotifyConfig
from serving.config.ray import RayConfig
from serving.config.remote import RemoteConfig
from serving.config.section import Seconds, Section
from serving.config.state import StateConfig
from serving.config.telemetry import TelemetryConfig
from serving.config.traffic import TrafficConfig
from serving.config.worker import WorkerConfig

__all__ = ["Config"]

SHORTEST_HANG_S = 5.0


class Config(Section):
    """Configuration of an installation."""

    home: Path = Path(".baton")
    """Folder with the state of this installation: traffic log, rollouts, audit, embedding segments, secret."""
    bundles: str = ""
    """Repository of bundles: a folder, `<home>/bundles` by default; or a URL that fsspec knows (s3://bucket/bundles), from
    which each machine fetches the versions that it serves into `<home>/bundles`, and to which the worker publishes."""
    bundles_options: dict[str, Any] = Field(default_factory=dict)
    """Settings of the URL's file system, such as `endpoint_url` of s3; keys and secrets come from its environment."""
    bundles_keep: int = Field(20, ge=1)
    """Newest versions of each bundle that are kept in addition to those in use; older ones are removed."""
    hang_limit: Seconds = 20.0
    """Time without a sign of life after which a process that runs counts as hung: its supervisor kills it and starts it again.
    0: never. What may take longer by its nature (a pass of the rollout loop, learning, publishing) has a longer limit of its
    own, unless a signal has stopped the process."""
    listen: ListenConfig = ListenConfig()
    engine: EngineConfig = Field(default_factory=EngineConfig)
    stages: tuple[StageConfig, ...] = ()
    """Your own stages, added to every lane's plan by the values that they consume and produce; see docs/pipeline.md."""
    endpoints: dict[str, EndpointConfig] = Field(default_factory=dict)
    """Endpoints that are created at start when the installation does not know them yet. Later the state counts, which verbs
    and rollouts change; start and `baton doctor` name what differs."""
    traffic: TrafficConfig = TrafficConfig()
    state: StateConfig = StateConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    worker: WorkerConfig | None = None
    ray: RayConfig = RayConfig()
    """Settings of `baton serve --ray`; without effect otherwise."""
    notify: tuple[NotifyConfig, ...] = Field((), max_length=8)
    """Receivers of notifications about rollouts; see docs/notify.md."""
    embedding: EmbeddingConfig = EmbeddingConfig()
    remote: RemoteConfig = RemoteConfig()
    """Servers that answer for remote arms; see docs/remote.md."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    """Format of the entries that every process writes to stderr: text for people, or a JSON object per line."""

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        faults: list[str] = []
        if 0 < self.hang_limit < SHORTEST_HANG_S:
            faults.append(
                f"hang_limit {self.hang_limit:g} s is below {SHORTEST_HANG_S:g} s: a busy machine would look like a hung process; "
                "raise it, or set 0 for no limit"
            )
        if self.worker is not None and self.endpoints and self.worker.endpoint not in self.endpoints:
            faults.append(
                f"worker.endpoint {self.worker.endpoint!r} is not one of the endpoints {sorted(self.endpoints)}"
            )
        if self.worker is not None and not self.traffic.sample.rate:
            faults.append("worker has nothing to learn from: traffic.sample.rate is 0; raise it or remove worker")
        embedding = self.embedding
        if "redis" in embedding.tiers and embedding.budget >= self.engine.default_deadline:
            faults.append(
                f"embedding.budget {embedding.budget:g} s is not below engine.default_deadline "
                f"{self.engine.default_deadline:g} s: a slow Redis would take the whole time of a request"
            )
        for name, other in (("traffic.url", self.traffic.url), ("state.url", self.state.url)):
            if embedding.redis is not None and other == embedding.redis.url:
                faults.append(
                    f"embedding.redis.url and {name} are both {other}: a cache evicts what that must keep; name a Redis or a "
                    "database number of its own"
                )
        refuse(faults)
        return self

    @classmethod
    def load(cls, path: Path) -> Config:
        """Read a file.

        Raises:
            InvalidInput: a setting is wrong; the error names it.
        """
        try:
            raw = parse_yaml(path.read_text()) or {}
        except OSError as error:
            raise InvalidInput(f"config {path} cannot be read: {error.strerror}", "config") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InvalidInput(f"config {path} is not YAML: {error}", "config") from None
        if not isinstance(raw, dict):
            raise InvalidInput(f"config {path} must be a mapping of settings", "config")
        try:
            config = cls.model_validate(raw)
        except ValidationError as error:
            faults = faults_of(error, "config")
            raise InvalidInput(told(f"config {path}", faults), fields_of(error, "config")) from None
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
                "listen": config.listen.below(base),
                "remote": config.remote.below(base),
                "state": config.state.below(base),
                "traffic": config.traffic.below(base),
                "home": base / config.home,
                "bundles": str(base / config.bundles) if config.bundles and not config.bundles_url else config.bundles,
                "worker": worker,
            }
        )

    # All paths under home are defined here, so that all processes use the same.

    @property
    def repository(self) -> Path:
        """Folder of bundles on this machine; opened by `serving.wiring.bundles`."""
        return Path(self.bundles) if self.bundles and not self.bundles_url else self.home / "bundles"

    @property
    def bundles_url(self) -> str:
        """URL that bundles are fetched from; empty: none."""
        return self.bundles if "://" in self.bundles else ""

    @property
    def traffic_folder(self) -> Path:
        return self.home / "traffic"

    @property
    def old_traffic_db(self) -> Path:
        """Traffic log of version 0.1, which the first process of this version brings over."""
        return self.home / "traffic.db"

    @property
    def control_db(self) -> Path:
        return self.home / "control.db"

    @property
    def state_identity(self) -> Path:
        """Identity of the state that this home belongs to."""
        return self.home / "state" / "identity"

    @property
    def access_memory(self) -> Path:
        """That access to this home was limited."""
        return self.home / "state" / "access"

    @property
    def state_snapshot(self) -> Path:
        """What this home saw of the state last."""
        return self.home / "state" / "snapshot.json"

    @property
    def segments(self) -> Path:
        return self.home / "segments"

    @property
    def hot_keys(self) -> Path:
        """Hot keys that device caches are filled with at start."""
        return self.home / "hotkeys"

    @property
    def loads(self) -> Path:
        """Folder of load markers: a file for every bundle that is to be loaded by name."""
        return self.home / "loads"

    @property
    def secret(self) -> Path:
        return self.home / "secret.key"

    @property
    def tokens(self) -> Path:
        """Bearer tokens, see `baton token`."""
        return self.home / "tokens.json"

    @property
    def sessions_db(self) -> Path:
        """Browser sessions of one machine; no part of a backup."""
        return self.home / "run" / "sessions.db"

    @property
    def shadow_socket(self) -> Path:
        return self.home / "run" / "shadow.sock"

    @property
    def status(self) -> Path:
        """Folder of the processes' status files, JSON."""
        return self.home / "run" / "status"

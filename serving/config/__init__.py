"""Configuration of an installation, baton.yaml. Each setting is documented where it is declared.

A relative path is relative to the file. No setting comes from a bundle or a request. This package has a file per section.
"""

from serving.config.embedding import DeviceConfig, EmbeddingConfig, RedisConfig
from serving.config.endpoint import ArmConfig, EndpointConfig
from serving.config.engine import EngineConfig, StageConfig
from serving.config.file import Config
from serving.config.listen import LimitsConfig, ListenConfig, TlsConfig
from serving.config.ray import RayConfig
from serving.config.section import RedisAccess, Seconds, parse_duration
from serving.config.state import StateConfig
from serving.config.telemetry import TelemetryConfig
from serving.config.traffic import SampleConfig, TrafficConfig
from serving.config.worker import WorkerConfig

__all__ = [
    "ArmConfig",
    "Config",
    "DeviceConfig",
    "EmbeddingConfig",
    "EndpointConfig",
    "EngineConfig",
    "LimitsConfig",
    "ListenConfig",
    "RayConfig",
    "RedisAccess",
    "RedisConfig",
    "SampleConfig",
    "Seconds",
    "StageConfig",
    "StateConfig",
    "TelemetryConfig",
    "TlsConfig",
    "TrafficConfig",
    "WorkerConfig",
    "parse_duration",
]

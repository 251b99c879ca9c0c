"""deploy/compose.yaml and the Dockerfile: strictly of the forms used, and fitting the configuration and files beside them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.config import Config

FOLDER = Path(__file__).parents[2] / "deploy"
Port = Annotated[str, Field(pattern=r"^127\.0\.0\.1:\d+:\d+$")]
Duration = Annotated[str, Field(pattern=r"^\d+(ms|s|m|h)$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Healthcheck(Strict):
    test: list[str] = []
    interval: Duration | None = None
    timeout: Duration | None = None
    retries: int | None = None
    disable: bool = False


class Condition(Strict):
    condition: Literal["service_started", "service_healthy", "service_completed_successfully"]


class Limits(Strict):
    cpus: str
    memory: Annotated[str, Field(pattern=r"^\d+[kmg]$")]


class Resources(Strict):
    limits: Limits


class Deploy(Strict):
    resources: Resources


class Build(Strict):
    context: str
    dockerfile: str


class Service(Strict):
    image: str
    build: Build | None = None
    command: list[str] = []
    user: Annotated[str, Field(pattern=r"^[1-9]\d*:\d+$")]
    read_only: Literal[True]
    cap_drop: list[Literal["ALL"]] = Field(min_length=1)
    security_opt: list[Literal["no-new-privileges:true"]] = Field(min_length=1)
    environment: dict[str, str] = {}
    secrets: list[str] = []
    tmpfs: list[str] = []
    volumes: list[str] = []
    restart: Literal["unless-stopped"]
    stop_grace_period: Duration | None = None
    network_mode: str | None = None
    depends_on: dict[str, Condition] = {}
    healthcheck: Healthcheck | None = None
    ports: list[Port] = []
    deploy: Deploy


class Secret(Strict):
    file: Annotated[str, Field(pattern=r"^secrets/[a-z.-]+$")]


class Compose(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    name: str
    services: dict[str, Service]
    secrets: dict[str, Secret]
    volumes: dict[str, dict[str, Any]]


RAW = yaml.safe_load((FOLDER / "compose.yaml").read_text())
COMPOSE = Compose.model_validate(RAW)
CONFIG = Config.load(FOLDER / "baton.yaml")


def test_services_name_only_what_is_there() -> None:
    assert all(key.startswith("x-") for key in COMPOSE.model_extra or {})
    for name, service in COMPOSE.services.items():
        assert set(service.depends_on) <= COMPOSE.services.keys() - {name}
        for need, condition in service.depends_on.items():
            if condition.condition == "service_healthy":
                check = COMPOSE.services[need].healthcheck
                assert check is not None
                assert check.test
        if service.network_mode:
            assert service.network_mode.removeprefix("service:") in COMPOSE.services
            assert not service.ports
        for volume in service.volumes:
            source = volume.split(":")[0]
            assert (FOLDER / source).exists() if source.startswith(".") else source in COMPOSE.volumes
        if service.build is not None:
            assert ((FOLDER / service.build.context).resolve() / service.build.dockerfile).is_file()


def test_a_setting_that_compose_does_not_have_is_seen() -> None:
    with pytest.raises(ValidationError, match="read-only"):
        Service.model_validate({**RAW["services"]["redis-cache"], "read-only": True})


def test_containers_run_what_the_command_line_knows(tmp_path: Path) -> None:
    lanes = set()
    for service in COMPOSE.services.values():
        if not service.image.startswith("baton:"):
            continue
        assert service.command[-2:] == ["--config", "/etc/baton/baton.yaml"]
        if "--index" in service.command:
            lanes.add(int(service.command[service.command.index("--index") + 1]))
    assert lanes == set(range(CONFIG.engine.lanes))
    words = {service.command[0] for service in COMPOSE.services.values() if service.image.startswith("baton:")}
    for word in words:
        done = subprocess.run(
            [sys.executable, "-m", "serving.cli.main", word, "--help"], capture_output=True, timeout=100
        )
        assert done.returncode == 0


def test_published_ports_are_those_that_something_listens_on() -> None:
    listen = CONFIG.listen
    inside = {int(port.split(":")[2]) for port in COMPOSE.services["control"].ports}
    assert inside == {listen.http_port, listen.grpc_port, listen.admin_port, 9090, 3000}


def test_the_two_roles_of_redis_are_two_servers() -> None:
    assert CONFIG.embedding.redis is not None
    state, cache = ("redis://redis-state:6379/0", "redis://redis-cache:6379/0")
    assert (CONFIG.state.url, CONFIG.traffic.url, CONFIG.embedding.redis.url) == (state, state, cache)
    keeps = " ".join(COMPOSE.services["redis-state"].command)
    assert "--maxmemory-policy noeviction" in keeps
    assert "--appendonly yes" in keeps
    assert COMPOSE.services["redis-state"].volumes
    assert "--maxmemory-policy allkeys-lfu" in " ".join(COMPOSE.services["redis-cache"].command)


def test_the_image_runs_without_rights() -> None:
    lines = (FOLDER / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    last = dict(line.split(maxsplit=1) for line in lines if line and not line.startswith("#"))
    user = next(service.user for service in COMPOSE.services.values() if service.image.startswith("baton:"))
    assert last["USER"] == user
    assert re.search(r"useradd --uid 10001\b", (FOLDER / "Dockerfile").read_text())
    assert "HEALTHCHECK" in last
    assert f":{CONFIG.listen.http_port}/healthz" in last["HEALTHCHECK"]

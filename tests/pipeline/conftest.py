from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis_process import RedisProcess
from traffic_places import Place

from pipeline.bundle.versions import Repository


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "bundles")


@pytest.fixture
def segments(tmp_path: Path) -> Path:
    return tmp_path / "segments"


@pytest.fixture(scope="session")
def traffic_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    """A Redis fit for a traffic log, shared by tests that empty it first."""
    with RedisProcess(tmp_path_factory.mktemp("traffic-redis"), "--appendonly", "yes") as server:
        yield server


@pytest.fixture(params=["local", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty place for a traffic log, once of each kind."""
    if request.param == "redis":
        found = Place("redis", request.getfixturevalue("traffic_redis").address.url)
        found.empty()
        return found
    return Place(request.param, str(tmp_path))

"""One scenario through REST, gRPC and the command line. A change through one is visible through all others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doors import CommandLine, Door, Grpc, Rest
from operated import Operated, admin_port, http_port, operated
from operators_day import ANN, OperatorsDay


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Operated]:
    with operated(tmp_path / "home") as made:
        yield made


@pytest.fixture(params=["REST", "gRPC", "command line"])
def door(request: pytest.FixtureRequest, world: Operated, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    port = admin_port if request.param == "gRPC" else http_port
    with port(world) as number:
        way: Any
        if request.param == "REST":
            way = Rest(number, ANN)
        elif request.param == "gRPC":
            way = Grpc(number, ANN)
        else:
            way = CommandLine(number, ANN, monkeypatch.setenv)
        yield way
        way.close()


class TestOperatorsDay(OperatorsDay):
    """Through REST, gRPC and the command line."""

"""`baton endpoint kill --home` without any server, and how the command line names a server."""

from __future__ import annotations

from pathlib import Path

import pytest
from installation import STUDENT, WHO
from typer.testing import CliRunner

from pipeline.errors import InvalidInput
from serving.cli.api import AdminClient
from serving.cli.main import app
from serving.config import ListenConfig
from serving.rollout.routing import ArmSpec, Endpoint
from serving.rollout.sqlite_store import SqliteControlStore
from serving.state.kill import KillSwitch


@pytest.fixture
def home(tmp_path: Path) -> Path:
    store = SqliteControlStore(tmp_path / "control.db")
    store.put_endpoint(Endpoint(name="ranker", stable=ArmSpec(bundle="teacher"), candidate=STUDENT, weight=50), WHO)
    store.close()
    return tmp_path


def kill(home: Path, *arguments: str) -> int:
    return CliRunner().invoke(app, ["endpoint", "kill", *arguments, "--home", str(home)]).exit_code


def test_the_switch_is_set_with_no_server(home: Path) -> None:
    assert kill(home, "ranker", "--reason", "trouble") == 0
    why = KillSwitch(home).why("ranker")
    assert why is not None
    assert why[0] == "trouble"


def test_a_misspelt_endpoint_is_complained_of_after_the_switch_is_set(home: Path) -> None:
    assert kill(home, "rankr") == 1
    assert KillSwitch(home).engaged("rankr")


def test_release_past_the_server_is_refused(home: Path) -> None:
    KillSwitch(home).engage("ranker", "trouble", "me")
    assert kill(home, "ranker", "--release") == 1
    assert KillSwitch(home).engaged("ranker")


@pytest.mark.parametrize("name", ["../ranker", "", ".hidden", "a/b"])
def test_a_name_is_no_path(home: Path, name: str) -> None:
    assert kill(home, name) == 1
    assert not (home / "kill").exists()


def test_servers_by_ipv6_address() -> None:
    assert ListenConfig(host="::1").address(8001) == "[::1]:8001"
    assert ListenConfig().address(8001) == "127.0.0.1:8001"
    assert not AdminClient("http://[::1]:1").ready()
    with pytest.raises(InvalidInput, match="in brackets"):
        AdminClient("http://::1:8000")

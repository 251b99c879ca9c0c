"""A control process that does not answer: none runs, one hangs, or the address is not that of this installation."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from installation import free_port
from typer.testing import CliRunner

from pipeline.errors import NotReady
from serving.cli import api
from serving.cli.api import AdminClient
from serving.cli.main import app
from serving.runtime.ports import claimed_ports


def said(port: int) -> str:
    with pytest.raises(NotReady) as refused:
        AdminClient(f"http://127.0.0.1:{port}").check_alive()
    return str(refused.value)


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No claims of other processes of this machine, and no configuration."""
    monkeypatch.setattr("pipeline.memory_folder.MEMORY_FOLDER", tmp_path)
    monkeypatch.setattr(api, "ALIVE_S", 0.3)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def silent() -> Iterator[int]:
    """A port on which connections are made and nothing is answered."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_where_nothing_runs_the_command_that_starts_it_is_named() -> None:
    assert "start one with `baton serve`" in said(free_port())


def test_a_hung_process_is_named_with_its_home_and_the_command_that_restarts_it(tmp_path: Path) -> None:
    port = free_port()
    with (
        claimed_ports("127.0.0.1", {"http_port": port}, tmp_path / "home", "control"),
        socket.create_server(("", port)),
    ):
        text = said(port)
    assert "it hangs or is busy" in text
    assert f"baton process restart control --home {tmp_path / 'home'}" in text
    assert "start one" not in text


def test_what_is_no_process_of_ours_is_said(silent: int) -> None:
    assert "no process of Baton's" in said(silent)


def test_another_installation_is_named_by_its_port(tmp_path: Path) -> None:
    port = free_port()
    with claimed_ports("127.0.0.1", {"http_port": port}, tmp_path / "other", "control"):
        assert f"{port} ({tmp_path / 'other'})" in said(free_port())


def test_the_configuration_here_names_another_port(tmp_path: Path) -> None:
    (tmp_path / "baton.yaml").write_text("listen: {http_port: 9999}\n")
    assert "baton.yaml here has http_port 9999" in said(free_port())


@pytest.mark.parametrize("config", [None, "home: nowhere\n"])
def test_health_without_a_server(tmp_path: Path, config: str | None) -> None:
    """Without a configuration nothing can be told; with one, that nothing runs."""
    if config is not None:
        (tmp_path / "baton.yaml").write_text(config)
    done = CliRunner().invoke(app, ["health"], env={"BATON_SERVER": f"http://127.0.0.1:{free_port()}"})
    assert done.exit_code == (2 if config is None else 1), done.output
    assert ("no process of this home runs" in done.stdout) is (config is not None)
    assert not (tmp_path / "nowhere").exists()  # a look makes no home

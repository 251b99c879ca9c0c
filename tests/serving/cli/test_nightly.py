"""Nightly retraining by a scheduler: good, damaged and worse versions, several at once, while a server answers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from installation import WHO, eventually, free_port, running
from nightly import another, spoil, train_once, write_log
from typer.testing import CliRunner

from pipeline.bundle.bundle import Bundle
from pipeline.bundle.versions import Repository
from pipeline.errors import BatonError
from pipeline.features import Features
from pipeline.model.frame import rows_of
from serving.cli.main import app
from serving.client import RankingClient
from serving.config import Config
from serving.rollout.routing import ArmSpec, Endpoint
from serving.wiring.state import installation_secret, open_control_store
from transfer.bundles.take_in import checked, take_in

FRAME = {"user": ["u1", "u1", "u1"], "item": ["i1", "i2", "i3"], "price": [0.1, 0.2, None], "tags": ["a", "a|b1", ""]}


class Site:
    """What a scheduler and a client see of an installation: commands, and who answers."""

    def __init__(
        self, folder: Path, made: Bundle, data: Path, target: str, command: Callable[..., Any], *, apart: bool
    ) -> None:
        self.folder, self.made, self.data, self.command, self.apart = folder, made, data, command, apart
        self.bundles = folder / "home" / "bundles" / "nightly"
        self._client = RankingClient(target)
        self._features = Features.from_context(made.manifest.model_schema, rows_of(FRAME, made.manifest.model_schema))

    def hand_over(self, name: str, **change: float) -> Path:
        """A bundle as last night's training left it, outside the home."""
        return another(self.made, self.folder / "out" / name, **change)

    def publish(self, path: Path) -> tuple[int, dict[str, Any]]:
        cache = self.data.parent / "cache"
        done: tuple[int, dict[str, Any]] = self.command(
            "bundle", "publish", path, "--gate", self.data, "--from", "0.8", "--cache", cache
        )
        return done

    def at_once(self, path: Path) -> str:
        """Publish beside others, in a thread or a process; the version."""
        if self.apart:
            return str(self.publish(path)[1]["version"])
        repository = Repository(self.bundles.parent)
        return take_in(checked(path, repository), repository, now_ms=1).manifest.version

    def answers(self, version: int, limit: float = 60) -> None:
        """Wait until a version answers callers."""

        def seen() -> bool:
            schema = self.made.manifest.model_schema
            with suppress(BatonError):  # the server starts
                return self._client.rank("ranker", schema, self._features, routing_key="u1").version == str(version)
            return False

        eventually(seen, f"version {version} answers", limit)

    def close(self) -> None:
        self._client.close()


def settings(folder: Path, **more: object) -> Path:
    path = folder / "baton.yaml"
    said = {
        "home": "home",
        "listen": {"grpc_port": 0, "admin_port": 0, "http_port": 0, **more},
        "endpoints": {"ranker": {"stable": {"bundle": "nightly"}}},
        "bundles_keep": 100,  # a month is longer than the versions that are kept
        "worker": None,
    }
    path.write_text(json.dumps({key: value for key, value in said.items() if value is not None}))
    return path


@contextmanager
def lane_alone(folder: Path, made: Bundle, data: Path) -> Iterator[Site]:
    """A lane in this process; commands run in it, too."""
    config = Config.load(settings(folder))
    installation_secret(config)
    open_control_store(config).put_endpoint(Endpoint(name="ranker", stable=ArmSpec(bundle="nightly")), WHO)

    def command(*arguments: object) -> tuple[int, dict[str, Any]]:
        done = CliRunner().invoke(app, [*map(str, arguments), "--config", str(folder / "baton.yaml"), "-o", "json"])
        return done.exit_code, json.loads(done.stdout) if done.stdout else {"error": done.stderr}

    assert command("bundle", "publish", made.path)[0] == 0
    with running(config) as lane:
        site = Site(folder, made, data, lane.target, command, apart=False)
        try:
            yield site
        finally:
            site.close()


@contextmanager
def whole_server(folder: Path, made: Bundle, data: Path) -> Iterator[Site]:
    """`baton serve`, and each command as a process."""
    port = free_port()
    config = settings(folder, grpc_port=port, admin_port=free_port(), http_port=(http := free_port()))
    baton = [sys.executable, "-m", "serving.cli.main"]
    environment = {
        **os.environ,
        "BATON_SERVER": f"http://127.0.0.1:{http}",
        "PYTHONPATH": str(Path(__file__).parents[3]),
    }

    def command(*arguments: object) -> tuple[int, Any]:
        mine = [] if arguments[0] == "model" else ["--config", str(config)]
        done = subprocess.run(
            [*baton, *map(str, arguments), *mine, "-o", "json"], env=environment, capture_output=True, text=True,
            check=False, timeout=120,
        )  # fmt: skip
        return done.returncode, json.loads(done.stdout) if done.stdout else {"error": done.stderr}

    assert command("bundle", "publish", made.path)[0] == 0
    with (folder / "serve.log").open("wb") as log:
        server = subprocess.Popen([*baton, "serve", "--config", str(config)], env=environment, stderr=log, stdout=log)
    try:
        site = Site(folder, made, data, f"127.0.0.1:{port}", command, apart=True)
        site.answers(1, 180)
        yield site
        site.close()
    finally:
        server.terminate()
        server.wait(60)


def nights(site: Site, count: int) -> list[int]:
    """Publish night by night; the versions that must have been taken in."""
    versions, serving, night = [1], 1, 0
    damaged = {count // 4, count // 2, 3 * count // 4}
    worse = {count // 3: {"beta": 0.9}, 2 * count // 3: {"alpha": 0.01}}
    together = count - 5
    while versions[-1] < count:
        night += 1
        if night in damaged and night == min(
            damaged
        ):  # damaged before it is handed over: refused, and no number is used
            code, said = site.publish(spoil(site.hand_over(f"n{night}")))
            assert code == 1
            assert "dense.onnx" in said["error"]
        elif night in damaged:  # copied into the repository by hand, cut short or under a number that is not its own
            version = versions[-1] + 1
            shutil.copytree(site.bundles / "1", site.bundles / str(version))
            if night == max(damaged):
                manifest = site.bundles / str(version) / "manifest.json"
                manifest.write_text(manifest.read_text().replace('"version": "1"', f'"version": "{version}"'))
                spoil(site.bundles / str(version), "tables/item.safetensors", by=lambda content: content[:-7])
            versions.append(version)
        elif night in worse:
            code, said = site.publish(site.hand_over(f"n{night}", **worse[night]))
            assert (code, said["gate"]) == (1, "refused")
            assert said["reasons"]
            versions.append(int(said["version"]))
        elif versions[-1] == together:
            paths = [site.hand_over(f"n{night}-{at}", beta=0.001 * at) for at in range(5)]
            with ThreadPoolExecutor(5) as pool:
                versions += sorted(map(int, pool.map(site.at_once, paths)))
            serving = versions[-1]
        else:
            code, said = site.publish(site.hand_over(f"n{night}", beta=0.001 * (night % 7)))
            assert (code, said["gate"]) == (0, "passed"), said
            versions.append(int(said["version"]))
            serving = versions[-1]
        site.answers(serving)
    return versions


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def made(data: Path) -> Bundle:
    return train_once(data, data.parent / "made")


def test_what_serves_is_right_after_each_night(tmp_path: Path, made: Bundle, data: Path) -> None:
    with lane_alone(tmp_path, made, data) as site:
        assert nights(site, 12) == list(range(1, 13))
        assert len([path for path in site.bundles.iterdir() if not path.name.startswith(".")]) == 12


@pytest.mark.long
def test_nights_of_a_scheduler_beside_a_server(tmp_path: Path, made: Bundle, data: Path) -> None:
    """The scheduler's commands and the server are processes of their own; nobody touches a file of the home but the tools
    that damage it. A month of them, by hand: NIGHTS=30."""
    count = int(os.environ.get("NIGHTS", "12"))
    with whole_server(tmp_path, made, data) as site:
        assert nights(site, count) == list(range(1, count + 1))
        listed = site.command("model", "list")[1]
        told = {int(m["version"]): m for m in listed}
        assert sorted(told) == list(range(1, count + 1))
        assert sum(not m["servable"] for m in told.values()) == 4, "two worse ones, two damaged ones"
        assert sum(bool(m["fault"]) for m in told.values()) == 2
        assert told[count]["arms"] == ["ranker/stable"]

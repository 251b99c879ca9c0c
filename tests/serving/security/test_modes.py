"""Who else on the machine can read an installation's files: nobody, whoever made them first and whatever the umask was."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from handmade import random_tables, write_bundle
from typer.testing import CliRunner

from pipeline.bundle.versions import Repository
from pipeline.errors import InvalidInput
from serving.cli.main import app
from serving.config import Config
from serving.security.modes import close_folder, close_home, exchangeable, open_parts


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    """The shell's umask gives everything to everybody."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def made(tmp_path: Path) -> Config:
    (tmp_path / "baton.yaml").write_text("home: home\n")
    (tmp_path / "baton.yaml").chmod(0o644)
    return Config.load(tmp_path / "baton.yaml")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def others(folder: Path) -> dict[str, str]:
    """Everything below a folder that another user could open, links not followed."""
    found = {}
    for path in (folder, *folder.rglob("*")):
        bits = stat.S_IMODE(path.lstat().st_mode)
        if not path.is_symlink() and bits & 0o077:
            found[str(path.relative_to(folder))] = f"{bits:04o}"
    return found


def baton(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "serving.cli.main", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, cwd=cwd)


def doctor(folder: Path) -> dict[str, tuple[bool, str]]:
    done = CliRunner().invoke(app, ["doctor", "--config", str(folder / "baton.yaml"), "-o", "json"])
    return {check["check"]: (check["ok"], check["detail"]) for check in json.loads(done.stdout)["checks"]}


def log_of(folder: Path) -> Path:
    rows = "".join(f"{1_700_000_000 + i},u{i % 5},i{i % 7},{i % 3 == 0:d}\n" for i in range(60))
    (folder / "log.csv").write_text(f"time,user,item,click\n{rows}")
    (folder / "dataset.yaml").write_text(
        "name: log\nfiles: [log.csv]\ntime: {column: time, unit: s}\nlabel: {column: click, positive: [1]}\n"
        "routing_key: user\nfields:\n  - {name: user, role: context}\n  - {name: item, role: candidate}\n"
    )
    return folder / "dataset.yaml"


@pytest.mark.long
def test_a_home_that_training_made_first_is_its_owners_alone(made: Config, tmp_path: Path) -> None:
    data = log_of(tmp_path)
    train = ("train", "--data", data, "--arch", "lr", "--to", 0.8, "--name", "first", "--cache", "cache")
    done = baton(*train, "--out", "home/bundles/first/1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (mode(tmp_path / "home"), others(tmp_path / "home"), others(tmp_path / "cache")) == (0o700, {}, {})
    done = baton("token", "create", "ann", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert close_home(made) == []
    assert others(tmp_path / "home") == {}
    ok, detail = doctor(tmp_path)["file modes"]
    assert ok
    assert "0700" in detail


@pytest.mark.parametrize("before", [0o755, 0o750, 0o777, 0o2775, 0o711, 0o1777, 0o705])
def test_an_open_home_is_named_by_the_doctor_and_closed_at_the_start(made: Config, before: int) -> None:
    home = made.home
    (home / "worker").mkdir(parents=True)
    for name in ("traffic.db", "traffic.db-wal", "control.db", "rows.parquet"):
        (home / name).touch()
    home.chmod(before)
    ok, detail = doctor(home.parent)["file modes"]
    assert not ok
    assert f"{before:04o}" in detail
    assert "traffic.db 0666" in detail
    first, second = close_home(made)
    assert f"{before:04o}" in first
    assert "traffic.db" in second
    assert others(home) == {}
    assert mode(home) & 0o777 == 0o700
    assert close_home(made) == []
    assert doctor(home.parent)["file modes"][0]


def test_a_home_behind_a_link_is_closed_and_no_link_inside_is_followed(made: Config, tmp_path: Path) -> None:
    real, elsewhere = tmp_path / "disk", tmp_path / "shared"
    real.mkdir(0o755)
    elsewhere.mkdir(0o755)
    (elsewhere / "traffic.db").touch(0o644)
    made.home.symlink_to(real)
    (real / "bundles").symlink_to(elsewhere)
    (real / "traffic.db").symlink_to(elsewhere / "traffic.db")
    *_, said = close_home(made)
    assert mode(real) == 0o700
    assert (mode(elsewhere), mode(elsewhere / "traffic.db")) == (0o755, 0o644)
    assert str(elsewhere / "traffic.db") in said
    assert "0644" in said
    ok, detail = doctor(tmp_path)["file modes"]
    assert not ok
    assert "0644" in detail


def test_an_open_home_that_cannot_be_closed_is_refused_with_what_to_do(
    made: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.home.mkdir(0o777)

    def not_ours(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    for chmod in (not_ours, lambda *_: None):  # another user's; a file system without modes
        monkeypatch.setattr(Path, "chmod", chmod)
        with pytest.raises(InvalidInput, match=r"mode 0777.*cannot be closed.*home/home"):
            close_home(made)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
def test_a_strangers_home_or_tokens_are_refused(made: Config) -> None:
    close_home(made)
    made.tokens.touch(0o600)
    os.chown(made.tokens, 12345, -1)
    assert "belongs to user 12345" in " ".join(open_parts(made))
    os.chown(made.home, 12345, -1)  # root serves the home of a service account
    assert list(open_parts(made)) == []


def test_what_lies_outside_is_looked_at_too(made: Config, tmp_path: Path) -> None:
    made.repository.mkdir(parents=True)
    close_home(made)
    assert list(open_parts(made, tmp_path / "baton.yaml")) == []
    (tmp_path / "baton.yaml").chmod(0o666)
    made.repository.chmod(0o707)
    found = " ".join(open_parts(made, tmp_path / "baton.yaml"))
    assert "baton.yaml can be changed by every user (mode 0666)" in found
    assert "bundles can be changed by every user (mode 0707)" in found
    tmp_path.chmod(0o777)
    assert f"{tmp_path} (mode 0777)" in " ".join(exchangeable(made.home))


@pytest.mark.parametrize("there", [False, True])
def test_a_backup_and_what_it_brings_back_are_their_owners_alone(made: Config, tmp_path: Path, there: bool) -> None:
    write_bundle(Repository(made.repository), random_tables(1))
    close_home(made)
    (made.home / "tokens.json").touch(0o600)
    target = tmp_path / "backup"
    if there:
        target.mkdir(0o755)
    assert CliRunner().invoke(app, ["backup", str(target), "--config", str(tmp_path / "baton.yaml")]).exit_code == 0
    assert mode(target) == mode(target / "home") == 0o700
    (tmp_path / "other").mkdir()
    (tmp_path / "other/baton.yaml").write_text("home: home\n")
    if there:
        (tmp_path / "other/home").mkdir(0o755)
    done = CliRunner().invoke(app, ["restore", str(target), "--config", str(tmp_path / "other/baton.yaml")])
    assert done.exit_code == 0, done.output
    assert mode(tmp_path / "other/home") == 0o700


def test_the_umask_of_the_shell_comes_back_after_a_command(tmp_path: Path) -> None:
    CliRunner().invoke(app, ["status", "--config", str(tmp_path / "none.yaml")])
    assert os.umask(0) == 0


def test_a_closed_folder_stays_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(0o500)
    assert close_folder(folder) == []
    assert mode(folder) == 0o500

"""The command line without a server: bundles and files, refusals, and the help of every command."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import click
import pytest
import torch
import typer
from command_tree import below
from handmade import random_tables, write_bundle
from typer.testing import CliRunner, Result

from pipeline.bundle.bundle import Bundle
from pipeline.bundle.versions import Repository
from serving.cli.freeze import _time_ms
from serving.cli.main import app
from transfer.bundles.publish import load


def baton(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def refused(done: Result, *texts: str) -> None:
    assert done.exit_code == 1, (done.output, done.exception)
    assert "error:" in done.stderr
    assert "Traceback" not in done.stderr
    for text in texts:
        assert text in done.stderr.replace("\n", " "), done.stderr


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(Repository(tmp_path / "bundles"), random_tables(1))


# --- bundles ---------------------------------------------------------------------------------------------------------


def test_a_good_bundle_is_shown_and_verified(bundle: Bundle) -> None:
    shown = baton("bundle", "inspect", bundle.path)
    assert shown.exit_code == 0, shown.output
    for word in ("ranker", "architecture", "user", "genres", "calibration"):
        assert word in shown.stdout
    manifest = json.loads(baton("bundle", "inspect", bundle.path, "-o", "json").stdout)
    assert (manifest["name"], manifest["version"]) == ("ranker", "1")
    verified = baton("bundle", "verify", bundle.path, "-o", "json")
    assert verified.exit_code == 0
    assert json.loads(verified.stdout) == {
        "bundle": "ranker", "version": "1", "files": len(manifest["files"]), "ok": True,
    }  # fmt: skip


def test_one_flipped_bit_in_any_file_is_found_and_named(bundle: Bundle, tmp_path: Path) -> None:
    for name in bundle.manifest.files:
        copy = tmp_path / "copy" / "1"
        shutil.rmtree(copy.parent, ignore_errors=True)
        shutil.copytree(bundle.path, copy)
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
        refused(baton("bundle", "verify", copy), name)


def test_what_is_no_bundle_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    refused(baton("bundle", "verify", tmp_path / "nothing"), "nothing")
    refused(baton("bundle", "inspect", tmp_path), "manifest.json")
    (bundle.path / "manifest.json").write_text("{")
    refused(baton("bundle", "inspect", bundle.path), "manifest.json")


# --- logs ------------------------------------------------------------------------------------------------------------


def descriptor(folder: Path, *, label: str = "click", item: str = "item", rows: int = 60) -> Path:
    lines = "time,user,item,click\n" + "".join(
        f"{1_700_000_000 + i},u{i % 5},i{i % 7},{i % 3 == 0:d}\n" for i in range(rows)
    )
    (folder / "rows.csv").write_text(lines)
    path = folder / "dataset.yaml"
    path.write_text(
        f"name: tiny\nfiles: [rows.csv]\ntime: {{column: time, unit: s}}\nlabel: {{column: {label}, positive: [1]}}\n"
        f"routing_key: user\nfields:\n  - {{name: user, role: context}}\n  - {{name: {item}, role: candidate}}\n"
    )
    return path


@pytest.mark.parametrize("column", ["label", "item"])
def test_a_column_that_is_not_there_is_named_with_its_file(tmp_path: Path, column: str) -> None:
    path = descriptor(tmp_path, **{column: "absent_one"})
    done = baton("train", "--data", path, "--arch", "lr", "--out", tmp_path / "out", "--cache", tmp_path / "cache")
    refused(done, "rows.csv", "absent_one")
    assert not (tmp_path / "out").exists()


def test_training_writes_a_bundle_that_verifies_and_never_over_another(tmp_path: Path) -> None:
    command = ("train", "--data", descriptor(tmp_path), "--arch", "lr", "--cache", tmp_path / "cache", "--out")
    done = baton(*command, tmp_path / "out", "-o", "json")
    assert done.exit_code == 0, (done.output, done.exception)
    assert json.loads(done.stdout)["bundle"] == str(tmp_path / "out")
    assert baton("bundle", "verify", tmp_path / "out").exit_code == 0
    refused(baton(*command, tmp_path / "out"), "out")


def test_a_version_is_named_by_the_repository_or_by_its_folder(tmp_path: Path) -> None:
    config = tmp_path / "baton.yaml"
    train = ("train", "--data", descriptor(tmp_path), "--arch", "lr", "--cache", tmp_path / "cache", "-o", "json")
    refused(baton(*train), "--name")
    refused(baton(*train, "--name", "student", "--config", config), "baton.yaml")
    config.write_text("home: home")
    bundles = tmp_path / "home/bundles"
    refused(baton(*train, "--name", "../student", "--config", config), "../student")
    for version, where in (
        ("1", ("--name", "student", "--config", config)),
        ("2", ("--out", bundles / "student/2")),
        ("3", ("--name", "student", "--config", config)),
        ("7", ("--out", bundles / "student/7", "--name", "student")),
        ("8", ("--name", "student", "--config", config)),
    ):
        done = baton(*train, *where)
        assert done.exit_code == 0, (done.output, done.exception)
        assert json.loads(done.stdout)["bundle"] == str(bundles / "student" / version)
        manifest = Repository(bundles).open("student", version).manifest
        assert (manifest.name, manifest.version) == ("student", version)
    refused(baton(*train, "--out", bundles / "student/9", "--name", "teacher"), "student", "teacher")
    (bundles / "student/.versions/9").touch()  # a worker is writing it
    refused(baton(*train, "--out", bundles / "student/9"), "9", "taken")
    gone = ("--from", "0.99999", "--to", "1")  # no row: training fails, and the number is free again
    assert baton(*train, *gone, "--out", bundles / "student/11").exit_code == 1
    assert baton(*train, "--out", bundles / "student/11").exit_code == 0


def test_teacher_and_student_are_stored_as_told(tmp_path: Path) -> None:
    common = ("--data", descriptor(tmp_path, rows=2000), "--cache", tmp_path / "cache", "--arch", "fm-4")
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    for command in (
        ("train", *common, "--out", teacher, "--rows", "float16", "--to", "0.8", "-o", "json"),
        ("transfer", *common, "--out", student, "--teacher", teacher, "--rows", "int8", "--to", "0.8", "-o", "json"),
    ):
        done = baton(*command)
        assert done.exit_code == 0, (done.output, done.exception)
        result = json.loads(done.stdout)
        assert min(result["train_seconds"], result["rows_per_second"], result["peak_mb"]) > 0
        assert result["after"]["rows"] == sum(decile["rows"] for decile in result["after"]["deciles"]) == 200
    assert result["teacher_after"]["rows"] == 200  # of the same rows
    assert isinstance(result["warnings"], list)
    for path, stored in ((teacher, "float16"), (student, "int8")):
        assert {info.dtype for info in Bundle.open(path).manifest.tables.values()} == {stored}
    assert baton("train", *common, "--out", tmp_path / "other", "--rows", "int4").exit_code == 2


def test_tables_and_device_are_as_told_and_the_worker_finds_them_so(tmp_path: Path) -> None:
    common = ("--data", descriptor(tmp_path, rows=2000), "--cache", tmp_path / "cache", "--arch", "fm-4")
    rare = ("--admit-after", "3", "--evict-after", "1500", "--device", "auto")
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    for command in (("train", "--out", teacher), ("transfer", "--teacher", teacher, "--out", student)):
        done = baton(*command, *common, *rare)
        assert done.exit_code == 0, (done.output, done.exception)
    for path in (teacher, student):
        opened = Bundle.open(path)
        tables = load(opened).learning.tables
        assert (tables.admit_after, tables.evict_after) == (3, 1500)
    if not torch.cuda.is_available():
        refused(baton("train", *common, "--out", tmp_path / "card", "--device", "cuda"), "device", "no GPU")


def test_a_student_trains_on_the_share_that_is_told(tmp_path: Path) -> None:
    common = ("--data", descriptor(tmp_path, rows=12_000), "--cache", tmp_path / "cache", "--arch", "fm-4")
    assert baton("train", *common, "--out", tmp_path / "teacher").exit_code == 0
    trained = {}
    for share in ("0.5", "1"):
        out = tmp_path / f"student{share}"
        done = baton(
            "transfer", *common, "--out", out, "--teacher", tmp_path / "teacher", "--share", share, "-o", "json"
        )
        assert done.exit_code == 0, (done.output, done.exception)
        result = json.loads(done.stdout)
        trained[share] = result["rows_per_second"] * result["train_seconds"]
    assert trained["1"] - trained["0.5"] == pytest.approx(6_000, rel=0.01)
    refused_option = baton(
        "transfer", *common, "--out", tmp_path / "o", "--teacher", tmp_path / "teacher", "--share", "2"
    )
    assert refused_option.exit_code == 2


def test_what_cannot_be_trained_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    data, cache = descriptor(tmp_path), tmp_path / "cache"
    train = ("train", "--data", data, "--cache", cache, "--out", tmp_path / "out")
    refused(baton(*train, "--arch", "oracle"), "oracle")
    refused(baton(*train, "--arch", "lr", "--from", "0.5", "--to", "0.5"), "--from 0.5")
    refused(baton("train", "--data", tmp_path / "gone.yaml", "--arch", "lr", "--out", tmp_path / "o"), "gone.yaml")
    transfer = ("transfer", "--data", data, "--cache", cache, "--arch", "lr", "--out", tmp_path / "out", "--teacher")
    refused(baton(*transfer, tmp_path / "nobody"), "nobody")
    refused(baton(*transfer, bundle.path), "not written by this trainer")
    replay = ("replay", "--data", data, "--cache", cache, "--endpoint", "ranker", "--target", "127.0.0.1:9")
    refused(baton(*replay, "--from", "0.8", "--to", "0.2"), "--from 0.8")


def test_a_replay_without_a_server_ends_with_its_errors(tmp_path: Path) -> None:
    done = baton(
        "replay", "--data", descriptor(tmp_path), "--cache", tmp_path / "cache", "--endpoint", "ranker",
        "--target", "127.0.0.1:9", "--rate", "1000", "--from", "0.9", "-o", "json",
    )  # fmt: skip
    assert done.exit_code == 1
    assert "NotReady" in done.output


def test_a_rollout_file_is_tried_without_a_server(tmp_path: Path) -> None:
    refused(baton("rollout", "simulate", tmp_path / "gone.yaml"), "gone.yaml")
    file = tmp_path / "rollout.yaml"
    file.write_text("endpoint: r\ncandidate: {bundle: b}\nsteps: [{weight: 5}]\n")
    refused(baton("rollout", "simulate", file), "bias_below", "rollout.yaml:3")


def test_a_wrong_config_is_named(tmp_path: Path) -> None:
    path = tmp_path / "baton.yaml"
    for command in (("serve",), ("worker",), ("process", "control")):
        path.write_text("listen: {host: 0.0.0.0}")
        refused(baton(*command, "--config", path), "baton.yaml", "loopback")
    path.write_text("home: home")
    refused(baton("worker", "--config", path), "worker")
    path.write_text("log_level: loud")
    doctor = baton("doctor", "--config", path, "-o", "json")
    assert doctor.exit_code == 1
    checks = {c["check"]: c for c in json.loads(doctor.stdout)["checks"]}
    assert not checks["config"]["ok"]
    assert "log_level" in checks["config"]["detail"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("no-such-verb",),
        ("bundle", "verify"),
        ("train", "--arch", "lr"),
        ("train", "--data", "d", "--arch", "lr", "--out", "o", "--from", "1.5"),
        ("transfer", "--teacher", "t", "--data", "d", "--arch", "lr", "--out", "o", "--mode", "loud"),
        ("replay", "--data", "d", "--target", "t", "--endpoint", "e", "--rate", "0"),
        ("rollout", "set-weight", "ranker", "101"),
        ("demo", "--rows", "10"),
        ("metrics", "ranker", "-o", "xml"),
    ],
)
def test_wrong_usage_ends_with_2(arguments: tuple[str, ...]) -> None:
    assert baton(*arguments).exit_code == 2


def test_a_freeze_ends_at_a_time_or_after_a_duration() -> None:
    assert _time_ms("2026-12-27T08:00") == _time_ms("2026-12-27T09:00+01:00") == 1_798_358_400_000
    assert abs(_time_ms("12h") - 1000 * (time.time() + 43_200)) < 60_000
    for wrong in ((), ("--until", "12h", "--lift"), ("--until", "tomorrow")):
        done = baton("freeze", *wrong, "--reason", "sale")
        assert (done.exit_code, "until" in done.stderr) == (1, True)


def commands(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    return [path, *(found for name, sub in below(command).items() for found in commands(sub, (*path, name)))]


@pytest.mark.parametrize("path", commands(typer.main.get_command(app)), ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...]) -> None:
    done = baton(*path, "--help")
    assert done.exit_code == 0
    assert "Usage:" in done.stdout
    if not below(command_at(path)):
        assert f"Example: baton {' '.join(path)}" in " ".join(done.stdout.split()).rpartition("╰")[2]


def command_at(path: tuple[str, ...]) -> click.Command:
    found: click.Command = typer.main.get_command(app)
    for name in path:
        found = below(found)[name]
    return found


def test_a_newcomer_finds_how_to_pause_a_rollout() -> None:
    shown = " ".join(baton("--help").stdout.replace("│", " ").split())
    assert "To stop a rollout: baton rollout list, then baton rollout pause ENDPOINT --reason" in shown
    for command in (("rollout", "list"), ("rollout", "pause")):  # the two others of the three
        assert command_at(command).help


@pytest.mark.parametrize(
    ("typed", "completed"), [("baton roll", "rollout"), ("baton rollout pau", "pause"), ("baton endpoint ki", "kill")]
)
def test_the_shell_completes_commands(typed: str, completed: str) -> None:
    asked = {"_BATON_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    done = CliRunner().invoke(app, [], env=asked, prog_name="baton")
    assert done.stdout.split() == [completed], (done.output, done.exception)

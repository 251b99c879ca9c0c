"""Backups: one state of an installation that serves, brought back whole, and never into a place in use. And homes that
have lost a part are refused by name."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from clocks import HandClock
from handmade import random_tables, write_bundle
from installation import Installation
from traffic_samples import sample
from typer.testing import CliRunner

from pipeline.disk import replacing
from pipeline.errors import Conflict, InvalidInput
from pipeline.traffic.log import FeedbackEntry, Outcome
from pipeline.traffic.prediction import PredictionIds
from serving.cli.main import app
from serving.config import Config
from serving.runtime.claims import role_on
from serving.security.authenticator import Authenticator
from serving.security.exposure import exposure
from serving.state.kill import KillFlag
from serving.wiring.backup import MANIFEST, back_up, read_backup, restore
from serving.wiring.home import check_home, home_faults, interrupted_restore
from serving.wiring.state import installation_secret, open_control_store, open_snapshot
from serving.wiring.traffic import open_traffic_log

CLOCK = HandClock()


@pytest.fixture
def made(tmp_path: Path) -> Installation:
    """A home that has served: weight 25, three predictions of a lane, a checkpoint of the worker."""
    made = Installation(tmp_path / "home")
    made.set(weight=25)
    ids, now = PredictionIds(installation_secret(made.config)), CLOCK.wall_ms()
    with closing(open_traffic_log(made.config)) as log:
        log.append_predictions([sample(ids.new(now), now) for _ in range(3)])
    checkpoint(made.home, 2, [1, 2])
    (made.home / "worker/teacher+student/.3.1").mkdir()
    (made.home / "kill").mkdir()
    (made.home / "kill/ranker").write_text("{}")
    made.store.close()
    return made


def checkpoint(home: Path, number: int, chain: list[int], position: int = 0) -> None:
    for one in chain:
        folder = home / "worker/teacher+student" / str(one)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "student.safetensors").write_text(f"weights {one}")
        text = json.dumps({"place": {"position": position}, "chain": [n for n in chain if n <= one]})
        with replacing(folder / "state.json") as staging:
            staging.write_text(text)


def config_of(home: Path) -> Config:
    return Config.model_validate({"home": home})


def test_a_backup_brings_back_weights_log_bundles_checkpoints_and_the_kill(made: Installation, tmp_path: Path) -> None:
    done = back_up(made.config, tmp_path / "none.yaml", tmp_path / "copy", CLOCK)
    assert read_backup(tmp_path / "copy") == done
    assert done.left_out == []
    again = config_of(tmp_path / "again")
    restored, aside = restore(again, tmp_path / "copy", CLOCK)
    assert (restored, aside) == (done, None)
    with closing(open_control_store(again)) as store, closing(open_traffic_log(again)) as log:
        assert store.endpoint("ranker").weight == 25
        assert [entry.verb for entry in store.audit()]
        assert log.stats(CLOCK.wall_ms()).predictions == 3
    assert installation_secret(again) == installation_secret(made.config)
    assert (again.home / "secret.key").stat().st_mode & 0o077 == 0
    assert sorted(os.listdir(again.repository)) == ["student", "teacher"]
    assert sorted(os.listdir(again.home / "worker/teacher+student")) == ["1", "2"]
    assert (again.home / "kill/ranker").exists()
    assert (again.repository / "teacher/1/manifest.json").stat().st_nlink == 1  # a home shares nothing with its backup
    check_home(again)


def test_a_backup_while_everything_changes_is_one_state(made: Installation, tmp_path: Path) -> None:
    stop = threading.Event()

    def change() -> None:
        ids, tables = PredictionIds(installation_secret(made.config)), random_tables(1)
        with closing(open_traffic_log(made.config)) as log:
            number = 2
            while not stop.is_set():
                now = CLOCK.wall_ms()
                log.append_predictions([sample(ids.new(now), now) for _ in range(20)])
                number += 1
                checkpoint(made.home, number, [number])
                shutil.rmtree(made.home / f"worker/teacher+student/{number - 1}", ignore_errors=True)
                version = write_bundle(made.repository, tables, name="student")
                made.repository.prune("student", {version.manifest.version}, unfinished_before=0)

    thread = threading.Thread(target=change, name="change")
    thread.start()
    try:
        for attempt in range(3):
            back_up(made.config, tmp_path / "none.yaml", tmp_path / str(attempt), CLOCK)
    finally:
        stop.set()
        thread.join()
    for attempt in range(3):
        read_backup(tmp_path / str(attempt))
        check_home(config_of(tmp_path / str(attempt) / "home"))
        whole = list((tmp_path / str(attempt) / "home/bundles/student").glob("[0-9]*/manifest.json"))
        assert whole


def test_a_copy_of_the_log_has_all_labels_of_its_predictions_while_lanes_write_and_control_joins(
    made: Installation, tmp_path: Path
) -> None:
    stop = threading.Event()

    def write() -> None:
        ids = PredictionIds(installation_secret(made.config))
        with closing(open_traffic_log(made.config, 0)) as log:
            while not stop.is_set():
                some = [ids.new(log.now_ms()) for _ in range(20)]
                log.append_predictions([sample(i, log.now_ms()) for i in some])
                entries = [FeedbackEntry(i, (), [Outcome(1, 1.0, final=True)], exposed_all=True) for i in some]
                log.append_feedback(entries, log.now_ms())

    def join() -> None:
        with closing(open_traffic_log(made.config)) as log:
            while not stop.is_set():
                log.join(log.now_ms() + 3 * log.window_ms)

    threads = [threading.Thread(target=target, name=target.__name__) for target in (write, join)]
    for thread in threads:
        thread.start()
    try:
        for attempt in range(4):
            back_up(made.config, tmp_path / "none.yaml", tmp_path / str(attempt), CLOCK)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    for attempt in range(4):
        with closing(open_traffic_log(config_of(tmp_path / str(attempt) / "home"))) as log:
            while log.join(log.now_ms() + 3 * log.window_ms):
                pass
            stats = log.stats(log.now_ms())
            entries = [entry for entry in log.labelled(0, 100_000) if len(entry.indices)]
        assert stats.feedback == len(entries) == len({entry.prediction_id for entry in entries})
        assert all(entry.labels.tolist() == [0.0, 1.0, 0.0, 0.0] for entry in entries)
        assert (stats.open_predictions, stats.parked, stats.damaged) == (0, 0, 0)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda copy: (copy / MANIFEST).unlink(), "no whole backup: it has no backup.json"),
        (lambda copy: (copy / "home/control.db").unlink(), "home/control.db is missing"),
        (lambda copy: (copy / "home/secret.key").write_bytes(b"x" * 32), "secret.key is not what was written"),
        (lambda copy: (copy / MANIFEST).write_text("{}"), "cannot be read"),
    ],
)
def test_half_a_backup_is_refused_and_changes_nothing(
    made: Installation, tmp_path: Path, harm: Callable[[Path], object], message: str
) -> None:
    back_up(made.config, tmp_path / "none.yaml", tmp_path / "copy", CLOCK)
    harm(tmp_path / "copy")
    with pytest.raises(InvalidInput, match=message):
        restore(config_of(tmp_path / "again"), tmp_path / "copy", CLOCK)
    assert not (tmp_path / "again").exists()


def test_a_home_in_use_or_not_empty_is_refused_and_moved_aside_when_told(made: Installation, tmp_path: Path) -> None:
    back_up(made.config, tmp_path / "none.yaml", tmp_path / "copy", CLOCK)
    with pytest.raises(Conflict, match="not empty"):
        back_up(made.config, tmp_path / "none.yaml", tmp_path / "copy", CLOCK)
    with role_on(made.home, "lane-0"), pytest.raises(Conflict, match=rf"in use by .*pid {os.getpid()}"):
        restore(made.config, tmp_path / "copy", CLOCK, replace=True)
    with pytest.raises(Conflict, match="--replace"):
        restore(made.config, tmp_path / "copy", CLOCK)
    _, aside = restore(made.config, tmp_path / "copy", CLOCK, replace=True)
    assert aside is not None
    assert (aside / "control.db").exists()
    check_home(made.config)
    interrupted_restore(made.home).touch()
    assert "interrupted" in home_faults(made.config, 1.0)[0]


def test_what_redis_holds_is_named(made: Installation, tmp_path: Path) -> None:
    config = made.config.model_copy(
        update={"traffic": made.config.traffic.model_copy(update={"url": "redis://log:6379/0"})}
    )
    done = back_up(config, tmp_path / "none.yaml", tmp_path / "copy", CLOCK)
    (left_out,) = done.left_out
    assert all(word in left_out for word in ("redis://log:6379/0", "BGSAVE", "append-only", "after this backup"))
    assert not any(name.startswith("home/traffic") for name in done.files)


def test_the_commands_bring_a_configuration_back_too(made: Installation, tmp_path: Path) -> None:
    (tmp_path / "baton.yaml").write_text("home: home\n")
    run = CliRunner().invoke
    copied = run(app, ["backup", str(tmp_path / "copy"), "--config", str(tmp_path / "baton.yaml"), "-o", "json"])
    assert copied.exit_code == 0, copied.output
    assert json.loads(copied.stdout)["left_out"] == []
    elsewhere = tmp_path / "elsewhere/baton.yaml"
    back = run(app, ["restore", str(tmp_path / "copy"), "--config", str(elsewhere)])
    assert back.exit_code == 0, back.output
    check_home(Config.load(elsewhere))
    assert run(app, ["restore", str(tmp_path / "copy"), "--config", str(elsewhere)]).exit_code == 1


NOT_COPIED = ("run", "segments")


def content(home: Path) -> dict[str, bytes]:
    """Files of a home, but for what is made again, and databases, which are compared by what they hold."""
    return {
        str(path.relative_to(home)): path.read_bytes()
        for path in sorted(home.rglob("*"))
        if path.is_file()
        and path.relative_to(home).parts[0] not in NOT_COPIED
        and ".db" not in path.name
        and not any(part.startswith(".3") or part.endswith(".lock") for part in path.parts)
    }


def test_everything_that_makes_an_installation_is_back_and_equal(made: Installation, tmp_path: Path) -> None:
    files = {name: tmp_path / "pki" / name for name in ("cert.pem", "key.pem", "ca.pem", "password")}
    (tmp_path / "pki").mkdir()
    for name, path in files.items():
        path.write_text(f"this is {name}")
    (tmp_path / "baton.yaml").write_text(
        "home: home\nlisten: {tls: {cert: pki/cert.pem, key: pki/key.pem, client_ca: pki/ca.pem, roles: {ops: operator}}}\n"
        "embedding: {tiers: [device, redis], redis: {url: 'redis://127.0.0.1:1', password_file: pki/password}}\n"
    )
    config = Config.load(tmp_path / "baton.yaml")
    exposure(config)  # as a start does: the home remembers that there are roles
    run = CliRunner().invoke
    assert (
        run(app, ["token", "create", "ann", "--role", "operator", "--config", str(tmp_path / "baton.yaml")]).exit_code
        == 0
    )
    made.config.loads.mkdir()
    (made.config.loads / "student").touch()
    open_snapshot(config).keep(open_control_store(config).document(), {"shop": KillFlag("burns", "ada")})
    before = content(config.home)
    assert {
        "tokens.json",
        "kill/ranker",
        "loads/student",
        "state/identity",
        "state/access",
        "state/snapshot.json",
    } <= set(before)
    assert run(app, ["backup", str(tmp_path / "copy"), "--config", str(tmp_path / "baton.yaml")]).exit_code == 0
    shutil.rmtree(tmp_path / "home")
    shutil.rmtree(tmp_path / "pki")
    (tmp_path / "baton.yaml").unlink()
    back = run(app, ["restore", str(tmp_path / "copy"), "--config", str(tmp_path / "baton.yaml")])
    assert back.exit_code == 0, back.output
    assert content(config.home) == before
    for name, path in files.items():
        assert path.read_text() == f"this is {name}"
        assert path.stat().st_mode & 0o077 == 0
    with closing(open_control_store(config)) as store:
        assert store.endpoint("ranker").weight == 25
    files["key.pem"].write_text("a newer one")
    assert files["key.pem"].read_text() == "a newer one"
    again = run(app, ["restore", str(tmp_path / "copy"), "--config", str(tmp_path / "baton.yaml"), "--replace"])
    assert "listen.tls.key" in again.output
    assert files["key.pem"].read_text() == "a newer one", "what is there stays"


@pytest.mark.parametrize("known_by", ["the home", "the audit"])
def test_a_home_that_had_tokens_does_not_start_without_them(made: Installation, tmp_path: Path, known_by: str) -> None:
    (tmp_path / "baton.yaml").write_text("home: home\n")
    run, config = CliRunner().invoke, ["--config", str(tmp_path / "baton.yaml")]
    settings = Config.load(tmp_path / "baton.yaml")
    check_home(settings)
    exposure(settings)  # one that never had any starts as before
    assert run(app, ["token", "create", "ann", "--role", "operator", *config]).exit_code == 0
    settings.tokens.unlink()
    if known_by == "the audit":
        settings.access_memory.unlink()
    refused = run(app, ["serve", *config])
    assert refused.exit_code == 1
    assert str(settings.tokens) in refused.output.replace("\n", "")
    assert run(app, ["token", "open", "--reason", "on purpose", *config]).exit_code == 0
    check_home(settings)
    exposure(settings)


def test_a_home_that_had_roles_does_not_start_with_another_configuration(made: Installation) -> None:
    tls = {"cert": "c", "key": "k", "client_ca": "ca", "roles": {"ops": "operator"}}
    exposure(Config.model_validate({"home": made.home, "listen": {"tls": tls}}))
    with pytest.raises(InvalidInput, match=r"listen\.tls\.roles is missing"):
        exposure(config_of(made.home))
    running = exposure(config_of(made.home), supervised=True)
    assert any("no tokens" in line for line in running)
    assert not Authenticator(config_of(made.home), CLOCK).open, "what runs admits nobody without a token"


def emptied(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("DROP TABLE rollouts")


def torn(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    path.write_bytes(data)


def of_a_newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")


def without_records(index: Path) -> None:
    """A lane that writes its second file, and has lost the first one."""
    with closing(sqlite3.connect(index)) as db, db:
        db.execute("INSERT INTO files (begun_ms, newest_ms, end, predictions, scores) VALUES (0, 0, 0, 0, 0)")
    (index.parent / "00000001.log").unlink()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda home: (home / "secret.key").unlink(), "secret.key is missing"),
        (lambda home: (home / "control.db").unlink(), "control.db is missing"),
        (
            lambda home: (home / "traffic/labels.db").rename(home / "traffic/labels.db-wal"),
            "labels.db-wal is there without labels.db",
        ),
        (lambda home: (home / "traffic/labels.db").write_bytes(b""), "labels.db lacks counters"),
        (lambda home: (home / "traffic/labels.db").unlink(), "labels.db is missing beside predictions"),
        (lambda home: without_records(next((home / "traffic/lanes").rglob("index.db"))), "00000001.log is missing"),
        (lambda home: torn(next((home / "traffic/lanes").rglob("index.db"))), "index.db is damaged"),
        (lambda home: emptied(home / "control.db"), "control.db lacks rollouts"),
        (lambda home: torn(home / "control.db"), "control.db is damaged"),
        (lambda home: (home / "traffic/labels.db").write_text("something else " * 100), "labels.db is damaged"),
        (
            lambda home: of_a_newer(home / "control.db"),
            "control.db was written by a newer Baton .format 99; this one knows",
        ),
        (lambda home: of_a_newer(home / "traffic/labels.db"), "labels.db was written by a newer Baton .format 99"),
        (lambda home: of_a_newer(next((home / "traffic/lanes").rglob("index.db"))), "index.db was written by a newer"),
        (lambda home: shutil.rmtree(home / "bundles"), "bundles/teacher has no version"),
        (lambda home: checkpoint(home, 9, [9], position=70), "learned up to entry 70 of a log that ends at 0"),
    ],
)
def test_a_home_that_has_lost_a_part_is_refused_by_name(
    made: Installation, harm: Callable[[Path], object], message: str
) -> None:
    check_home(made.config)
    harm(made.home)
    with pytest.raises(InvalidInput, match=message) as refused:
        check_home(made.config)
    assert str(made.home) in str(refused.value)
    done = CliRunner().invoke(app, ["serve", "--config", written(made)])
    assert done.exit_code == 1
    assert message.split(" ")[0] in done.output


def written(made: Installation) -> str:
    path = made.home.parent / "baton.yaml"
    path.write_text(json.dumps({"home": str(made.home), "listen": {"grpc_port": 0, "http_port": 0, "admin_port": 0}}))
    return str(path)


def test_a_home_whose_first_command_makes_a_token_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "baton.yaml"
    path.write_text(json.dumps({"home": "home"}))
    done = CliRunner().invoke(app, ["token", "create", "ann", "--config", str(path)])
    assert done.exit_code == 0, done.output
    config = Config.load(path)
    assert config.control_db.exists()
    check_home(config)


def test_a_new_home_and_one_with_an_imported_log_alone_are_whole(tmp_path: Path) -> None:
    config = config_of(tmp_path / "home")
    assert home_faults(config, 1.0) == []
    ids, now = PredictionIds(installation_secret(config)), CLOCK.wall_ms()
    with closing(open_traffic_log(config)) as log:
        log.append_predictions([sample(ids.derive(now, "row 1"), now)])
    assert home_faults(config, 1.0) == []

"""Export, backup and holds of an installation elsewhere, through the command line and REST."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from operated import Operated, http_port, operated
from traffic_samples import sample
from typer.testing import CliRunner

from pipeline.errors import NotReady, Overloaded, PermissionDenied
from pipeline.traffic.log import Exposure, FeedbackEntry, Outcome
from pipeline.traffic.prediction import PredictionIds
from serving.admin import verbs as v
from serving.admin.door import request_of
from serving.cli.main import app
from serving.config.principal import Principal, Role
from serving.control.traffic_upkeep import TrafficUpkeep
from serving.rollout.routing_key import RoutingHash
from serving.rollout.status.holds import holds_of
from serving.runtime.process import PARENT
from serving.wiring.backup import read_backup
from serving.wiring.state import installation_secret

ADA = Principal("ada", Role.OPERATOR)
HOUR_MS = 3_600_000


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Operated]:
    with operated(tmp_path / "home") as made:
        yield made


def predict(world: Operated, key: str, time_ms: int) -> str:
    secret = installation_secret(world.made.config)
    made = PredictionIds(secret).new(time_ms)
    world.traffic.append_predictions([sample(made, time_ms, routing_hash=RoutingHash(secret)(key))])
    world.traffic.append_feedback([FeedbackEntry(made, [Exposure(0)], [Outcome(0, 1.0, final=True)])], time_ms)
    return made


def baton(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(word) for word in words])
    return done.exit_code, done.output


@pytest.mark.long
def test_an_export_of_an_hour_and_a_backup_come_over_the_network(world: Operated, tmp_path: Path) -> None:
    now = world.traffic.now_ms()
    new, old = predict(world, "a", now - HOUR_MS // 2), predict(world, "a", now - 3 * HOUR_MS)
    world.traffic.join(now + HOUR_MS)
    with http_port(world) as port:
        url = f"http://127.0.0.1:{port}"
        for since, found in (("1h", [new]), ("7d", [old, new])):
            file = tmp_path / f"{since}.parquet"
            code, said = baton("log", "export", file, "--since", since, "--server", url, "-o", "json")
            assert code == 0, said
            assert sorted(pq.read_table(file)["prediction_id"].to_pylist()) == sorted(found)
            assert json.loads(said)["rows"] == len(found)
        code, said = baton(
            "log", "export", tmp_path / "x.parquet", "--drop", "nothing", "--endpoint", "ranker", "--server", url
        )
        assert (code, "nothing" in said) == (1, True)
        assert not (tmp_path / "x.parquet").exists()
        code, said = baton("backup", tmp_path / "copy", "--server", url, "--reason", "weekly")
        assert code == 0, said
        assert {"home/control.db", "home/secret.key", "baton.yaml"} <= read_backup(tmp_path / "copy").files.keys()
        assert (tmp_path / "copy").stat().st_mode & 0o077 == 0
    assert [entry.verb for entry in world.made.store.audit()].count("log-export") == 3
    assert [entry.reason for entry in world.made.store.audit() if entry.verb == "backup"] == ["weekly"]
    assert not list((world.made.config.home / "run" / "bulk").glob("*"))


def test_one_bulk_answer_at_a_time_and_who_leaves_makes_room(world: Operated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PARENT, "1")  # as in a control process, which has a supervisor
    first = world.admin.bulk(v.BACKUPS_MAKE, request_of(v.BACKUPS_MAKE, {}), ADA)
    with pytest.raises(Overloaded, match="a backup for ada is being made"):
        world.admin.bulk(v.LOG_EXPORT, request_of(v.LOG_EXPORT, {}), ADA)
    first.close()
    first.close()
    second = world.admin.bulk(v.LOG_EXPORT, request_of(v.LOG_EXPORT, {}), ADA)
    assert second.read()[:4] == b"PAR1"
    while second.read():
        pass
    world.admin.bulk(v.LOG_EXPORT, request_of(v.LOG_EXPORT, {}), ADA).close()


def test_a_caller_that_does_not_read_is_ended(world: Operated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.admin.bulk.STALLED_S", 0.05)
    slow = world.admin.bulk(v.BACKUPS_MAKE, request_of(v.BACKUPS_MAKE, {}), ADA)
    slow.read()
    slow._watch.join()  # its time is over
    world.admin.bulk(v.BACKUPS_MAKE, request_of(v.BACKUPS_MAKE, {}), ADA).close()
    with pytest.raises(NotReady, match="not read"):
        slow.read()


def test_a_held_key_is_neither_forgotten_nor_removed(world: Operated) -> None:
    now = world.traffic.now_ms()
    held, other = predict(world, "user:712", now - 90 * 24 * HOUR_MS), predict(world, "other", now - 90 * 24 * HOUR_MS)
    world.traffic.join(now)
    upkeep = TrafficUpkeep(world.made.config, world.traffic, world.made.store)
    with http_port(world) as port:
        url = f"http://127.0.0.1:{port}"

        def said(*words: object) -> str:
            code, text = baton("log", *words, "--server", url)
            return f"{code} {' '.join(text.split())}"

        assert "must not be empty" in said("hold", "user:712")
        assert said("hold", "user:712", "--reason", "case 7").startswith("0 ")
        assert "is already held since" in said("hold", "user:712", "--reason", "case 8")
        assert "case 7" in said("holds")
        assert "user:712" not in json.dumps([[entry.after, entry.reason] for entry in world.made.store.audit()])
        upkeep.step(None, now)
        assert (upkeep.removed["predictions"], upkeep.held.kept) == (1, 1)
        assert set(world.traffic.records([held, other])) == {held}
        refused = said("forget", "--key", "user:712")
        assert refused.startswith("1 ")
        assert "case 7" in refused
        assert "nothing was deleted" in refused
        (hashed,) = holds_of(world.made.store)
        assert said("release", "--key", f"{hashed:016x}", "--reason", "closed").startswith("0 ")
        assert "is not held" in said("release", "user:712")
    upkeep.step(None, now)
    assert upkeep.held.kept == 0
    assert not world.traffic.records([held])
    assert [e.verb for e in world.made.store.audit()][-2:] == ["log-hold", "log-release"]


def test_viewers_get_no_file(world: Operated) -> None:
    viewer = Principal("vi", Role.VIEWER)
    for verb in (v.LOG_EXPORT, v.BACKUPS_MAKE):
        with pytest.raises(PermissionDenied):
            world.admin.bulk(verb, request_of(verb, {}), viewer)

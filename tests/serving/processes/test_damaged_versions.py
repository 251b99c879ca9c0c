"""Versions that arrive damaged while a lane serves: refused by name, the last good one answers, a repaired one is taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from handmade import random_tables, write_bundle
from installation import Installation, eventually, running, status
from test_lane import Load

from pipeline.bundle.bundle import Bundle
from pipeline.bundle.versions import Repository


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def deltas(made: Installation) -> tuple[Bundle, Bundle]:
    """Versions 2 and 3 of the student, a stream of deltas over 1, still where no lane looks."""
    elsewhere = Repository(made.home / "elsewhere")
    write_bundle(elsewhere, made.tables, name="student")
    second = write_bundle(elsewhere, random_tables(2, 20), name="student", base="1")
    third = write_bundle(elsewhere, random_tables(3, 20), name="student", base="1", deltas=("2",))
    return second, third


@pytest.mark.parametrize(
    ("link", "name", "damage", "said"),
    [
        (1, "tables/item.safetensors", cut, "bytes instead of"),
        (1, "tables/item.safetensors", flipped, "SHA-256"),
        (1, "manifest.json", cut, "cannot be read as JSON"),
        (0, "tables/user.safetensors", cut, "bytes instead of"),
        (0, "tables/user.safetensors", flipped, "SHA-256"),
    ],
)
def test_the_last_good_version_answers_until_the_damaged_one_is_whole(
    installation: Installation, link: int, name: str, damage: Callable[[Path], None], said: str
) -> None:
    chain = deltas(installation)
    path = chain[link].path / name
    whole = path.read_bytes()
    installation.set(weight=100)
    with running(installation.config) as lane:
        registry = lane.lane.registry
        load = Load(installation, lane.target, clients=1)
        damage(path)
        for bundle in chain:
            bundle.path.rename(installation.repository.path("student", bundle.manifest.version))

        def told() -> bool:
            faults = [str(f) for f in registry.faults().values()]
            faults += [f for f in map(fault_of, ("2", "3")) if f]
            return any(name in f and said in f for f in faults)

        def fault_of(version: str) -> str:
            try:
                installation.repository.open("student", version)
            except Exception as error:
                return str(error)
            return ""

        eventually(told, f"{name} is named")
        good = str(1 + link)
        eventually(lambda: load.answers["candidate", good] > 0, f"version {good} answers")
        before = load.answers.total()
        eventually(lambda: load.answers.total() > before + 20, "it goes on answering")
        (installation.repository.path("student", chain[link].manifest.version) / name).write_bytes(whole)
        registry.load("student")  # what failed is tried again after a while, and at once when told to
        eventually(lambda: load.answers["candidate", "3"] > 0, "the repaired version answers")
        load.stop()
    assert load.errors == []
    assert status(installation, "lane-0")["faults"] == {}


def test_a_good_version_that_follows_a_damaged_base_is_taken(installation: Installation) -> None:
    elsewhere = Installation(installation.home.parent / "elsewhere")
    second = elsewhere.publish("student", 7)
    elsewhere.store.close()
    flipped(second.path / "tables" / "genres.safetensors")
    installation.set(weight=100)
    with running(installation.config) as lane:
        load = Load(installation, lane.target, clients=1)
        second.path.rename(installation.repository.path("student", "2"))
        eventually(lambda: "student/2" in status(installation, "lane-0").get("faults", {}), "the status names it")
        assert "genres.safetensors does not match" in status(installation, "lane-0")["faults"]["student/2"]
        eventually(lambda: load.answers["candidate", "1"] > 20, "version 1 answers")
        installation.publish("student", 9)
        eventually(lambda: load.answers["candidate", "3"] > 0, "version 3 answers")
        load.stop()
    assert load.errors == []

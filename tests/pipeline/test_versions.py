from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
from handmade import random_tables, write_bundle

from pipeline.bundle import GateReport
from pipeline.errors import NotFound
from pipeline.versions import Repository


def reserve_many(root: Path, count: int) -> list[str]:
    repository = Repository(root)
    return [repository.reserve("ranker") for _ in range(count)]


def test_two_processes_never_get_the_same_version(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        parts = pool.starmap(reserve_many, [(tmp_path, 100)] * 2)
    assert sorted(int(v) for part in parts for v in part) == list(range(1, 201))
    for part in parts:
        assert [int(v) for v in part] == sorted(int(v) for v in part)


def test_numbers_are_not_used_again(repository: Repository) -> None:
    assert [repository.reserve("ranker") for _ in range(2)] == ["1", "2"]
    bundle = write_bundle(repository, random_tables(1))
    assert bundle.manifest.version == "3"
    bundle.path.rename(repository.root / "away")
    assert repository.reserve("ranker") == "4"
    assert repository.reserve("other") == "1"


def test_the_latest_is_the_newest_that_may_serve(repository: Repository) -> None:
    with pytest.raises(NotFound, match="none"):
        repository.open("ranker")
    for version in range(1, 12):
        gate = GateReport(passed=False) if version == 11 else None
        write_bundle(repository, random_tables(1, 5), gate=gate)
    assert repository.versions("ranker") == [str(v) for v in range(1, 12)]
    assert repository.latest("ranker") == "10"
    assert repository.open("ranker").manifest.version == "10"
    assert repository.names() == ["ranker"]
    with pytest.raises(NotFound, match="'99'"):
        repository.open("ranker", "99")
    with pytest.raises(NotFound):
        repository.open("ranker", "../ranker/1")


def test_half_written_versions_are_not_there(repository: Repository) -> None:
    write_bundle(repository, random_tables(1, 5))
    (repository.root / "ranker" / "2").mkdir()
    (repository.root / "ranker" / ".3.abcd").mkdir()
    assert repository.versions("ranker") == ["1"]


def test_a_chain_lists_base_first(repository: Repository) -> None:
    for deltas in (None, (), ("2",)):
        more = {} if deltas is None else {"base": "1", "deltas": deltas}
        write_bundle(repository, random_tables(1, 5), **more)  # type: ignore[arg-type]
    chain = repository.chain(repository.open("ranker", "3"))
    assert [b.manifest.version for b in chain] == ["1", "2", "3"]
    assert [b.manifest.version for b in repository.chain(chain[0])] == ["1"]

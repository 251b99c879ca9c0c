from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
from handmade import random_tables, write_bundle

from pipeline.bundle.bundle import GateReport
from pipeline.bundle.versions import Repository
from pipeline.errors import BundleError, NotFound


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


def test_pruned_versions_are_gone_and_their_numbers_stay_taken(repository: Repository) -> None:
    for number in range(1, 9):  # 1; 2, 3 on 1; 4; 5, 6 on 4; 7, 8
        base = {2: "1", 3: "1", 5: "4", 6: "4"}.get(number)
        deltas = {3: ("2",), 6: ("5",)}.get(number, ())
        write_bundle(repository, random_tables(1, 5), base=base, deltas=deltas)
    left = repository.root / "ranker" / ".9.abcd"
    left.mkdir()
    assert repository.prune("ranker", ["6", "7"], unfinished_before=0.0) == ["1", "2", "3"]
    assert repository.versions("ranker") == ["4", "5", "6", "7", "8"]
    assert [b.manifest.version for b in repository.chain(repository.open("ranker", "6"))] == ["4", "5", "6"]
    assert repository.reserve("ranker") == "9"
    assert left.is_dir()  # its publisher may be at work
    assert repository.prune("ranker", ["6", "99"], unfinished_before=2e9) == ["7", "8"]
    assert sorted(p.name for p in (repository.root / "ranker").iterdir()) == [".versions", "4", "5", "6"]
    assert repository.reserve("ranker") == "10"


def test_what_a_version_in_use_that_cannot_be_read_may_build_on_is_not_pruned(repository: Repository) -> None:
    for base in (None, "1", None, "3", "3"):
        write_bundle(repository, random_tables(1, 5), base=base)
    (repository.path("ranker", "5") / "manifest.json").write_text("{")
    assert list(repository.damaged("ranker")) == ["5"]
    assert repository.prune("ranker", ["5"], unfinished_before=0.0) == ["1", "2"]
    assert repository.versions("ranker") == ["3", "4", "5"]
    (repository.path("ranker", "4") / "manifest.json").unlink()
    assert list(repository.damaged("ranker")) == ["4", "5"]


def prune_always(root: Path, stop: str) -> None:
    repository = Repository(root)
    while not Path(stop).exists():
        repository.prune("ranker", ["999"], unfinished_before=0.0)


def test_numbers_are_never_given_out_twice_while_versions_are_pruned(tmp_path: Path) -> None:
    repository, stop = Repository(tmp_path), tmp_path / "stop"
    context = multiprocessing.get_context("spawn")
    pruning = context.Process(target=prune_always, args=(tmp_path, str(stop)))
    pruning.start()
    try:
        numbers = []
        for _ in range(120):
            numbers.append(int(repository.reserve("ranker")))
            path = repository.path("ranker", str(numbers[-1]))
            path.mkdir()
            (path / "manifest.json").touch()
    finally:
        stop.touch()
        pruning.join(30)
    assert numbers == list(range(1, 121))


def damage(repository: Repository, version: str, name: str) -> None:
    """Flip a byte of a file in its place, its size as before."""
    path = repository.path("ranker", version) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_newest_version_is_passed_over(repository: Repository, caplog: pytest.LogCaptureFixture) -> None:
    for deltas in (None, (), ("2",)):
        write_bundle(repository, random_tables(1, 5), base=None if deltas is None else "1", deltas=deltas or ())
    (repository.path("ranker", "3") / "manifest.json").write_text("{")
    assert repository.latest("ranker") == "2"
    assert "version 3 of bundle ranker is passed over" in caplog.text
    assert "manifest.json" in caplog.text
    damage(repository, "2", "tables/item.safetensors")
    assert repository.latest("ranker") == "2"  # as long as nobody reads all of it
    assert [b.manifest.version for b in repository.newest("ranker", verify=True)] == ["1"]
    assert "tables/item.safetensors does not match" in caplog.text
    damage(repository, "1", "dense.onnx")
    with pytest.raises(BundleError, match="JSON"):  # the newest one's fault
        repository.newest("ranker", verify=True)


def test_a_version_on_a_damaged_base_is_passed_over(repository: Repository) -> None:
    write_bundle(repository, random_tables(1, 5))
    write_bundle(repository, random_tables(2, 5))
    write_bundle(repository, random_tables(3, 5), base="2")
    damage(repository, "2", "tables/user.safetensors")
    assert repository.newest("ranker", verify=True)[-1].manifest.version == "1"


def test_what_was_published_after_the_look_is_not_pruned(repository: Repository) -> None:
    for _ in range(4):
        write_bundle(repository, random_tables(1, 5))
    assert repository.prune("ranker", ["3"], unfinished_before=0.0) == ["1", "2"]
    assert repository.versions("ranker") == ["3", "4"]

"""Segments of versions: built once, shared, stacked, merged in the background, swept, and never partial."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from handmade import WIDTH, random_tables, write_bundle
from test_segment_tier import ask, check, held

from pipeline.bundle.bundle import Bundle
from pipeline.bundle.versions import Repository
from pipeline.embedding.segment.file import CELLS, FILTER, META, PILOTS, Segment
from pipeline.embedding.segment.generations import Stack, compact, ensure_segment, open_stack, sweep
from pipeline.errors import BundleError, NotReady
from pipeline.model.model import Model


@pytest.fixture
def bundle(repository: Repository) -> Bundle:
    return write_bundle(repository, random_tables(1))


def publish_deltas(repository: Repository, count: int) -> list[list[Bundle]]:
    """Versions 2, 3, ... over version 1; the chain of each."""
    chains = []
    for number in range(2, 2 + count):
        tables = random_tables(number, 30)
        bundle = write_bundle(repository, tables, base="1", deltas=tuple(str(v) for v in range(2, number)))
        chains.append(repository.chain(bundle))
    return chains


def holds(stack: Stack, chain: list[Bundle]) -> None:
    truth = held(chain, WIDTH)
    check(ask([[*stack.deltas, stack.base]], np.array([*truth, 12345], np.int64), WIDTH, linear=True), truth)


def folders(segments: Path) -> list[str]:
    return sorted(p.name for p in segments.iterdir() if p.is_dir())


def test_a_version_costs_a_segment_of_what_changed(repository: Repository, bundle: Bundle, segments: Path) -> None:
    chains = publish_deltas(repository, 6)
    known: set[str] = set()
    for chain in [[bundle], *chains]:
        stack = open_stack(segments, chain, WIDTH)
        holds(stack, chain)
        new = set(folders(segments)) - known
        assert len(new) == 1
        known |= new
    assert [len(s) for s in stack.deltas] == [len(held([c], WIDTH)) for c in reversed(chains[-1][1:])]
    for chain in chains[::-1]:  # going back builds nothing
        holds(open_stack(segments, chain, WIDTH), chain)
    assert set(folders(segments)) == known


def test_merged_runs_take_the_place_of_their_deltas(repository: Repository, bundle: Bundle, segments: Path) -> None:
    chains = publish_deltas(repository, 13)
    for chain in chains:
        open_stack(segments, chain, WIDTH)
        compact(segments, chain, WIDTH)
        stack = open_stack(segments, chain, WIDTH)
        assert len(stack.deltas) == (len(chain) - 1).bit_count()
        holds(stack, chain)
    assert sum(path.startswith("2-") for path in folders(segments)) == 4  # 1, 2, 4 and 8 deltas
    assert compact(segments, chains[-1], WIDTH) == 0
    before = folders(segments)
    for chain in chains[::-1]:
        holds(open_stack(segments, chain, WIDTH), chain)
    assert folders(segments) == before


def test_sweep_keeps_what_the_kept_versions_use(repository: Repository, bundle: Bundle, segments: Path) -> None:
    chains = publish_deltas(repository, 5)
    for chain in chains:
        open_stack(segments, chain, WIDTH)
    other = write_bundle(repository, random_tables(9))
    gone = ensure_segment(segments, [other], WIDTH)
    key = np.array(list(held([other], WIDTH))[:1], np.int64)
    compact(segments, chains[-1], WIDTH)
    assert sweep(segments, chains[-2:]) == 1 + 4  # deltas 2 to 5 are in their merged run
    assert [name.split(".")[0] for name in folders(segments)] == ["1", "2-5", "6-6"]
    before = folders(segments)
    for chain in chains[-2:]:
        holds(open_stack(segments, chain, WIDTH), chain)
    assert folders(segments) == before
    assert sweep(segments, chains[-2:]) == 0
    assert len([p for p in segments.iterdir() if p.name.endswith(".lock")]) == 3
    assert ask([[gone]], key, WIDTH, linear=True).found[0]  # who has it mapped keeps it


def build_elsewhere(root: Path, segments: Path) -> tuple[str, int]:
    segment = ensure_segment(segments, [Repository(root).open("ranker")], WIDTH)
    return str(segment.path), os.stat(segment.path / CELLS).st_ino


def test_processes_that_start_together_share_one(repository: Repository, bundle: Bundle, segments: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.starmap(build_elsewhere, [(repository.root, segments)] * 4)
    assert len(set(found)) == 1
    assert folders(segments) == [Path(found[0][0]).name]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def garble(path: Path) -> None:
    path.write_bytes(b"{")


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        (CELLS, cut),
        (PILOTS, cut),
        (FILTER, cut),
        (CELLS, flip),
        (PILOTS, flip),
        (FILTER, flip),
        (CELLS, Path.unlink),
        (META, Path.unlink),
        (META, garble),
    ],
)
def test_a_torn_segment_is_refused_and_built_anew(
    repository: Repository, bundle: Bundle, segments: Path, name: str, harm: object
) -> None:
    (chain,) = publish_deltas(repository, 1)
    stack = open_stack(segments, chain, WIDTH)
    path = stack.deltas[0].path
    whole = {p.name: p.read_bytes() for p in path.iterdir()}
    damaged = path.with_name("damaged")
    path.rename(damaged)
    harm(damaged / name)  # type: ignore[operator]
    damaged.rename(path)
    with pytest.raises(BundleError, match=path.name):
        Segment.open(path, json.loads(whole[META])["source"])
    holds(open_stack(segments, chain, WIDTH), chain)
    assert {p.name: p.read_bytes() for p in path.iterdir() if p.name[0] != "."} == {
        name: data for name, data in whole.items() if name[0] != "."
    }
    assert len(folders(segments)) == 2


def test_what_was_checked_is_not_read_again(bundle: Bundle, segments: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ensure_segment(segments, [bundle], WIDTH).path
    source = json.loads((path / META).read_bytes())["source"]

    def read(_: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(Segment, "check", read)
    Segment.open(path, source)
    os.utime(path / CELLS)
    with pytest.raises(AssertionError, match="read again"):
        Segment.open(path, source)


def test_a_segment_of_something_else_is_refused(repository: Repository, bundle: Bundle, segments: Path) -> None:
    path = ensure_segment(segments, [bundle], WIDTH).path
    other = ensure_segment(segments, [write_bundle(repository, random_tables(2))], WIDTH)
    for file in other.path.iterdir():
        os.replace(file, path / file.name)
    holds(open_stack(segments, [bundle], WIDTH), [bundle])


def test_a_stream_of_deltas_that_was_cut_is_refused(repository: Repository, bundle: Bundle, segments: Path) -> None:
    publish_deltas(repository, 4)
    Model.load(repository, "ranker", "3", segments=segments)
    cut(repository.path("ranker", "4") / "tables" / "item.safetensors")
    with pytest.raises(BundleError, match=r"4.*item\.safetensors"):
        Model.load(repository, "ranker", "5", segments=segments)
    repository.path("ranker", "4").rename(repository.root / "away")
    with pytest.raises(BundleError, match="version '4'"):
        Model.load(repository, "ranker", "5", segments=segments)
    assert Model.load(repository, "ranker", "3", segments=segments).version == "3"


def build_within(limit: int, root: Path, segments: Path) -> None:
    """Build where no file may grow beyond `limit` bytes, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        repository = Repository(root)
        open_stack(segments, repository.chain(repository.open("ranker")), WIDTH)
    except NotReady as error:
        os._exit(3 if "cannot be written" in str(error) else 4)
    os._exit(0)


@pytest.mark.parametrize("limit", [0, 100, 4_000, 12_000])
def test_a_full_disk_is_told_and_leaves_nothing(
    repository: Repository, bundle: Bundle, segments: Path, limit: int
) -> None:
    process = multiprocessing.get_context("spawn").Process(target=build_within, args=(limit, repository.root, segments))
    process.start()
    process.join(60)
    assert process.exitcode == 3
    assert [p.name for p in segments.iterdir() if p.suffix != ".lock"] == []
    holds(open_stack(segments, [bundle], WIDTH), [bundle])  # with room it goes on


def build_all(root: Path, segments: Path) -> None:
    repository = Repository(root)
    for version in repository.versions("ranker"):
        chain = repository.chain(repository.open("ranker", version))
        open_stack(segments, chain, WIDTH)
        compact(segments, chain, WIDTH)
        sweep(segments, [chain])


def test_killed_at_any_moment_it_goes_on(repository: Repository, bundle: Bundle, segments: Path) -> None:
    chains = publish_deltas(repository, 8)
    context = multiprocessing.get_context("forkserver")
    rng = random.Random(1)
    for _ in range(12):
        process = context.Process(target=build_all, args=(repository.root, segments))
        process.start()
        deadline, pause = time.monotonic() + 30, rng.uniform(0.0, 0.6)
        while not segments.is_dir() and time.monotonic() < deadline and process.is_alive():
            time.sleep(0.001)
        process.join(pause)
        process.kill()
        process.join()
        for path in segments.iterdir():
            if path.is_dir() and not path.name.startswith("."):
                Segment.open(path, json.loads((path / META).read_bytes())["source"])  # whole, or not there
    holds(open_stack(segments, chains[-1], WIDTH), chains[-1])
    sweep(segments, [chains[-1]])
    assert not [p for p in segments.iterdir() if p.name.startswith(".") and p.is_dir()]

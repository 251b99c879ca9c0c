"""Cache of verified files: verified once while files are unchanged, and again after any change."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from handmade import random_tables, write_bundle

from pipeline.bundle.bundle import Bundle
from pipeline.bundle.verified import NOTES, verify_once
from pipeline.bundle.versions import Repository
from pipeline.errors import BundleError
from pipeline.model.model import Model


class Verifier:
    def __init__(self, note: Path, files: list[Path]) -> None:
        self.note, self.files, self.runs = note, files, 0

    def __call__(self) -> int:
        def verify() -> None:
            self.runs += 1

        verify_once(self.note, self.files, verify)
        return self.runs


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    made = [tmp_path / name for name in ("a", "b")]
    for path in made:
        path.write_bytes(b"12345678")
    return made


def rewritten(path: Path) -> None:
    path.write_bytes(b"87654321")


def rewritten_with_its_old_time(path: Path) -> None:
    before = path.stat()
    rewritten(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.rename(other, path)


@pytest.mark.parametrize("change", [rewritten, rewritten_with_its_old_time, replaced])
def test_files_are_read_once_and_after_a_change(
    tmp_path: Path, files: list[Path], change: Callable[[Path], None]
) -> None:
    verifier = Verifier(tmp_path / "note", files)
    assert (verifier(), verifier()) == (1, 1)
    change(files[1])
    assert (verifier(), verifier()) == (2, 2)


def test_a_torn_or_foreign_note_counts_for_nothing(tmp_path: Path, files: list[Path]) -> None:
    verifier = Verifier(tmp_path / "note", files)
    verifier()
    whole = verifier.note.read_bytes()
    for found in (whole[:-3], whole.replace(b'["', b'["another-boot', 1), b""):
        verifier.note.write_bytes(found)
        runs = verifier.runs
        assert (verifier(), verifier()) == (runs + 1, runs + 1)


def test_what_failed_is_not_noted_and_a_note_that_cannot_be_kept_costs_reading_again(
    tmp_path: Path, files: list[Path]
) -> None:
    def fail() -> None:
        raise BundleError("damaged", "a")

    for _ in range(2):
        with pytest.raises(BundleError):
            verify_once(tmp_path / "note", files, fail)
    verifier = Verifier(tmp_path / "nowhere" / "note", files)
    assert (verifier(), verifier()) == (1, 2)


def verify_slowly(folder: str, log: str) -> None:
    def verify() -> None:
        with open(log, "a") as file:
            file.write("x")

    verify_once(Path(folder) / "note", [Path(folder) / "a"], verify)


def test_of_processes_that_come_together_one_reads(tmp_path: Path, files: list[Path]) -> None:
    context = multiprocessing.get_context("spawn")
    log = tmp_path / "log"
    several = [context.Process(target=verify_slowly, args=(str(tmp_path), str(log))) for _ in range(4)]
    for process in several:
        process.start()
    for process in several:
        process.join(60)
        assert process.exitcode == 0
    assert log.read_text() == "x"


def test_a_model_that_was_verified_is_refused_once_its_bundle_changes(
    repository: Repository, segments: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_bundle(repository, random_tables(1))
    Model.load(repository, "ranker", segments=segments)
    assert (segments / "ranker" / NOTES / "1").is_file()
    read: list[Path] = []
    plain = Bundle._check_contents
    monkeypatch.setattr(Bundle, "_check_contents", lambda self: (read.append(self.path), plain(self)))
    Model.load(repository, "ranker", segments=segments)
    assert read == []
    for name in ("dense.onnx", "tables/item.safetensors"):
        path = bundle.path / name
        good = path.read_bytes()
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        for _ in range(2):
            with pytest.raises(BundleError, match=name):
                Model.load(repository, "ranker", "1", segments=segments)
        path.write_bytes(good)
        Model.load(repository, "ranker", "1", segments=segments)

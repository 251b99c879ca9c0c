"""Segments of a version: one of its base, and a few of its deltas, which a lookup searches newest first.

Every delta becomes a small segment when a version with it is first loaded, so that the cost of loading is proportional to
the change. Later, at low priority, runs of deltas are merged: run k of a chain holds the 2^k deltas from a multiple of
2^k on (Bentley and Saxe 1980, the logarithmic method). So n deltas need no more than log2(n) + 1 segments, each delta is
merged log2(n) times, and the versions of a chain share all but their last segments. A segment is named by its source and
never changes: a second build gives the same bytes, an older version still finds its segments, and a build that was killed
leaves no segment.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pipeline.bundle.bundle import MANIFEST, MANIFEST_BYTES, Bundle
from pipeline.bundle.files import read
from pipeline.bundle.verified import NOTES
from pipeline.disk import sync, writing
from pipeline.embedding.segment.build import build_segment
from pipeline.embedding.segment.file import Segment
from pipeline.errors import BundleError

__all__ = ["Stack", "compact", "ensure_segment", "open_stack", "sweep"]

log = logging.getLogger(__name__)


class Stack(NamedTuple):
    """Segments of one width of a version."""

    base: Segment
    deltas: tuple[Segment, ...]
    """Newest first."""


def open_stack(folder: Path, chain: Sequence[Bundle], width: int) -> Stack:
    """Map the segments of a version; those of single bundles are built if they do not exist.

    Args:
        folder: of the segments of this bundle's name.
        chain: base first, then the deltas in order (`Repository.chain`).
        width: of the tables.

    Raises:
        BundleError: a bundle that a segment must be built from is damaged or breaks its format.
        NotReady: the disk is full or fails; no partial segment remains, and the call can be repeated.
    """
    merged: dict[Path, Segment] = {}

    def usable(run: Sequence[Bundle]) -> bool:
        path = _path(folder, run, width)
        segment = _opened(path, run)
        if segment is not None:
            merged[path] = segment
        return segment is not None

    base = ensure_segment(folder, chain[:1], width)
    runs = _cover(chain[1:], usable)
    deltas = [merged.get(_path(folder, run, width)) or ensure_segment(folder, run, width) for run in runs]
    return Stack(base, tuple(reversed(deltas)))


def compact(folder: Path, chain: Sequence[Bundle], width: int) -> int:
    """Build the merged segments of a version. Returns the number built. Called off the request path.

    Raises:
        BundleError, NotReady: as `open_stack`.
    """
    built = 0
    for run in _cover(chain[1:], lambda run: True):
        if len(run) > 1 and not _path(folder, run, width).is_dir():
            ensure_segment(folder, run, width)
            built += 1
    return built


def ensure_segment(folder: Path, bundles: Sequence[Bundle], width: int) -> Segment:
    """The segment of all tables of one width, later bundles over earlier ones; built if it does not exist.

    Several processes may call it at once: one builds, the others wait for it and map the same pages.

    Args:
        folder: of the segments of this bundle's name.
        bundles: one base, or consecutive deltas, oldest first.
        width: of the tables.

    Raises:
        BundleError, NotReady: as `open_stack`.
    """
    path = _path(folder, bundles, width)
    found = _opened(path, bundles)
    if found is not None:
        return found
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            found = _opened(path, bundles)  # another process may have been first
            if found is not None:
                return found
            _clear(path)
            staging = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
            try:
                build_segment(staging, bundles, _source(bundles), width)
                if path.exists():  # it was refused above
                    os.rename(path, path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}"))
                os.rename(staging, path)
            finally:
                _clear(path)
            sync(folder)
            return Segment.open(path, _source(bundles))


def sweep(folder: Path, chains: Iterable[Sequence[Bundle]], spared: int = 0) -> int:
    """Remove the segments of a bundle name that none of these versions uses, and the remains of killed builds. Returns the
    number of segments removed. Processes that map one keep it.

    Args:
        spared: version up to which all segments stay, since it is in use and nothing tells what it builds on; 0: none.
    """
    if not folder.is_dir():
        return 0
    keep: set[str] = set()
    noted: set[str] = set()
    for chain in chains:
        noted |= {bundle.path.name for bundle in chain}
        for width in {info.width for info in chain[-1].manifest.tables.values()}:
            runs = _cover(chain[1:], partial(_is_there, folder, width))
            keep |= {_path(folder, run, width).name for run in (chain[:1], *runs)}
    removed = 0
    names = {p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")}
    locks = {p.name[1 : -len(".lock")] for p in folder.glob(".*.lock")}
    for name in sorted(names | locks):
        with _locked(folder / name, wait=False) as held:
            if not held:
                continue  # it is being built
            _clear(folder / name)
            if name in keep or _newest(name) <= spared:
                continue
            if name in names:
                # Renamed first: a reader finds the whole segment or none.
                gone = folder / f".{name}.gone"
                os.rename(folder / name, gone)
                shutil.rmtree(gone, ignore_errors=True)
                removed += 1
            (folder / f".{name}.lock").unlink()
    for note in (folder / NOTES).glob("*"):
        if note.name not in noted and not (note.name.isdecimal() and int(note.name) <= spared):
            note.unlink(missing_ok=True)
    return removed


def _newest(name: str) -> int:
    """The newest version in a segment, by its name."""
    last = name.partition(".")[0].rpartition("-")[2]
    return int(last) if last.isdecimal() else 0


def _cover(deltas: Sequence[Bundle], usable: Callable[[Sequence[Bundle]], bool]) -> list[Sequence[Bundle]]:
    """The deltas as consecutive runs, each the longest aligned one that is usable; a single delta always is."""
    runs = []
    at = 0
    while at < len(deltas):
        size = at & -at or 1 << len(deltas).bit_length()
        while size > 1 and (at + size > len(deltas) or not usable(deltas[at : at + size])):
            size //= 2
        runs.append(deltas[at : at + size])
        at += size
    return runs


def _is_there(folder: Path, width: int, bundles: Sequence[Bundle]) -> bool:
    return _path(folder, bundles, width).is_dir()


def _path(folder: Path, bundles: Sequence[Bundle], width: int) -> Path:
    first, last = bundles[0].manifest, bundles[-1].manifest
    span = first.version if first.base is None else f"{first.version}-{last.version}"
    return folder / f"{span}.{width}.{_source(bundles)[:16]}"


def _source(bundles: Sequence[Bundle]) -> str:
    digest = hashlib.sha256()
    for bundle in bundles:
        digest.update(hashlib.sha256(read(bundle.path, MANIFEST, MANIFEST_BYTES)).digest())
    return digest.hexdigest()


def _opened(path: Path, bundles: Sequence[Bundle]) -> Segment | None:
    if not path.is_dir():
        return None
    try:
        return Segment.open(path, _source(bundles))
    except BundleError as error:
        log.warning("rebuilding a segment: %s", error)
        return None


@contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Lock of a segment, a file beside it; False when another process holds it and `wait` is false."""
    lock = path.with_name(f".{path.name}.lock")
    while True:
        with open(lock, "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            try:
                same = os.fstat(file.fileno()).st_ino == lock.stat().st_ino
            except FileNotFoundError:
                same = False
            if same:  # else `sweep` removed it meanwhile, and it locks out no other process
                yield True
                return


def _clear(path: Path) -> None:
    """Remove the remains of builds of this segment; the caller holds the lock."""
    for left in path.parent.glob(f".{path.name}.*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)

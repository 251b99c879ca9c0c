"""Remote repository of bundles, shared by machines, on any file system of fsspec (s3, gs, az, file, ...).

    <url>/<name>/<version>/...    as in a local repository; written file by file, its manifest last
    <url>/<name>/.versions/<n>    a mark for every number that was reserved

A version exists once its manifest does, so no reader sees part of one. On each machine a local repository notes the small
manifests of all versions (`<name>/.remote/`), so that choosing one needs no download, and holds the files of those that
were opened. Only a manifest that can be read, and that is of its version, is noted; any other is read again at every
refresh, since a tool may still be copying it. One process of the machine fetches, the others wait for it; a download that was killed is resumed. A version that
was removed at the URL is removed locally too.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from pipeline.bundle.bundle import MANIFEST, MANIFEST_BYTES, Manifest, parse_manifest, read_manifest, sha256_of
from pipeline.bundle.files import read
from pipeline.bundle.versions import Repository, same
from pipeline.disk import replacing, sync, writing
from pipeline.errors import BatonError, BundleError, InvalidInput, NotFound, NotReady

__all__ = ["RemoteRepository"]

REFRESH_S = 2.0
"""Seconds for which a machine uses the last listing."""
RESERVE_BYTES = 256 << 20
"""Bytes of the disk that a download leaves free."""
_BLOCK_BYTES = 8 << 20
MOST_NAMES_COUNT, MOST_VERSIONS = 10_000, 100_000
"""Bundles at a URL, and numbers of one, that are looked at."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}")
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")

log = logging.getLogger(__name__)


class RemoteRepository(Repository):
    """Repository at a URL, with a local copy.

    Args:
        root: this machine's copy; only machines of one installation may share it.
        url: for fsspec, for example s3://bucket/bundles.
        options: of the file system (`storage_options` of fsspec).
        refresh: seconds for which a listing is used.
        reserve_bytes: bytes that a download leaves free on the disk.
    """

    def __init__(
        self,
        root: Path,
        url: str,
        options: Mapping[str, Any] | None = None,
        *,
        refresh: float = REFRESH_S,
        reserve_bytes: int = RESERVE_BYTES,
    ) -> None:
        super().__init__(root)
        self.url = url.rstrip("/")
        try:
            self._fs, self._base = fsspec.core.url_to_fs(self.url, **{"use_listings_cache": False, **(options or {})})
        except (ImportError, ValueError) as error:
            raise InvalidInput(f"bundles {url!r}: {error}", "bundles") from None
        self._refresh_after = refresh
        self._reserve_bytes = reserve_bytes
        self._refreshing = threading.Lock()
        self._refreshed = False
        self._complaint = ""
        self._sound: set[Path] = set()  # notes that this process has read
        self._passed_over: dict[str, str] = {}  # place of a manifest -> fault that was logged

    # Listing.

    def names(self) -> list[str]:
        self._refresh_old()
        return super().names()

    def versions(self, name: str) -> list[str]:
        self._refresh_old()
        known = {path.stem for path in self._known(name).glob("*.json") if path.stem.isdecimal()}
        return sorted(known | set(self.held(name)), key=int)

    def manifest(self, name: str, version: str) -> Manifest:
        path = self.path(name, version) / MANIFEST
        if not path.is_file():
            path = self._known(name) / f"{version}.json"
        if not path.is_file():
            self.refresh()
        if path.is_file():
            return same(read_manifest(path), name, version, str(path))
        if (fault := self._passed_over.get(self._place(name, version))) is not None:
            raise BundleError(fault, MANIFEST)
        raise NotFound(f"bundle {name!r} has no version {version!r} at {self.url}; it has {self.versions(name)}")

    # Fetching.

    def fetch(self, name: str, version: str) -> None:
        """Download the files of a version, unless they are on this machine; each is verified.

        Raises:
            NotFound: there is no such version.
            NotReady: the URL does not answer or the disk is full.
            BundleError: a downloaded file does not match the manifest.
        """
        target = self.path(name, version)
        if (target / MANIFEST).is_file():
            return
        manifest = self.manifest(name, version)
        locks = self.root / ".locks"
        with writing(locks):
            locks.mkdir(parents=True, exist_ok=True)
        with open(locks / f"{name}-{version}", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (target / MANIFEST).is_file():  # another process has fetched it meanwhile
                return
            staging = target.with_name(f".{version}.part")
            with writing(staging):
                staging.mkdir(parents=True, exist_ok=True)
                note = self._known(name) / f"{version}.json"
                text = read(note.parent, note.name, MANIFEST_BYTES)
                try:
                    self._fill(staging, manifest)
                except BundleError:
                    note.unlink(missing_ok=True)  # the manifest may be what was wrong: it is read anew
                    raise
                (staging / MANIFEST).write_bytes(text)
                for path in (*sorted(staging.rglob("*")), staging):
                    sync(path)
                os.rename(staging, target)
                sync(target.parent)
            log.info("fetched version %s of bundle %s from %s", version, name, self.url)

    def _fill(self, staging: Path, manifest: Manifest) -> None:
        """Download every file that is missing or incomplete."""
        missing = {}
        for name, info in manifest.files.items():
            path = staging / name
            if not (path.is_file() and path.stat().st_size == info.bytes and sha256_of(path) == info.sha256):
                path.unlink(missing_ok=True)
                missing[name] = info
        needed, free = sum(info.bytes for info in missing.values()), shutil.disk_usage(staging).free
        if needed + self._reserve_bytes > free:
            raise NotReady(
                f"version {manifest.version} of bundle {manifest.name} needs {needed:,} bytes in {self.root}, where "
                f"{free:,} are free and {self._reserve_bytes:,} are kept: make room, or set another home"
            )
        for name, info in missing.items():
            path = staging / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with (
                self._remote(f"read {name} of {manifest.name}/{manifest.version}"),
                self._opened(manifest.name, manifest.version, name) as stream,
                open(path, "wb") as file,
            ):
                _copy(stream, file, info.bytes)
            if path.stat().st_size != info.bytes or sha256_of(path) != info.sha256:
                path.unlink()
                raise BundleError(
                    f"{self.url}/{manifest.name}/{manifest.version}: {name} does not match its SHA-256 in the manifest: "
                    "it was damaged there or on its way",
                    name,
                )

    # Publishing.

    def reserve(self, name: str) -> str:
        self.refresh()
        folder = f"{self._base}/{name}/.versions"
        with self._remote(f"reserve a version of {name}"):
            self._fs.makedirs(folder, exist_ok=True)
            taken = {int(mark) for mark in _decimals(self._fs.ls(folder, detail=False))}
            while True:
                version = super().reserve(name)
                if int(version) not in taken and self._mark(f"{folder}/{version}"):
                    return version

    def publish(self, staging: Path, manifest: Manifest) -> None:
        """Upload a complete version, its manifest last and by a rename.

        Raises:
            NotReady: it cannot be written now.
        """
        folder = f"{self._base}/{manifest.name}/{manifest.version}"
        with self._remote(f"write {manifest.name}/{manifest.version}"):
            for name in manifest.files:
                self._fs.makedirs(f"{folder}/{name}".rpartition("/")[0], exist_ok=True)
                self._fs.put_file(str(staging / name), f"{folder}/{name}")
            self._fs.makedirs(folder, exist_ok=True)
            hidden = f"{folder}/.{MANIFEST}.{uuid.uuid4().hex}"
            self._fs.put_file(str(staging / MANIFEST), hidden)
            self._fs.mv(hidden, f"{folder}/{MANIFEST}")
        self._note(manifest.name, manifest.version, (staging / MANIFEST).read_bytes())

    def _mark(self, path: str) -> bool:
        try:
            self._fs.pipe_file(path, b"", mode="create")
        except FileExistsError:
            return False
        return True

    # Removing.

    def prune(
        self, name: str, keep: Collection[str], *, unfinished_before: float, unused: Collection[str] = ()
    ) -> list[str]:
        """As `Repository.prune`, at the URL and locally; other machines follow at their next refresh."""
        removed = self._unneeded(name, keep, unused)
        with self._remote(f"remove versions of {name}"):
            for version in removed:
                folder = f"{self._base}/{name}/{version}"
                with suppress(FileNotFoundError):
                    self._fs.rm_file(f"{folder}/{MANIFEST}")  # first, so that no machine starts to fetch it
                with suppress(FileNotFoundError):
                    self._fs.rm(folder, recursive=True)
        self._forget(name, removed, unfinished_before)
        return removed

    def _forget(self, name: str, versions: Collection[str], unfinished_before: float) -> None:
        for version in versions:
            (self._known(name) / f"{version}.json").unlink(missing_ok=True)
        self._remove(name, set(versions) & set(self.held(name)), unfinished_before)

    # Refreshing.

    def refresh(self) -> None:
        """List the URL now. If it does not answer, the known versions stay, and the error is logged once.

        One process of the machine lists for all; the others wait for it.
        """
        with self._refreshing:
            self.root.mkdir(parents=True, exist_ok=True)
            with open(self.root / ".listing", "ab") as lock:
                began = time.time()
                fcntl.flock(lock, fcntl.LOCK_EX)
                if began < self._listed() <= time.time():  # while we waited
                    return
                try:
                    self._list()
                    self._complaint = ""
                except BatonError as error:
                    if str(error) != self._complaint:
                        self._complaint = str(error)
                        log.error("%s; going on with what is known", error)
                finally:
                    (self.root / ".listed").touch()

    def _listed(self) -> float:
        """Unix time of the last refresh by any process of this machine."""
        try:
            return (self.root / ".listed").stat().st_mtime
        except OSError:
            return 0.0

    def _refresh_old(self) -> None:
        """Refresh an old listing: the first time at once, later in a thread, so that the caller does not wait."""
        if abs(time.time() - self._listed()) <= self._refresh_after:
            return
        if not self._refreshed:
            self._refreshed = True
            self.refresh()
        elif not self._refreshing.locked():
            threading.Thread(target=self.refresh, name="bundles-refresh", daemon=True).start()

    def _list(self) -> None:
        folders: list[str] = []
        with self._remote("list"), suppress(FileNotFoundError):  # there is no folder before the first version
            folders = self._fs.ls(self._base, detail=False)
        problem: BatonError | None = None
        names = [last for last in map(_last, folders) if _NAME.fullmatch(last)]
        if len(names) > MOST_NAMES_COUNT:
            raise BundleError(
                f"{self.url} holds {len(names):,} bundles; at most {MOST_NAMES_COUNT:,} are looked at", "bundles"
            )
        for name in names:
            try:
                with self._remote(f"list {name}"):
                    self._list_versions(name)
            except BatonError as error:  # the other bundles are listed all the same
                problem = problem or error
        if problem is not None:
            raise problem

    def _list_versions(self, name: str) -> None:
        known = self._known(name)
        listed = set(_decimals(self._fs.ls(f"{self._base}/{name}", detail=False)))
        if len(listed) > MOST_VERSIONS:
            raise BundleError(
                f"{self.url}/{name} has {len(listed):,} versions; at most {MOST_VERSIONS:,} are looked at", name
            )
        for version in sorted(listed, key=int):
            if not self._noted(name, version):
                with suppress(FileNotFoundError):  # it is being written, or was never completed
                    try:
                        with self._opened(name, version, MANIFEST) as stream:
                            text = stream.read(MANIFEST_BYTES + 1)  # one more: too long is not taken for whole
                    except BundleError as error:
                        self._pass_over(name, version, error)
                    else:
                        self._note(name, version, text)
        seen = {path.stem for path in known.glob("*.json")}
        newest = max(map(int, listed), default=0)
        gone = {version for version in seen - listed if version.isdecimal() and int(version) < newest}
        if gone:
            self._forget(name, gone, unfinished_before=0.0)

    def _noted(self, name: str, version: str) -> bool:
        """Whether there is a note of a version's manifest; one that is not right is removed."""
        note = self._known(name) / f"{version}.json"
        if not note.exists():
            return False
        if note not in self._sound:
            try:
                self._check(name, version, read(note.parent, note.name, MANIFEST_BYTES))
            except BundleError:
                note.unlink(missing_ok=True)
                return False
            self._sound.add(note)
        return True

    def _note(self, name: str, version: str, text: bytes) -> None:
        """Note a manifest if it is whole and of this version; else say once why it is passed over."""
        try:
            self._check(name, version, text)
        except BundleError as error:
            self._pass_over(name, version, error)
            return
        self._passed_over.pop(self._place(name, version), None)
        with replacing(self._known(name) / f"{version}.json") as staging:
            staging.write_bytes(text)

    def _pass_over(self, name: str, version: str, error: BundleError) -> None:
        place = self._place(name, version)
        if self._passed_over.get(place) != str(error):
            self._passed_over[place] = str(error)
            log.error("version %s of bundle %s is passed over until its manifest is right: %s", version, name, error)

    def _check(self, name: str, version: str, text: bytes) -> None:
        place = self._place(name, version)
        same(parse_manifest(text, place), name, version, place)

    def _place(self, name: str, version: str) -> str:
        return f"{self.url}/{name}/{version}/{MANIFEST}"

    def _opened(self, name: str, version: str, file: str) -> Any:
        """A file of a version, open for reading; a pipe, for which there may be no writer ever, is not opened."""
        place = f"{self._base}/{name}/{version}/{file}"
        if (kind := self._fs.info(place)["type"]) != "file":
            raise BundleError(f"{self.url}/{name}/{version}: {file} is no regular file but of type {kind!r}", file)
        return self._fs.open(place, "rb", block_size=_BLOCK_BYTES)

    def _known(self, name: str) -> Path:
        return self.root / name / ".remote"

    @contextmanager
    def _remote(self, what: str) -> Iterator[None]:
        """Translate errors of file systems, each of which has its own, to `NotReady`."""
        try:
            yield
        except BatonError:
            raise
        except Exception as error:
            raise NotReady(f"{self.url}: cannot {what}: {type(error).__name__}: {error}") from error


def _last(entry: str) -> str:
    return entry.rstrip("/").rpartition("/")[2]


def _decimals(entries: Collection[str]) -> list[str]:
    return [last for last in map(_last, entries) if _NUMBER.fullmatch(last)]


def _copy(stream: BinaryIO, file: BinaryIO, most_bytes: int) -> None:
    """Copy a file whose length is known: one that is longer is not copied to its end."""
    left = most_bytes + 1
    while left and (block := stream.read(min(_BLOCK_BYTES, left))):
        file.write(block)
        left -= len(block)

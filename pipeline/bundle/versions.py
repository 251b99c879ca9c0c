"""Repository of bundles: `<root>/<name>/<version>/`, with version numbers that rise per name and are never used twice.

Every reserved number leaves a mark in `<root>/<name>/.versions/`; the highest are never removed. A repository that
machines share at a URL is in `pipeline.bundle.remote`.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from pipeline.bundle.bundle import MANIFEST, Bundle, Manifest, read_manifest
from pipeline.disk import writing
from pipeline.errors import BundleError, Conflict, NotFound

__all__ = ["Repository", "is_name", "is_number", "same"]

KEPT_MARKS = 1000
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}")

log = logging.getLogger(__name__)


def is_number(text: str) -> bool:
    """Whether a text is a version number."""
    return _NUMBER.fullmatch(text) is not None


def is_name(text: str) -> bool:
    """Whether a text is a name of a bundle."""
    return _NAME.fullmatch(text) is not None


def same(manifest: Manifest, name: str, version: str, place: str) -> Manifest:
    """A manifest that was found where a version of a bundle is: it must say that it is of this one.

    Raises:
        BundleError: it says another.
    """
    if (manifest.name, manifest.version) != (name, version):
        raise BundleError(
            f"{place} says that it is {manifest.name} version {manifest.version}: take a bundle in by `baton bundle publish`, "
            "which writes the number",
            MANIFEST,
        )
    return manifest


class Repository:
    """Bundles of one installation under one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """Bundle names, sorted."""
        if not self.root.is_dir():
            return []
        return sorted(p.name for p in self.root.iterdir() if p.is_dir() and not p.name.startswith("."))

    def versions(self, name: str) -> list[str]:
        """Complete versions of a bundle, oldest first, including those that the gate refused."""
        return self.held(name)

    def held(self, name: str) -> list[str]:
        """The versions whose files are on this machine, oldest first."""
        folder = self.root / name
        if not folder.is_dir():
            return []
        found = [int(p.name) for p in folder.iterdir() if _NUMBER.fullmatch(p.name) and (p / MANIFEST).is_file()]
        return [str(v) for v in sorted(found)]

    def damaged(self, name: str) -> dict[str, str]:
        """Versions on this machine that are there and cannot be opened, with the reason; their files are not hashed."""
        folder, found = self.root / name, {}
        for version in (
            sorted((p.name for p in folder.iterdir() if _NUMBER.fullmatch(p.name)), key=int) if folder.is_dir() else ()
        ):
            try:
                if not (folder / version / MANIFEST).is_file():
                    raise BundleError(
                        f"{folder / version} has no {MANIFEST}: bring it back, or remove the folder", MANIFEST
                    )
                same(Bundle.open(folder / version).manifest, name, version, str(folder / version / MANIFEST))
            except BundleError as error:
                found[version] = str(error)
            except OSError as error:
                found[version] = f"{folder / version} cannot be read: {error.strerror}"
        return found

    def manifest(self, name: str, version: str) -> Manifest:
        """The manifest of a version; its other files are not checked.

        Raises:
            NotFound: no such name or version.
            BundleError: it is damaged, or the manifest of another version.
        """
        path = self.path(name, version) / MANIFEST
        if not (version.isdecimal() and path.is_file()):
            raise NotFound(f"bundle {name!r} has no version {version!r}; it has {self.versions(name) or 'none'}")
        return same(read_manifest(path), name, version, str(path))

    def fetch(self, name: str, version: str) -> None:
        """Ensure that the files of a version are on this machine; here they always are.

        Raises:
            NotFound: there is no such version.
        """
        self.manifest(name, version)

    def publish(self, staging: Path, manifest: Manifest) -> None:
        """Called for a version that is complete in folder `staging`, before the rename; a local repository does nothing."""

    def path(self, name: str, version: str) -> Path:
        return self.root / name / version

    def open(self, name: str, version: str = "", *, verify: bool = False, notes: Path | None = None) -> Bundle:
        """Open a version, `latest` when `version` is empty; `verify` and `notes` as `Bundle.open`.

        Raises:
            NotFound: no such name or version.
            BundleError: it is damaged.
        """
        if not version:
            version = self.latest(name)
        self.fetch(name, version)
        bundle = Bundle.open(self.path(name, version), verify=verify, notes=notes)
        same(bundle.manifest, name, version, str(bundle.path / MANIFEST))
        return bundle

    def latest(self, name: str) -> str:
        """The newest version that may serve; see `newest`."""
        return self.newest(name)[-1].manifest.version

    def newest(
        self, name: str, *, verify: bool = False, notes: Path | None = None, without: Collection[str] = ()
    ) -> list[Bundle]:
        """The chain (`chain`) of the newest version that may serve and is none of `without`. A newer version that is damaged, or builds on a damaged
        one, is skipped, and the reason logged; `verify` and `notes` as `Bundle.open`, of all links.

        Raises:
            NotFound: none may serve.
            BundleError: all that may are damaged; the fault of the newest.
        """
        faults: list[BundleError | NotFound] = []
        for version in reversed(self.versions(name)):
            if version in without:
                continue
            try:
                if self.manifest(name, version).servable:
                    bundle = self.open(name, version, verify=verify, notes=notes)
                    return self.chain(bundle, verify=verify, notes=notes)
            except (BundleError, NotFound) as error:
                log.error("version %s of bundle %s is passed over: %s", version, name, error)
                faults.append(error)
        if faults:
            raise faults[0]
        raise NotFound(f"bundle {name!r} has no version that may serve; known names: {self.names() or 'none'}")

    def chain(self, bundle: Bundle, *, verify: bool = False, notes: Path | None = None) -> list[Bundle]:
        """The bundles whose tables make up a version, base first: itself, or its base and deltas in order.

        Args:
            verify: also verify the files of the versions that it builds on; else they are verified when a segment is built
                from them, which most loads do not need.
            notes: as `Bundle.open`.

        Raises:
            NotFound: a link is missing.
            BundleError: one is damaged.
        """
        manifest = bundle.manifest
        if manifest.base is None:
            return [bundle]
        return [*(self._link(manifest.name, v, verify, notes) for v in (manifest.base, *manifest.deltas[:-1])), bundle]

    def _link(self, name: str, version: str, verify: bool, notes: Path | None) -> Bundle:
        if verify:
            return self.open(name, version, verify=True, notes=notes)
        self.fetch(name, version)
        return Bundle(self.path(name, version), self.manifest(name, version))

    def reserve(self, name: str) -> str:
        """A new version number, higher than all earlier ones of this name, also across crashes and processes.

        Raises:
            NotReady: the disk is full or fails.
        """
        marks = self._marks(name)
        with writing(marks):
            marks.mkdir(parents=True, exist_ok=True)
        taken = [int(v) for v in self.versions(name)] + [
            int(p.name) for p in marks.iterdir() if _NUMBER.fullmatch(p.name)
        ]
        version = max(taken, default=0) + 1
        while True:
            with writing(marks / str(version)):
                try:
                    (marks / str(version)).touch(exist_ok=False)
                except FileExistsError:
                    version += 1
                else:
                    return str(version)

    def take(self, name: str, version: str) -> None:
        """Reserve a number that the caller has chosen.

        Raises:
            Conflict: it was given to another publisher, or there is such a version.
            NotReady: the disk is full or fails.
        """
        mark = self._marks(name) / version
        if not self.path(name, version).exists():
            with writing(mark):
                mark.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileExistsError):
                    mark.touch(exist_ok=False)
                    return
        raise Conflict(
            f"number {version} of bundle {name!r} in {self.root} is taken: leave it to the repository to give one"
        )

    def give_back(self, name: str, version: str) -> None:
        """Undo `take` where nothing was written under the number."""
        if not self.path(name, version).exists():
            (self._marks(name) / version).unlink(missing_ok=True)

    def prune(
        self, name: str, keep: Collection[str], *, unfinished_before: float, unused: Collection[str] = ()
    ) -> list[str]:
        """Remove versions that are not in `keep` and on which none of those builds, and old marks. Versions newer than all in
        `keep` stay: they appeared after the caller's decision.

        A version disappears as a whole, and processes that have mapped its files keep them. The remains of a publisher
        that was killed are removed too.

        Args:
            unfinished_before: Unix time in seconds; an unfinished version that was started before it counts as abandoned.
            unused: versions of `keep` that nobody uses; where one is damaged it stays, and nothing that it may build on. What
                one in use may build on stays: that on which the whole version before it builds, and that version.

        Returns:
            The versions removed, oldest first.
        """
        removed = self._unneeded(name, keep, unused)
        self._remove(name, removed, unfinished_before)
        return removed

    def _unneeded(self, name: str, keep: Collection[str], unused: Collection[str]) -> list[str]:
        present = self.versions(name)
        needed = set(keep)
        for version in needed & set(present):
            built_on = self._built_on(name, version)
            if built_on is None and version not in unused:
                # It builds on its own base, which nothing tells, or on what the one before it builds on.
                before = [v for v in present if int(v) < int(version)]
                whole = ((v, found) for v in reversed(before) if (found := self._built_on(name, v)) is not None)
                last, chain = next(whole, ("", frozenset[str]()))
                built_on = chain | {last} - {""}
            needed |= built_on or frozenset()
        newest = max(map(int, keep), default=0)
        return [version for version in present if version not in needed and int(version) < newest]

    def _built_on(self, name: str, version: str) -> frozenset[str] | None:
        """Versions that a version's tables are made of beside itself; None: it is damaged."""
        try:
            manifest = self.manifest(name, version)
        except BundleError:
            return None
        return frozenset({*manifest.deltas, *([manifest.base] if manifest.base else [])})

    def _remove(self, name: str, versions: Collection[str], unfinished_before: float) -> None:
        folder = self.root / name
        for version in versions:
            os.rename(folder / version, folder / f".{version}.gone")
        for path in folder.iterdir() if folder.is_dir() else ():
            hidden = path.name.startswith(".") and path.name[1:].split(".")[0].isdecimal()
            with suppress(FileNotFoundError):  # finished meanwhile
                if hidden and (path.suffix == ".gone" or path.stat().st_mtime < unfinished_before):
                    shutil.rmtree(path, ignore_errors=True)
        # A publisher that listed the marks earlier must still find those set since, so more than the highest stay.
        marks = [int(p.name) for p in self._marks(name).iterdir()] if versions and self._marks(name).is_dir() else []
        for number in sorted(marks)[:-KEPT_MARKS]:
            (self._marks(name) / str(number)).unlink(missing_ok=True)

    def _marks(self, name: str) -> Path:
        return self.root / name / ".versions"

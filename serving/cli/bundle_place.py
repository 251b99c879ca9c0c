"""Place of a bundle that a command makes: a directory that the caller names, or the next version in the repository.

A directory NAME/N is version N of bundle NAME: what lies in a repository under a number is served under that number, so its
manifest says the same. Read next: `pipeline.bundle.versions`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from pipeline.bundle.bundle import Bundle
from pipeline.bundle.versions import Repository, is_name, is_number
from pipeline.errors import BundleError, InvalidInput
from serving.config import Config
from serving.wiring.bundles import open_repository

__all__ = ["BundlePlace", "ConfigFile", "Out", "place_of"]

Out = Annotated[
    Path | None,
    typer.Option(
        help="Directory of the bundle; must not exist yet. Default: the next version of --name in the repository"
    ),
]
ConfigFile = Annotated[Path, typer.Option("--config", help="Configuration file whose repository takes the version")]


@dataclass(frozen=True, slots=True)
class BundlePlace:
    """Where a bundle is written.

    Args:
        target: a repository, which gives the next number; or the directory that becomes the bundle.
        name: of the bundle.
        number: that the directory says; None: it says none.
        given: number of the version in the making, once it has one.
    """

    target: Repository | Path
    name: str
    number: str | None = None
    given: list[str] = field(default_factory=list)

    @contextmanager
    def held(self) -> Iterator[None]:
        """The number that the directory says is this command's, from before the work on; work that fails gives it back.

        Raises:
            Conflict: it was given to another publisher.
        """
        if self.number is None or not isinstance(self.target, Path):
            yield
            return
        repository = self._repository
        repository.take(self.name, self.number)
        try:
            yield
        except BaseException:
            repository.give_back(self.name, self.number)
            raise

    @contextmanager
    def staged(self) -> Iterator[Path]:
        """Directory in which a bundle is made that says version 1, to be given to `put`: the one that the caller named, or one
        beside the place of the version, which goes when the work is done."""
        if isinstance(self.target, Path) and self.number is None:
            yield self.target
            return
        repository = self._repository
        self.given.append(self.number or repository.reserve(self.name))
        place = repository.path(self.name, self.given[-1])
        place.parent.mkdir(parents=True, exist_ok=True)
        # Named as an unfinished version, so that what a killed command leaves is removed with those.
        with TemporaryDirectory(prefix=f".{place.name}.import-", dir=place.parent) as folder:
            try:
                yield Path(folder) / "bundle"
            except BaseException:
                repository.give_back(self.name, place.name)
                raise

    def put(self, bundle: Bundle, now_ms: int) -> Bundle:
        """The bundle made in `staged`, as the version that it is to be."""
        if not self.given:
            return bundle
        from transfer.bundles.take_in import take_in

        return take_in(bundle, self._repository, self.name, now_ms=now_ms, version=self.given[-1])

    @property
    def _repository(self) -> Repository:
        if isinstance(self.target, Repository):
            return self.target
        return Repository(self.target.absolute().parent.parent)

    def written(self, bundle: Bundle) -> str:
        """Where a bundle was written, for people: its directory, as the caller named it."""
        return str(self.target if isinstance(self.target, Path) else bundle.path)


def place_of(out: Path | None, name: str, config: Path, default: str) -> BundlePlace:
    """The place that `--out` and `--name` mean. Call it before the work, so that a wrong place costs nothing.

    Args:
        config: configuration file of the repository, read where `out` is None.
        default: name of a bundle in a directory that says none.

    Raises:
        BundleError: the directory exists.
        InvalidInput: neither is given, or they contradict each other.
    """
    if out is None:
        if not name:
            raise InvalidInput(
                "say by --name which bundle this is a version of, or by --out where it is written", "name"
            )
        if not config.exists():
            raise InvalidInput(
                f"there is no {config}, which names the repository: say it by --config, or a directory by --out",
                "config",
            )
        return BundlePlace(open_repository(Config.load(config)), _checked(name))
    if out.exists():
        raise BundleError(f"{out} exists; a bundle is never changed after it was written", "out")
    folder = out.absolute()
    if not (is_number(folder.name) and is_name(folder.parent.name)):
        return BundlePlace(out, _checked(name or default))
    if name and name != folder.parent.name:
        raise InvalidInput(
            f"--out {out} is version {folder.name} of bundle {folder.parent.name!r}, and --name is {name!r}: say --name "
            f"{folder.parent.name}, or write into .../{name}/{folder.name}",
            "name",
        )
    return BundlePlace(out, folder.parent.name, folder.name)


def _checked(name: str) -> str:
    if not is_name(name):
        raise InvalidInput(f"--name {name!r} is no name of a bundle: letters, digits, '_', '.' and '-'", "name")
    return name

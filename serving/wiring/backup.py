"""Backups of an installation: a folder with one state of its databases, bundles, worker, secret and configuration.

A backup may be made while it serves. Order makes it one state: what is referred to is copied after what refers to it, so
bundles come last (and first, since versions may leave), the worker's checkpoint before the log that it has read. The list
of files with their digests is written at the end; a folder without it is no backup.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.bundle.versions import Repository
from pipeline.clock import Clock
from pipeline.disk import copy_database, replacing, sync, writing
from pipeline.errors import Conflict, InvalidInput, NotReady
from pipeline.traffic.local.copying import copy_log
from serving.config import Config
from serving.runtime.claims import alone_in
from serving.security.modes import close_folder
from serving.state.snapshot import StateSnapshot
from serving.wiring.home import interrupted_restore
from serving.wiring.state import open_control_store, open_kill_switch

__all__ = ["CONFIG", "STATE", "BackupManifest", "back_up", "last_backup_ms", "read_backup", "restore", "restore_named"]

FORMAT_VERSION = 1
MANIFEST = "backup.json"
LAST_BACKUP = "last_backup"
"""File of a home that is written anew after each backup of it: its time is that of the backup."""
CONFIG = "baton.yaml"
STATE = "state.json"
"""The state where it is in a Redis: endpoints, rollouts, audit, kill flags; `baton state restore --backup` reads it."""
COPY_TRIES = 10
NOT_NAMED = frozenset({"home", "worker.retained"})
"""Settings of paths that are no small files of the installation."""
NAMED = "files"
SMALL_PARTS = ("secret.key", "tokens.json", "kill", "loads", "state")
"""Beside databases, bundles and checkpoints; all else in a home is made again."""


class BackupFile(BaseModel):
    """A file of a backup."""

    sha256: str
    bytes: int


class BackupManifest(BaseModel):
    """List of a backup's files.

    Args:
        left_out: what the installation needs and the backup does not hold.
        named: files outside of the home that the configuration names, certificates and passwords, by setting.
    """

    format: int
    made_ms: int
    home: str
    files: dict[str, BackupFile]
    left_out: list[str] = []
    named: dict[str, str] = {}

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.bytes for file in self.files.values())


def back_up(config: Config, config_file: Path, target: Path, clock: Clock) -> BackupManifest:
    """Copy an installation into the folder `target`, which must be absent or empty.

    Raises:
        InvalidInput: the folder is open to other users and another user's. Conflict: it has files. NotFound or NotReady: the home or the disk does not let it be made whole; then
            nothing is left of it.
    """
    if not config.home.is_dir():
        raise InvalidInput(f"there is no home {config.home} to back up", "home")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise Conflict(f"{target} is not empty; name a new folder")
    made_ms = clock.wall_ms()
    try:
        with writing(target):
            (target / "home").mkdir(mode=0o700, parents=True)
            close_folder(target)
            _copy_parts(config, config_file, target)
            left_out = [*_copy_state(config, target, clock), *_left_out(config)]
            named = _copy_named(config, target)
            manifest = BackupManifest(
                format=FORMAT_VERSION,
                made_ms=made_ms,
                home=str(config.home),
                files={str(path.relative_to(target)): _described(path) for path in _files(target)},
                left_out=left_out,
                named=named,
            )
            with replacing(target / MANIFEST, durable=True) as staging:
                staging.write_text(manifest.model_dump_json(indent=1))
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    with suppress(OSError):  # a full disk must not take the backup away that was made because of it
        (config.home / LAST_BACKUP).write_text(str(target))
    return manifest


def last_backup_ms(home: Path) -> int:
    """Unix time of the last backup of a home in milliseconds, 0 where none was made."""
    try:
        return round(1000 * (home / LAST_BACKUP).stat().st_mtime)
    except OSError:
        return 0


def read_backup(folder: Path) -> BackupManifest:
    """List of a backup whose files are all there and as they were written.

    Raises:
        InvalidInput: it is no whole backup; the message names the file at fault.
    """
    try:
        manifest = BackupManifest.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise InvalidInput(
            f"{folder} is no whole backup: it has no {MANIFEST}, which is written last", "backup"
        ) from None
    except (OSError, ValidationError) as error:
        raise InvalidInput(f"{folder / MANIFEST} cannot be read: {error}", "backup") from None
    if manifest.format != FORMAT_VERSION:
        raise InvalidInput(
            f"{folder} has format {manifest.format}; this Baton knows {FORMAT_VERSION}: upgrade it", "backup"
        )
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
            raise InvalidInput(f"{folder} is no whole backup: {name} is missing", "backup")
        if _described(path) != expected:
            raise InvalidInput(f"{folder} is damaged: {name} is not what was written", "backup")
    return manifest


def restore(config: Config, folder: Path, clock: Clock, *, replace: bool = False) -> tuple[BackupManifest, Path | None]:
    """Bring a backup back into the home of a configuration.

    Args:
        replace: whether to move a home that is there aside.

    Returns:
        The list of its files, and the folder of what was there before.

    Raises:
        InvalidInput: it is no whole backup. Conflict: the home is in use, or not empty.
    """
    manifest = read_backup(folder)
    home, aside = config.home, None
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    close_folder(home)
    with alone_in(home, "restore"), writing(home):
        places = {folder / "home": home}
        if (folder / "bundles").is_dir():
            places[folder / "bundles"] = config.repository
        old = [path for place in places.values() for path in _entries(place)]
        if old and not replace:
            raise Conflict(
                f"{old[0].parent} is not empty ({old[0].name}): name another home, or --replace to move it aside"
            )
        mark = interrupted_restore(home)
        mark.touch()
        if old:
            aside = home.with_name(f"{home.name}.replaced-{clock.wall_ms()}")
            aside.mkdir(mode=0o700)
            for path in old:
                os.rename(path, aside / (path.name if path.parent == home else f"bundles-{path.name}"))
        for source, place in places.items():
            shutil.copytree(source, place, dirs_exist_ok=True)
            for path in _files(place):
                if path.relative_to(place).parts[0] != "run":
                    sync(path)
        sync(home)
        mark.unlink()
    return manifest, aside


def restore_named(config: Config, folder: Path, manifest: BackupManifest) -> list[str]:
    """Bring back certificates, keys and files of passwords where the configuration names them and nothing is; a line for each
    that is not brought back.

    Raises:
        NotReady: one cannot be written.
    """
    places, lines = dict(_named(config)), []
    for setting, name in sorted(manifest.named.items()):
        place = places.get(setting)
        if place is None:
            lines.append(f"{setting}: this configuration names no such file; the backup has it as {folder / name}")
        elif place.exists():
            if place.read_bytes() != (folder / name).read_bytes():
                lines.append(f"{setting}: {place} is another file than that of the backup, {folder / name}, and stays")
        else:
            with writing(place), replacing(place, durable=True) as staging:
                staging.touch(mode=0o600)
                staging.write_bytes((folder / name).read_bytes())
    return lines


def _named(config: Config) -> Iterator[tuple[str, Path]]:
    """Files that settings name, by setting; data and folders are none of them."""

    def walk(section: BaseModel, prefix: str) -> Iterator[tuple[str, Path]]:
        for name in type(section).model_fields:
            value = getattr(section, name)
            if isinstance(value, BaseModel):
                yield from walk(value, f"{prefix}{name}.")
            elif isinstance(value, Path) and (prefix + name) not in NOT_NAMED:
                yield prefix + name, value
            elif isinstance(value, tuple | list):
                for at, one in enumerate(value):
                    if isinstance(one, BaseModel):
                        yield from walk(one, f"{prefix}{name}.{at}.")

    yield from walk(config, "")


def _copy_named(config: Config, target: Path) -> dict[str, str]:
    named = {}
    for setting, path in _named(config):
        if path.is_file():
            name = f"{NAMED}/{setting}"
            (target / NAMED).mkdir(exist_ok=True)
            shutil.copyfile(path, target / name)
            named[setting] = name
    return named


def _copy_state(config: Config, target: Path, clock: Clock) -> list[str]:
    """Copy a state that is in a Redis, with the kill flags; what is not in the copy."""
    if not config.state.url:
        return []
    try:
        with closing(open_control_store(config)) as store:
            document = store.document(whole=True)
        flags = open_kill_switch(config).shared
        if flags is not None:
            flags.engaged()
        text = StateSnapshot(document, {} if flags is None else flags.known, clock.wall_ms()).to_json()
    except NotReady as error:
        return [f"endpoints, rollouts and audit are not in it but for the snapshot of this home: {error}"]
    with replacing(target / STATE) as staging:
        staging.write_text(text)
    return []


def _copy_parts(config: Config, config_file: Path, target: Path) -> None:
    home = target / "home"
    inside = config.repository.resolve().is_relative_to(config.home.resolve())
    bundles = home / config.repository.resolve().relative_to(config.home.resolve()) if inside else target / "bundles"
    if not config.bundles_url:
        _copy_bundles(config.repository, bundles)
    _copy_checkpoints(config.home / "worker", home / "worker")
    if not config.state.url:
        copy_database(config.control_db, home)
    if not config.traffic.url:
        copy_database(config.old_traffic_db, home)
        copy_log(config.traffic_folder, home)
    if not config.bundles_url:
        _copy_bundles(config.repository, bundles)
    for name in SMALL_PARTS:
        source = config.home / name
        if source.is_dir():
            _linked(source, home / name, link=False)
        elif source.exists():
            shutil.copy2(source, home / name)
    if config_file.exists():
        shutil.copy2(config_file, target / CONFIG)


def _left_out(config: Config) -> list[str]:
    """What is elsewhere, each with how to keep it."""
    found = []
    redis = "make its RDB file (BGSAVE) or a copy of its append-only files after this backup, and bring it back before the start"
    if config.traffic.url:
        found.append(f"predictions and labels are in the Redis of traffic.url {config.traffic.url}: {redis}")
    for section, name in (
        (config.state, "state"),
        (config.traffic, "traffic"),
        (config.embedding.redis, "embedding.redis"),
    ):
        if section is not None and section.password_env:
            found.append(f"the password of {name} is in the environment, as {section.password_env}: keep it")
    if config.bundles_url:
        found.append(f"bundles are at {config.bundles_url}: keep the versions there")
    return found


def _copy_bundles(source: Path, target: Path) -> None:
    """Copy the versions that are not copied yet; one that is removed meanwhile is left out, whole."""
    repository = Repository(source)
    for name in repository.names():
        marks = source / name / ".versions"
        for version in repository.held(name):
            place = target / name / version
            if not place.exists():
                with contextlib.suppress(FileNotFoundError):
                    _linked(repository.path(name, version), place)
        for mark in marks.iterdir() if marks.is_dir() else ():  # numbers that were given out are not given out again
            (target / name / ".versions").mkdir(parents=True, exist_ok=True)
            (target / name / ".versions" / mark.name).touch()


def _copy_checkpoints(source: Path, target: Path) -> None:
    """Copy the newest checkpoint of each pair, with those that it builds on."""
    for pair in sorted(source.iterdir()) if source.is_dir() else ():
        for _ in range(COPY_TRIES):
            with contextlib.suppress(FileNotFoundError):  # a newer one has taken its place
                _copy_newest(pair, target / pair.name)
                break
            shutil.rmtree(target / pair.name, ignore_errors=True)
        else:
            raise NotReady(f"{pair} changes too often to be copied; try again")


def _copy_newest(pair: Path, target: Path) -> None:
    numbers = sorted(int(path.name) for path in pair.iterdir() if path.name.isdecimal())
    for path in pair.iterdir():
        if path.is_file():
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target / path.name)
    if not numbers:
        return
    state: dict[str, Any] = json.loads((pair / str(numbers[-1]) / "state.json").read_text())
    for number in state["chain"]:
        _linked(pair / str(number), target / str(number))


def _linked(source: Path, target: Path, *, link: bool = True) -> None:
    """Copy a folder whose files never change: by hard links on one file system. It appears whole, or not at all.

    Raises:
        FileNotFoundError: it was removed meanwhile.
    """
    staging = target.with_name(f".{target.name}.copy")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        shutil.copytree(source, staging, copy_function=_link_or_copy if link else shutil.copy2)
    except shutil.Error as error:
        shutil.rmtree(staging, ignore_errors=True)
        if not source.exists():
            raise FileNotFoundError(source) from error
        raise NotReady(f"{source} cannot be copied: {error.args[0][0][2]}") from error
    os.rename(staging, target)


def _link_or_copy(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
    return target


def _described(path: Path) -> BackupFile:
    with open(path, "rb") as file:
        return BackupFile(sha256=hashlib.file_digest(file, "sha256").hexdigest(), bytes=path.stat().st_size)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _entries(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.name != "run"] if folder.is_dir() else []

"""Permissions of an installation's files: a home is its owner's alone, whoever made it and whatever it was before.

A closed home keeps everything in it from other users, so that files inside need no look at each start beyond the first
level. What lies outside (keys, password files, a repository, databases behind links) is looked at by itself.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pipeline.errors import InvalidInput
from serving.config import Config

__all__ = ["close_folder", "close_home", "exchangeable", "open_parts", "weak_files"]

OTHERS_MASK = stat.S_IRWXG | stat.S_IRWXO
NAMED_ENTRIES = 5


def close_home(config: Config) -> list[str]:
    """Create the home and its folder of sockets and status files, and close both, and what is in the home, to other users.

    An open secret or file of tokens stays as it is: `exposure` refuses to start with one that others may have read.

    Returns:
        What was open, a sentence for the operator each.

    Raises:
        InvalidInput: they cannot be created, or the home is open and cannot be closed.
    """
    home = config.home
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        said = close_folder(home)
        config.shadow_socket.parent.mkdir(mode=0o700, exist_ok=True)
        left = (config.secret, config.tokens)
        closed = [path.name for path in sorted(home.iterdir()) if path not in left and _close(path)]
    except OSError as error:
        raise InvalidInput(f"home {home}: {error.strerror}: {error.filename}", "home") from None
    if closed:
        said.append(f"in {home} these were open to other users and are closed now: {_few(closed)}")
    return [*said, *_behind_links(config)]


def close_folder(folder: Path) -> list[str]:
    """Close a folder that holds users' data; what it was, where it was open.

    Raises:
        InvalidInput: it is open and cannot be closed. OSError: it is not there.
    """
    found = folder.stat()
    mode = stat.S_IMODE(found.st_mode)
    if not mode & OTHERS_MASK:
        return []
    with suppress(PermissionError):
        folder.chmod(mode & ~OTHERS_MASK)
    if stat.S_IMODE(folder.stat().st_mode) & OTHERS_MASK:
        raise InvalidInput(
            f"{folder} is open to other users (mode {mode:04o}) and cannot be closed: it belongs to user {found.st_uid}, or its "
            f"file system has no modes; name a folder that Baton makes itself, for example {folder / 'home'}",
            "home",
        )
    changed = ", who could also change what is in it" if mode & (stat.S_IWGRP | stat.S_IWOTH) else ""
    return [f"{folder} was open to other users (mode {mode:04o}){changed}; it is closed now (0700)"]


def open_parts(config: Config, file: Path | None = None) -> Iterator[str]:
    """What other users of the machine can read or change of an installation, each with its mode and what to do.

    Args:
        file: the configuration itself.
    """
    home = config.home
    with suppress(OSError):
        mode = _mode(home)
        if mode & OTHERS_MASK:
            inside = [f"{path.name} {_mode(path):04o}" for path in _open_entries(home)]
            what = f", and so are in it: {_few(inside)}" if inside else ""
            yield (
                f"home {home} is open to other users (mode {mode:04o}){what}: "
                f"chmod 700 {home}, or start Baton, which closes it"
            )
    yield from _behind_links(config)
    for path in (config.repository, file):
        with suppress(OSError):
            if path is not None and (mode := _mode(path)) & stat.S_IWOTH:
                yield f"{path} can be changed by every user (mode {mode:04o}): chmod o-w {path}"
    for _, problem in weak_files(config):
        yield problem


def exchangeable(home: Path) -> list[str]:
    """Warnings of folders above a home in which every user may put another home in its place."""
    found = []
    with suppress(OSError):
        for path in home.resolve().parents:
            mode = path.stat().st_mode
            if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
                found.append(
                    f"every user may put another home into {path} (mode {stat.S_IMODE(mode):04o}): chmod o-w {path}"
                )
    return found


def weak_files(config: Config) -> Iterator[tuple[Path, str]]:
    """Files with secrets that other users can read or change, or that are another user's, each with what to do."""
    listen = config.listen
    keys = [config.secret, config.tokens]
    if listen.tls is not None:
        keys.append(listen.tls.key)
    stores = [config.embedding.redis, config.traffic, config.state]
    keys += [store.password_file for store in stores if store is not None and store.password_file is not None]
    for path in keys:
        try:
            found = os.stat(path)
        except OSError:
            continue  # the process that needs it reports that it is missing
        mode = stat.S_IMODE(found.st_mode)
        if mode & OTHERS_MASK:
            yield path, f"{path} may be read or changed by others (mode {mode:04o}): chmod 600 {path}"
        elif path in (config.secret, config.tokens) and found.st_uid not in _owners(config.home):
            yield (
                path,
                f"{path} belongs to user {found.st_uid}, who may have written it: remove it, or chown it if it is yours",
            )


def _behind_links(config: Config) -> list[str]:
    """Users' data that a link puts outside of the home, open to others."""
    found = []
    for path in (
        config.traffic_folder,
        config.old_traffic_db,
        config.control_db,
        config.home / "worker",
        config.home / "run",
    ):
        with suppress(OSError):
            if path.is_symlink() and (mode := _mode(path)) & OTHERS_MASK:
                target = path.resolve()
                found.append(
                    f"{path} leads to {target}, which is open to other users (mode {mode:04o}): chmod go= {target}"
                )
    return found


def _owners(home: Path) -> set[int]:
    return {0, os.geteuid(), home.stat().st_uid}


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _close(path: Path) -> bool:
    """Close one entry of a closed home; whether it was open. Links are left: what they lead to may be anybody's."""
    with suppress(FileNotFoundError, PermissionError):  # others come and go, and a closed folder keeps both from others
        found = path.lstat()
        if not stat.S_ISLNK(found.st_mode) and stat.S_IMODE(found.st_mode) & OTHERS_MASK:
            path.chmod(stat.S_IMODE(found.st_mode) & ~OTHERS_MASK)
            return True
    return False


def _open_entries(folder: Path) -> list[Path]:
    entries = sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name))
    return [path for path in entries if path.exists() and _mode(path) & OTHERS_MASK]


def _few(names: list[str]) -> str:
    more = len(names) - NAMED_ENTRIES
    return ", ".join(names[:NAMED_ENTRIES]) + (f" and {more} more" if more > 0 else "")

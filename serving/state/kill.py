"""Kill switch: a file per endpoint under `<home>/kill/`, which lanes look at themselves, so it needs no control process.

While `<home>/kill/<endpoint>` exists the candidate gets no traffic; `touch` is enough to make one. Machines that share a
state have flags there too (`serving.state.redis.kill`), and either one is enough. What a kill needs is set aside before:
files of their full size, to be renamed where the disk has no room, and a descriptor of the folder to look through.
`serving.lane.kill_watch` looks for lanes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import stat
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.disk import replacing, sync
from pipeline.errors import InvalidInput, NotReady
from pipeline.memory_folder import make_memory_folder, memory_folder

__all__ = ["KillFiles", "KillFlag", "KillSwitch", "SharedFlags"]

SPARES = 16
"""Files set aside: kills that need no room on the disk, before a start or a release sets new ones aside."""
SPARE_BYTES = 4096
_MOST_LETTERS = 500
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KillFlag:
    """Flag of a killed endpoint. `released_ms`: time of the last release before it, Unix milliseconds; 0: there was none."""

    reason: str
    actor: str
    released_ms: int = 0


class SharedFlags(Protocol):
    """Flags of killed endpoints that all machines of an installation see. All methods raise NotReady."""

    @property
    def known(self) -> Mapping[str, KillFlag]:
        """Flags as they were seen last, without asking."""

    def mend(self) -> None:
        """Write flags again that have gone without a release."""

    def prepare(self, names: Iterable[str]) -> None:
        """Set aside what killing these endpoints needs."""

    def engage(self, endpoint: str, reason: str, actor: str) -> None:
        """Set a flag, or change its reason."""

    def release(self, endpoint: str) -> bool:
        """Remove a flag; whether there was one."""

    def engaged(self) -> frozenset[str]:
        """All flagged endpoints."""

    def why(self, endpoint: str) -> tuple[str, str] | None:
        """(reason, actor) of a flag, None without one."""


class KillFiles:
    """Kill files of one home directory, and those in memory that stand for them where the home cannot be written."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._folder = home / "kill"
        self._handle: int | None = None
        self._name = "kill-" + hashlib.blake2b(os.fsencode(home.resolve()), digest_size=8).hexdigest()

    def prepare(self) -> None:
        """Make the folder, set files aside in it, and keep it open, so that no later call needs room or a descriptor.

        Raises:
            OSError: not all of it was possible.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._handle is None:
            self._handle = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        for spare in self._spares():
            if not spare.exists():
                with replacing(spare, durable=True) as staging:
                    staging.write_bytes(b" " * SPARE_BYTES)

    def engage(self, endpoint: str, reason: str, actor: str) -> None:
        """Make the file of an endpoint, or replace it; the newer reason counts.

        A full disk costs at most the reason; where the disk takes no change at all, the file is made in memory.

        Raises:
            OSError: the first error, where nothing could be made.
        """
        path = self._folder / endpoint
        about = {"endpoint": endpoint, "reason": reason, "actor": actor}
        try:
            # In force with the rename; what makes it survive a crash comes after it.
            with replacing(path) as staging:
                staging.write_text(json.dumps(about), encoding="utf-8")
                self._give(staging)
        except OSError as first:
            if self._from_spare(path, about) or self._empty(path):
                log.error("the kill file of %s was made without new room: %s", endpoint, first)
            elif self._in_memory(endpoint, about):
                log.error("the kill file of %s is in memory until the next boot: %s", endpoint, first)
                return
            else:
                raise first from None
        with contextlib.suppress(OSError):
            sync(path)
            sync(self._folder)

    def release(self, endpoint: str) -> bool:
        """Remove the file; whether there was one."""
        removed = False
        for folder in (self._folder, self._memory()):
            if folder is not None:
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    (folder / endpoint).unlink()
                    removed = True
        if removed:
            with contextlib.suppress(OSError):
                self.prepare()
        return removed

    def engaged(self, names: Collection[str]) -> frozenset[str]:
        """Those of `names` that have a file. After `prepare` it needs no free descriptor.

        Raises:
            OSError: it cannot be looked at.
        """
        if self._handle is not None and self._replaced():
            os.close(self._handle)
            self._handle = None
            self.prepare()
        memory = self._memory()
        return frozenset(
            name for name in names if self._exists(name) or (memory is not None and (memory / name).exists())
        )

    def why(self, endpoint: str) -> tuple[str, str] | None:
        """(reason, actor) of a file, None without one. A file made by hand has neither."""
        memory = self._memory()
        return self._read(self._folder / endpoint) or (None if memory is None else self._read(memory / endpoint))

    @staticmethod
    def _read(path: Path) -> tuple[str, str] | None:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            return f"the kill file cannot be read: {error.strerror}", "unknown"
        try:
            kill = json.loads(text)
            return str(kill["reason"]), str(kill["actor"])
        except (ValueError, KeyError, TypeError):
            return "kill file without a reason", "unknown"

    def _exists(self, name: str) -> bool:
        try:
            if self._handle is None:
                os.stat(self._folder / name)
            else:
                os.stat(name, dir_fd=self._handle)  # a listing would need a descriptor of its own
        except FileNotFoundError:
            return False
        return True

    def _replaced(self) -> bool:
        """Whether the open folder was removed, or another one has its name now."""
        assert self._handle is not None
        held = os.fstat(self._handle)
        if held.st_nlink == 0:
            return True
        try:
            named = os.stat(self._folder)
        except OSError:
            return False  # moved with its home, or hidden: what is open still counts
        return (named.st_dev, named.st_ino) != (held.st_dev, held.st_ino)

    def _spares(self) -> list[Path]:
        return [self._folder / f".spare-{number}" for number in range(SPARES)]

    def _from_spare(self, path: Path, about: dict[str, str]) -> bool:
        """Rename a file that was set aside, the reason written over its content; whether there was one."""
        short = json.dumps({key: text[:_MOST_LETTERS] for key, text in about.items()}).encode()
        for spare in self._spares():
            with contextlib.suppress(OSError):
                with contextlib.suppress(OSError), open(spare, "r+b", buffering=0) as file:
                    file.write(short.ljust(SPARE_BYTES)[:SPARE_BYTES])
                os.rename(spare, path)
                return True
        return False

    def _memory(self) -> Path | None:
        """Folder in memory, where there is one that belongs to the home's owner or to root."""
        with contextlib.suppress(OSError):
            owner = os.stat(self._home).st_uid
            folder = memory_folder(owner) / self._name
            found = os.lstat(folder)
            if stat.S_ISDIR(found.st_mode) and found.st_uid in (owner, 0):
                return folder
        return None

    def _in_memory(self, endpoint: str, about: dict[str, str]) -> bool:
        with contextlib.suppress(OSError, NotReady):
            owner = os.stat(self._home).st_uid
            folder = make_memory_folder(owner) / self._name
            folder.mkdir(mode=0o700, exist_ok=True)
            (folder / endpoint).write_text(json.dumps(about), encoding="utf-8")
            with contextlib.suppress(PermissionError):
                for made in (folder, folder / endpoint):
                    os.chown(made, owner, -1, follow_symlinks=False)
            return True
        return False

    def _give(self, path: Path) -> None:
        """Let the home's owner read a file that root makes."""
        with contextlib.suppress(OSError):
            os.chown(path, os.stat(self._home).st_uid, -1)

    @staticmethod
    def _empty(path: Path) -> bool:
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644))
            return True
        return False


class KillSwitch:
    """Kill switch of an installation: the files of this home, and the flags that its machines share.

    Args:
        shared: None: the home is the whole installation.
    """

    def __init__(self, home: Path, shared: SharedFlags | None = None) -> None:
        self.files = KillFiles(home)
        self.shared = shared

    def prepare(self, names: Iterable[str] = ()) -> None:
        """Set aside what kills of these endpoints need, as far as it is possible now; the rest is logged."""
        try:
            self.files.prepare()
        except OSError as error:
            log.error("a kill may need room on the disk: %s", error)
        if self.shared is not None:
            try:
                self.shared.mend()
                self.shared.prepare(names)
            except NotReady as error:
                log.error("a kill may need memory of the shared state: %s", error)

    def engage(self, endpoint: str, reason: str, actor: str) -> None:
        """Take all traffic of `endpoint` from its candidate; engaging twice keeps the newer reason.

        Raises:
            InvalidInput: the name cannot be that of an endpoint.
            NotReady: the switch is engaged on this machine alone, or nowhere.
        """
        self.check_name(endpoint)
        failed: OSError | None = None
        try:
            self.files.engage(endpoint, reason, actor)
        except OSError as error:
            failed = error
        if self.shared is not None:
            try:
                self.shared.engage(endpoint, reason, actor)
            except NotReady as error:
                where = "nowhere" if failed else "on this machine alone"
                raise NotReady(f"{endpoint!r} is killed {where}: {failed or error}") from error
        elif failed is not None:
            raise NotReady(f"{endpoint!r} is not killed, its file cannot be made: {failed}") from failed

    def release(self, endpoint: str) -> bool:
        """Take the switch back; whether it was engaged. Files made on other machines stay.

        Then the endpoint's weight in the store counts again. Raises: NotReady.
        """
        self.check_name(endpoint)
        try:
            removed = self.shared is not None and self.shared.release(endpoint)
        except NotReady as error:
            raise NotReady(f"{endpoint!r} stays killed: {error}") from error
        return self.files.release(endpoint) or removed

    def engaged(self, endpoint: str) -> bool:
        """Whether the candidate of an endpoint gets no traffic."""
        return self.why(endpoint) is not None

    def why(self, endpoint: str) -> tuple[str, str] | None:
        """(reason, actor) of an engaged switch, None where it is not engaged."""
        local = self.files.why(endpoint)
        return local if local is not None or self.shared is None else self.shared.why(endpoint)

    @staticmethod
    def is_name(endpoint: str) -> bool:
        """Whether an endpoint can have this name: a plain file name."""
        return _NAME.fullmatch(endpoint) is not None

    @staticmethod
    def check_name(endpoint: str) -> None:
        """Check that an endpoint of this name can be killed.

        Raises:
            InvalidInput: it is no plain file name.
        """
        if not KillSwitch.is_name(endpoint):
            raise InvalidInput(f"endpoint name {endpoint!r}: use letters, digits, '.', '_' and '-'", "name")

"""`njit` with a cache on disk that detects changes in imported files, and not only in the function's own file.

numba keeps compiled functions beside their source and compiles them again when that one file has changed. But functions
and constants imported from other files are compiled in, so after an upgrade that does not touch a kernel's file the old
code would still run. Here a cache entry is stamped with all files of this project that the function's file imports,
directly or not.

The cache saves time and is no condition: without a writable folder, on a full disk or with a damaged entry, a function is
compiled in memory, and one warning per process names the variable to set.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core import caching, config, typeinfer

__all__ = ["njit", "stamp_of"]

F = TypeVar("F", bound=Callable[..., Any])

log = logging.getLogger(__name__)

# numba takes settings from a file of the working directory, which may be the folder of a foreign bundle. One of them names
# the cache, and reading a cache runs code. The environment alone counts here.
config._config_fname = os.devnull
config._env_reloader.update(force=True)  # type: ignore[no-untyped-call]

_ROOT = Path(__file__).parent.parent
_IMPORT = re.compile(r"^from (pipeline(?:\.\w+)+|transfer(?:\.\w+)+) import", re.MULTILINE)


def stamp_of(path: Path, root: Path = _ROOT) -> bytes:
    """SHA-256 of a file and of all files below `root` that it imports, directly or not."""
    todo, seen = [path], dict[Path, bytes]()
    while todo:
        file = todo.pop()
        if file not in seen and file.exists():
            seen[file] = file.read_bytes()
            modules = _IMPORT.findall(seen[file].decode())
            todo += [root / (module.replace(".", "/") + ".py") for module in modules]
    whole = hashlib.sha256()
    for file in sorted(seen):
        whole.update(hashlib.sha256(seen[file]).digest())
    return whole.digest()


class _Stamped:
    """Mixin for numba's cache locators: the stamp covers imported files."""

    _py_file: str

    def get_source_stamp(self) -> bytes:
        return _stamp_once(self._py_file)


_stamp_once = functools.cache(lambda file: stamp_of(Path(file)))


class ConfiguredLocator(_Stamped, caching.UserProvidedCacheLocator):
    """Folder `NUMBA_CACHE_DIR`, where it is set."""


class InTreeLocator(_Stamped, caching.InTreeCacheLocator):
    """Folder `__pycache__`, where it is writable."""


class UserWideLocator(_Stamped, caching.UserWideCacheLocator):
    """Cache folder of the user."""


class _Entries(caching.CompileResultCacheImpl):
    """Folders for cache entries, the first usable one counts."""

    _locator_classes = [ConfiguredLocator, InTreeLocator, UserWideLocator]  # noqa: RUF012 - as the base class has it


class _OptionalCache(caching.FunctionCache):
    """Cache of a function, of which a failed read is a miss and a failed write is no error."""

    _impl_class = _Entries

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)  # type: ignore[no-untyped-call]
        except OSError as error:
            _warn_once(f"{self.cache_path} cannot be read: {error.strerror}")
        except Exception as error:  # a damaged entry fails in pickle, in any of its ways
            log.warning("%s has a damaged entry, which is made anew: %s", self.cache_path, error)
            self._write(self.flush)
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        self._write(super().save_overload, sig, data)

    def _write(self, write: Callable[..., None], *arguments: Any) -> None:
        try:
            write(*arguments)
        except OSError as error:
            _warn_once(f"{self.cache_path} cannot be written: {error.strerror}")


def _cache_of(function: Callable[..., Any]) -> Any:
    try:
        return _OptionalCache(function)  # type: ignore[no-untyped-call]
    except RuntimeError:  # numba's way to say that no locator has a folder
        _warn_once("no cache folder is writable")
        return caching.NullCache()


_warned = threading.Event()


def _warn_once(reason: str) -> None:
    """Warn of the first reason; the functions that follow have the same one."""
    if not _warned.is_set():
        _warned.set()
        log.warning(
            "compiled functions are not kept, so each process takes longer to start: %s; "
            "set NUMBA_CACHE_DIR to a folder that this user can write",
            reason,
        )


def njit(*signatures: Any, cache: bool = False, **options: Any) -> Callable[[F], F]:
    """`numba.njit(*signatures, **options)`, always called with parentheses; a signature is one or a list of them."""
    wanted = [one for given in signatures for one in (given if isinstance(given, list) else [given])]

    def compiled(function: F) -> F:
        made: Any = numba.njit(**options)(function)
        if made is function:  # NUMBA_DISABLE_JIT is set
            return function
        if cache:
            made._cache = _cache_of(function)
        if wanted:
            with typeinfer.register_dispatcher(made):
                for signature in wanted:
                    made.compile(signature)
                made.disable_compile()
        kernel: F = made
        return kernel

    return compiled

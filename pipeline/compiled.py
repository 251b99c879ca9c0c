"""`njit` with a cache on disk that detects changes in imported files, and not only in the function's own file.

numba keeps compiled functions beside their source and compiles them again when that one file has changed. But functions
and constants imported from other files are compiled in, so after an upgrade that does not touch a kernel's file the old
code would still run. Here a cache entry is stamped with all files of this project that the function's file imports,
directly or not.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
import numba.core.config
from numba.core import caching

__all__ = ["njit", "stamp_of"]

F = TypeVar("F", bound=Callable[..., Any])

config: Any = numba.core.config
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


_LOCATORS = ",".join(f"{__name__}.{kind.__name__}" for kind in (ConfiguredLocator, InTreeLocator, UserWideLocator))


def njit(*signatures: Any, **options: Any) -> Callable[[F], F]:
    """`numba.njit(*signatures, **options)`, always called with parentheses."""
    decorate = numba.njit(*signatures, **options)

    def compiled(function: F) -> F:
        locators = config.CACHE_LOCATOR_CLASSES
        config.CACHE_LOCATOR_CLASSES = _LOCATORS
        try:
            made: F = decorate(function)
            return made
        finally:
            config.CACHE_LOCATOR_CLASSES = locators

    return compiled

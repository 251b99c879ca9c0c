"""`njit` with a cache on disk that notices changes in what a function calls, and not only in the file it stands in.

numba keeps compiled functions beside their source and compiles anew when that one file has changed. Functions and
constants that are imported from other files are part of what was compiled all the same, so after an upgrade that leaves
a kernel's file alone the old ones would go on running. Here a stamp is of all files of this project that the function's
file imports, and that those import.
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
    """Mixed into numba's own places for caches."""

    _py_file: str

    def get_source_stamp(self) -> bytes:
        return _stamp_once(self._py_file)


_stamp_once = functools.cache(lambda file: stamp_of(Path(file)))


class GivenPlace(_Stamped, caching.UserProvidedCacheLocator):
    """`NUMBA_CACHE_DIR`, where it is set."""


class PlaceInTree(_Stamped, caching.InTreeCacheLocator):
    """`__pycache__`, where it can be written."""


class PlaceOfUser(_Stamped, caching.UserWideCacheLocator):
    """The user's folder for caches."""


_PLACES = ",".join(f"{__name__}.{place.__name__}" for place in (GivenPlace, PlaceInTree, PlaceOfUser))


def njit(*signatures: Any, **options: Any) -> Callable[[F], F]:
    """`numba.njit(*signatures, **options)`, always called with parentheses."""
    decorate = numba.njit(*signatures, **options)

    def compiled(function: F) -> F:
        places = config.CACHE_LOCATOR_CLASSES
        config.CACHE_LOCATOR_CLASSES = _PLACES
        try:
            made: F = decorate(function)
            return made
        finally:
            config.CACHE_LOCATOR_CLASSES = places

    return compiled

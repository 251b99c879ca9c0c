"""Records in Redis beside rows: generations, their loading progress, and the lease of their writer.

    baton:embedding:generations     hash: name of a generation -> its description and time of last use, as JSON
    baton:embedding:NAME:mark       version of its rows, and whether all are there; exists once all were written
    baton:embedding:NAME:progress   progress of the updater, as JSON
    baton:embedding:NAME:counted    last count of its rows (`completeness`), as JSON
    baton:embedding:NAME:lease      token of its writer; expires by itself

A generation is a base version in one row format. Its name, and with it the prefix of its rows' keys, comes from a digest
of the base's manifest: other bytes are another generation, on all machines. Lookups read the mark in the same round trip
as their rows, so the two always belong together.
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import asdict, dataclass, field

import xxhash

from pipeline.bundle.bundle import MANIFEST, MANIFEST_BYTES, Bundle
from pipeline.bundle.files import read
from pipeline.bundle.row_format import RowFormat
from pipeline.redis.foreign import load_typed

__all__ = ["GENERATIONS", "InUse", "Mark", "Progress", "RedisGeneration"]

SPACE = b"baton:embedding:"
GENERATIONS = "baton:embedding:generations"
FORMAT_VERSION = 1
_MARK = struct.Struct("<4sqqQ")
_NAME = re.compile(rb"[0-9a-f]{16}")
_WHOLE, _PARTIAL = b"mark", b"part"


@dataclass(frozen=True, slots=True)
class RedisGeneration:
    """One base version in Redis.

    Args:
        bundle, base: name and version. format: of its rows.
        digest: 64 bits over the base's manifest and the format; seeds the rows' checks.
    """

    bundle: str
    base: str
    format: RowFormat
    digest: int

    @classmethod
    def of(cls, base: Bundle, format: RowFormat) -> RedisGeneration:
        """The generation of a base bundle. Raises: OSError when its manifest is gone."""
        raw = read(base.path, MANIFEST, MANIFEST_BYTES)
        digest = xxhash.xxh3_64_intdigest(f"{FORMAT_VERSION}:{format}:".encode() + raw)
        return cls(base.manifest.name, base.manifest.version, format, digest)

    @property
    def name(self) -> str:
        return f"{self.digest:016x}"

    @property
    def prefix(self) -> bytes:
        """First bytes of its rows' keys. If two generations share them, the rows' checks still differ."""
        return prefix_of(self.name)

    def key(self, what: str) -> bytes:
        """The key of its `mark`, `progress`, `counted` or `lease`."""
        return key_of(self.name, what)


def prefix_of(name: str) -> bytes:
    """Prefix of the keys of a generation's rows, by its name."""
    return b"r" + bytes.fromhex(name)[:5]


def key_of(name: str, what: str) -> bytes:
    """`RedisGeneration.key`, by its name."""
    return SPACE + f"{name}:{what}".encode()


@dataclass(frozen=True, slots=True)
class Mark:
    """Version of a generation's rows, and the time when that version was created (Unix milliseconds). `whole`: no row is
    known to be missing."""

    version: int
    created_ms: int
    whole: bool = True

    def pack(self) -> bytes:
        return _MARK.pack(_WHOLE if self.whole else _PARTIAL, self.version, self.created_ms, self._check())

    @classmethod
    def unpack(cls, raw: bytes) -> Mark | None:
        """None when the bytes are not a mark."""
        if len(raw) != _MARK.size:
            return None
        kind, version, created_ms, check = _MARK.unpack(raw)
        mark = cls(version, created_ms, kind == _WHOLE)
        return mark if kind in (_WHOLE, _PARTIAL) and check == mark._check() else None

    def _check(self) -> int:
        return xxhash.xxh3_64_intdigest(struct.pack("<qq", self.version, self.created_ms))


@dataclass(frozen=True, slots=True)
class InUse:
    """Description of a generation in Redis. `used_ms`: when an installation said last that it serves it, by the server's
    clock."""

    bundle: str
    base: str
    format: RowFormat
    used_ms: int

    @classmethod
    def unpack(cls, name: bytes, raw: bytes) -> InUse | None:
        """None when the name is none of a generation, or the bytes are no description. Rows are removed by that name."""
        try:
            return load_typed(cls, raw) if _NAME.fullmatch(name) else None
        except (ValueError, RecursionError):
            return None


@dataclass(slots=True)
class Progress:
    """Progress of writing a generation.

    Args:
        applied: versions that are written completely, base first; empty: not even the base.
        loading: the version being written, "" for none; the tables before `table` are written, and `row` rows of that.
        abandoned: versions whose rows must first get their earlier values again.
        rows: rows written so far; a row that is written again counts again.
    """

    applied: list[str] = field(default_factory=list)
    loading: str = ""
    table: int = 0
    row: int = 0
    abandoned: list[str] = field(default_factory=list)
    rows: int = 0

    def pack(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def unpack(cls, raw: bytes) -> Progress | None:
        """None when the bytes are empty or not a progress."""
        try:
            found = load_typed(cls, raw) if raw else None
        except (ValueError, RecursionError):
            return None
        return None if found is None or min(found.table, found.row, found.rows) < 0 else found

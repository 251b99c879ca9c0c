"""What Redis holds beside rows: which generations there are, how far each is loaded, and who is loading it.

    baton:embedding:generations     hash: name of a generation -> what it is and when it was used last, as JSON
    baton:embedding:NAME:mark       which version its rows are of; there only while all rows of the base are
    baton:embedding:NAME:progress   how far the updater has come, as JSON
    baton:embedding:NAME:lease      token of the one who writes it; expires by itself

A generation is a base version in one row format. Its name, and with it the prefix of its rows' keys, comes from a digest
of the base's manifest: other bytes are another generation, on every machine alike. Lookups read the mark in the same
trip as their rows, so they never rest on what was true a moment ago.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass, field

import xxhash

from pipeline.bundle.bundle import MANIFEST, Bundle
from pipeline.bundle.row_format import RowFormat

__all__ = ["GENERATIONS", "Mark", "Progress", "RedisGeneration"]

SPACE = b"baton:embedding:"
GENERATIONS = "baton:embedding:generations"
FORMAT_VERSION = 1
_MARK = struct.Struct("<4sqqQ")


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
        raw = (base.path / MANIFEST).read_bytes()
        digest = xxhash.xxh3_64_intdigest(f"{FORMAT_VERSION}:{format}:".encode() + raw)
        return cls(base.manifest.name, base.manifest.version, format, digest)

    @property
    def name(self) -> str:
        return f"{self.digest:016x}"

    @property
    def prefix(self) -> bytes:
        """First bytes of its rows' keys. Should two generations share them, the rows' checks tell them apart."""
        return prefix_of(self.name)

    def key(self, what: str) -> bytes:
        """The key of its `mark`, `progress` or `lease`."""
        return key_of(self.name, what)


def prefix_of(name: str) -> bytes:
    """Of the keys of a generation's rows, by its name."""
    return b"r" + bytes.fromhex(name)[:5]


def key_of(name: str, what: str) -> bytes:
    """As `RedisGeneration.key`, by its name."""
    return SPACE + f"{name}:{what}".encode()


@dataclass(frozen=True, slots=True)
class Mark:
    """The version that a complete generation's rows are of, and when that version was made (Unix milliseconds)."""

    version: int
    created_ms: int

    def pack(self) -> bytes:
        return _MARK.pack(b"mark", self.version, self.created_ms, self._check())

    @classmethod
    def unpack(cls, raw: bytes) -> Mark | None:
        """None for what is no mark of ours."""
        if len(raw) != _MARK.size:
            return None
        kind, version, created_ms, check = _MARK.unpack(raw)
        mark = cls(version, created_ms)
        return mark if kind == b"mark" and check == mark._check() else None

    def _check(self) -> int:
        return xxhash.xxh3_64_intdigest(struct.pack("<qq", self.version, self.created_ms))


@dataclass(slots=True)
class Progress:
    """How far a generation is written.

    Args:
        applied: versions whose rows are all there, base first; empty: the base is not yet.
        loading: the version being written, "" for none; its tables in order up to `table`, of that `row` rows.
        abandoned: versions of which rows may be there that are to be given their earlier values first.
        rows: rows written so far, later versions of a row counted again.
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
        """None for nothing, or for what is no progress of ours."""
        try:
            return cls(**json.loads(raw)) if raw else None
        except (ValueError, TypeError):
            return None

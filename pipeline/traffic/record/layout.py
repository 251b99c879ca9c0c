"""Layout of a record in bytes, version 2: a head, a directory of typed blocks, names, then the blocks.

Little endian. The head has a checksum of itself, directory and names, so a log never files a record under wrong keys. Each
block has its type and its length in the directory, so a reader skips types that it does not know, and later versions of
Baton add blocks without a new format. Numbers of types are never used again. Sequences and vectors, further kinds of
features, go between `BAGS` and `FIELDS`. Next: `writing`, `reading`.
"""

from __future__ import annotations

import struct

__all__ = [
    "ENTRY",
    "ENTRY_FORMAT",
    "HEAD",
    "HEAD_SCORES",
    "KEYS_FORMAT",
    "MAGIC",
    "OVERRIDDEN_FLAG",
    "PART",
    "PREFIX",
    "REQUESTED_FLAG",
    "REQUEST_KEY",
    "SHED_STATE",
    "TIME_OFFSET_BYTES",
    "Block",
    "aligned",
]

MAGIC = b"BPR2"

KEYS_FORMAT = "qQQQQIIfBBHHH4x"
"""time_ms; versions: of the model, of stable, of candidate; routing hash; bytes in all; n; inclusion probability; arm, flags;
number of blocks; bytes of the names; bucket plus one, 0 where it is not known (as in records from before it was written)."""
PREFIX = struct.Struct("<4sI")
"""Magic, and the CRC-32 of all that follows up to the first block."""
HEAD = struct.Struct("<4sI" + KEYS_FORMAT)
TIME_OFFSET_BYTES = PREFIX.size
"""Where the checksum begins, and the time is; that of a record of version 1 is at the same place."""
OVERRIDDEN_FLAG = 1
REQUESTED_FLAG = 2
"""The last block is `REQUEST_KEY`: where a log files the record by its caller's request id, it need not look for it."""

ENTRY_FORMAT = "HxxI"
ENTRY = struct.Struct("<" + ENTRY_FORMAT)
"""Entry of the directory: type and bytes of a block, which starts at the next multiple of 8."""


class Block:
    """Numbers of the types of blocks: plain ones, since members of an Enum cost a tenth of writing a record.

    Parts of features lie one after another in a block, all their arrays at a multiple of 8 bytes.
    """

    SCORES = 1
    """float32 `[n]`."""
    CANDIDATE_IDS = 2
    """int64 `[n]`."""
    IDS = 16
    """Parts, each its shape (`PART`), int32 columns and int64 values `[rows, columns]`."""
    NUMBERS = 17
    """The same with float32 values."""
    BAGS = 18
    """Bags, each its rows and its column (`PART`), int32 offsets `[rows + 1]` and int64 values."""
    FIELDS = 24
    """`Schema.columns` of the features in UTF-8, where they are not those of the version that answered."""
    HEADS = 32
    """Heads, each `HEAD_SCORES`, its name in UTF-8 and float32 `[n]`, at a multiple of 8 bytes as parts are."""
    RECALL_SCORES = 33
    """float32 `[n]`."""
    REQUEST_ID = 48
    """UTF-8."""
    CANDIDATE_TEXTS = 49
    """int32 `[n]`, characters up to the end of each text, then all texts in UTF-8."""
    REQUEST_KEY = 50
    """`REQUEST_KEY`; the last block of its record."""
    SHED = 64
    """`SHED_STATE`."""
    CACHED = 65
    """uint8 `[n]`, 0 or 1."""


PART = struct.Struct("<II")
REQUEST_KEY = struct.Struct("<Q")
HEAD_SCORES = struct.Struct("<BxHxxxx")
"""Arm, and bytes of the head's name."""
SHED_STATE = struct.Struct("<ff")
"""Fraction of the candidates kept; expected wait in seconds."""


def aligned(size: int) -> int:
    """The next multiple of 8."""
    return (size + 7) & ~7

"""Index of a field: the rule by which a team's own model turned a raw value into a row number.

A field with an index names its values by that number: server, trainer and client hash `field=number`. Callers send the raw
value. Next stop: `pipeline.hashing`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal

import xxhash
from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import InvalidInput
from pipeline.farmhash import farm64

__all__ = ["HashName", "Index"]

HashName = Literal["farm64", "xxh64", "identity"]
KEPT_VALUES = 1 << 16
_INTEGER = re.compile(r"[+-]?[0-9]{1,20}")


class Index(BaseModel):
    """Buckets of a hash: the row number is `hash(value) % buckets`, of the UTF-8 bytes of the value's canonical text.

    >>> Index(hash="farm64", buckets=3).of("TensorFlow"), Index(hash="identity", buckets=100).of("712")
    (2, 12)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hash: HashName = Field(
        description="farm64: FarmHash Fingerprint64 (TensorFlow); xxh64: seed 0; identity: the integer itself"
    )
    buckets: int = Field(ge=1, le=1 << 62)

    def of(self, text: str) -> int:
        """The row number of a value's canonical text.

        Raises:
            InvalidInput: `identity` was given something else than an integer.
        """
        return _bucket(self.hash, self.buckets, text)


@lru_cache(KEPT_VALUES)
def _bucket(name: HashName, buckets: int, text: str) -> int:
    if name == "identity":
        if not _INTEGER.fullmatch(text):
            raise InvalidInput(f"{text[:100]!r} is no integer, which a field with index identity needs")
        return int(text) % buckets
    data = text.encode()
    return (farm64(data) if name == "farm64" else int(xxhash.xxh64_intdigest(data))) % buckets

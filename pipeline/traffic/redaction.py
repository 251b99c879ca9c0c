"""Redaction of an export: fields that are left out, and ids that are hashed again under a key of that export alone.

An id is a hash without a key: who has a list of users finds each of them in an export. Under a key that nobody keeps,
equal ids stay equal within one export, and say nothing outside of it. Both are about the ids of fields; `LEFT_OUT` are columns
of the log that can be named like fields. A text that is hashed again is that hash, in hexadecimal digits.
"""

from __future__ import annotations

import functools
import hashlib
import json
import secrets
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pipeline.arrays import I64, Array
from pipeline.errors import DataError, InvalidInput
from pipeline.features import Bag, Rows
from pipeline.hashing import PAD_ID, hash_value
from pipeline.schema import FieldSpec, Schema

__all__ = ["LEFT_OUT", "REDACTED", "Redaction"]

REDACTED = b"baton.redacted"
"""Key of a file's metadata under which it says what was done, as JSON."""
LEFT_OUT = ("candidate_id", "candidate_text", "prediction_id", "request_id", "request_key", "routing_hash")
"""Columns of the log that can be left out."""
_HASHED_AGAIN = ("candidate_id", "candidate_text", "request_id", "request_key", "routing_hash")
_ADVICE = "export rows of one set of fields at a time, with --since and --until"


class Redaction:
    """What one export leaves out and hashes again. Its key is drawn when it is made, and kept nowhere.

    Args:
        schema: of the rows; None: they are of several endpoints, and no field is named.
        drop, rekey: names of fields, or of columns of the log; a name of both counts for both.
        schema_of: fields of a version by bundle and number, None where it is not known any more.

    Raises:
        InvalidInput: a name is unknown (the message lists the known ones), is in both lists, or is a number's, which has
            no id to hash.
    """

    def __init__(
        self,
        schema: Schema | None,
        drop: Sequence[str],
        rekey: Sequence[str],
        schema_of: Callable[[str, int], Schema | None] = lambda bundle, version: None,
    ) -> None:
        self._schema = schema
        self._schema_of = functools.cache(schema_of)
        self.drop, self.rekey = frozenset(drop), frozenset(rekey)
        fields = {field.name: field for field in schema.fields} if schema is not None else {}
        for option, names, columns in (("drop", drop, LEFT_OUT), ("rekey", rekey, _HASHED_AGAIN)):
            for name in names:
                if name not in fields and name not in columns:
                    known = ", ".join([*fields, *columns])
                    raise InvalidInput(f"--{option} {name}: there is no such field; there are {known}", option)
        for name in rekey:
            if name in self.drop:
                raise InvalidInput(f"{name} is in --drop and in --rekey; name it once", "rekey")
            if name in fields and fields[name].kind == "number":
                raise InvalidInput(
                    f"--rekey {name}: it is a number, which is in the file as it is and has no id to hash; --drop it",
                    "rekey",
                )
        key = secrets.token_bytes(32)
        self._hash, self._text = _keyed(key), hashlib.blake2b(key=key, digest_size=8, person=b"export text")

    def metadata(self) -> dict[bytes, bytes]:
        """What the file says of itself: names left out and hashed again, and the fields that are left, in order by kind."""
        said: dict[str, Any] = {"dropped": sorted(self.drop), "rekeyed": sorted(self.rekey)}
        if self._schema is not None:
            kinds = {"ids": self._schema.ids, "numbers": self._schema.numbers, "bags": self._schema.bags}
            said["fields"] = {
                kind: [f.name for f in fields if f.name not in self.drop] for kind, fields in kinds.items()
            }
        return {REDACTED: json.dumps(said).encode()}

    def kept(self) -> list[str]:
        """Columns of the log that still say whose a row is, each with how."""
        ways = {
            "candidate_id": "a hash without a key, so whoever has a list of items finds them",
            "candidate_text": "the caller's own ids, where traffic.keep_text was set",
            "prediction_id": "whoever has the client's logs finds the request",
            "request_id": "the caller's own, where traffic.keep_text was set",
            "request_key": "a hash without a key of the caller's request id",
            "routing_hash": "a hash with the installation's key, the same in every export",
        }
        return [f"{name} ({how})" for name, how in ways.items() if name not in self.drop | self.rekey]

    def rows(self, rows: Rows, bundle: str, version: int) -> Rows:
        """Rows without the fields left out, ids hashed again. `bundle`, `version`: that answered.

        Raises:
            DataError: they have other fields than the schema.
        """
        schema = self._schema
        if schema is None:
            return rows
        own = self._schema_of(bundle, version)
        if own is not None and schema.columns != own.columns:
            raise DataError(
                f"a row was answered by {bundle} {version} with other fields ({own.columns} where the endpoint has "
                f"{schema.columns}); {_ADVICE}"
            )
        found = (rows.ids.shape[1], rows.numbers.shape[1], len(rows.bags))
        wanted = (len(schema.ids), len(schema.numbers), len(schema.bags))
        if found != wanted:
            raise DataError(
                f"a row has {found[0]} ids, {found[1]} numbers and {found[2]} bags, and the endpoint's fields are "
                f"{wanted[0]}, {wanted[1]} and {wanted[2]}; {_ADVICE}"
            )
        ids = rows.ids.copy()
        for column, field in enumerate(schema.ids):
            if field.name in self.rekey:
                ids[:, column] = self._again(field, ids[:, column])
        bags = [
            Bag(bag.column, bag.offsets, self._again(field, bag.values)) if field.name in self.rekey else bag
            for field, bag in zip(schema.bags, rows.bags, strict=True)
        ]
        return Rows(
            ids[:, self._kept(schema.ids)],
            rows.numbers[:, self._kept(schema.numbers)],
            tuple(bags[column] for column in self._kept(schema.bags)),
        )

    def column(self, name: str, values: Array) -> Array:
        """A column of the log, hashed again where it is to be; 0, which stands for none, stays."""
        if name not in self.rekey:
            return values
        return self._hash(values.view(np.int64), (0,)).view(values.dtype)

    def text(self, name: str, value: str | None) -> str | None:
        """A text of a column of the log, hashed again where it is to be; None stays."""
        if value is None or name not in self.rekey:
            return value
        hashed = self._text.copy()
        hashed.update(value.encode())
        return hashed.hexdigest()

    def _kept(self, fields: Sequence[FieldSpec]) -> list[int]:
        return [column for column, field in enumerate(fields) if field.name not in self.drop]

    def _again(self, field: FieldSpec, ids: I64) -> I64:
        return self._hash(ids, (PAD_ID, hash_value(field.name, None)))


def _keyed(key: bytes) -> Callable[[I64, Sequence[int]], I64]:
    """Function of ids and of those among them that stay: 64-bit hashes (BLAKE2b) under a key, never 0."""
    keyed = hashlib.blake2b(key=key, digest_size=8, person=b"export")

    def one(value: int) -> int:
        copy = keyed.copy()
        copy.update(value.to_bytes(8, "little", signed=True))
        return int.from_bytes(copy.digest(), "little", signed=True) or 1

    def hashed(ids: I64, stay: Sequence[int]) -> I64:
        distinct, places = np.unique(ids, return_inverse=True)
        again = np.array([v if v in stay else one(v) for v in distinct.tolist()], np.int64)
        return again[places.reshape(ids.shape)]

    return hashed

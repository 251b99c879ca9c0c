"""Codes of a field's values, for models elsewhere that read no hashes: from Baton's id to a number or a text.

A file has `ids` int64 `[V]`, sorted and unique, and either `codes` `[V]`, int64 or float64, or texts: `text` uint8 with
`offsets` int64 `[V + 1]`. It is mapped, so the processes of a machine share its pages. An id without a code has `unknown`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np

from pipeline.arrays import I64, Array, Arrays
from pipeline.bundle.bundle import Bundle
from pipeline.bundle.remote_spec import codes_file
from pipeline.errors import BundleError
from pipeline.hashing import PAD_ID

__all__ = ["Codes", "code_arrays"]

Code = int | float | str


class Codes:
    """Codes of one field. `encode` may be called from several threads at once.

    Attributes:
        asked: ids encoded so far, missing ones left out; unknown: those of them without a code.
        bytes: of the file.
        textual: whether the codes are texts.

    Raises:
        BundleError: the file breaks the format.
    """

    def __init__(self, arrays: Mapping[str, Array], unknown: Code, place: str) -> None:
        self.textual = "codes" not in arrays
        self._ids = _array(arrays, "ids", ("int64",), place)
        if len(self._ids) and not (self._ids[1:] > self._ids[:-1]).all():
            raise BundleError(f"{place}: ids must be sorted and unique", place)
        if self.textual:
            self._text = _array(arrays, "text", ("uint8",), place)
            self._offsets = _array(arrays, "offsets", ("int64",), place)
            rises = len(self._offsets) and (np.diff(self._offsets) >= 0).all() and self._offsets[0] == 0
            if not rises or self._offsets[-1] != len(self._text):
                raise BundleError(f"{place}: offsets must rise from 0 to the length of text", place)
            if not isinstance(unknown, str):
                raise BundleError(f"{place}: its codes are texts, and unknown is {unknown!r}", place)
        else:
            self._codes = _array(arrays, "codes", ("int64", "float64"), place)
            if isinstance(unknown, str) or (self._codes.dtype == np.int64 and unknown != int(unknown)):
                raise BundleError(f"{place}: its codes are {self._codes.dtype}, and unknown is {unknown!r}", place)
        values = len(self._offsets) - 1 if self.textual else len(self._codes)
        if values != len(self._ids):
            raise BundleError(f"{place}: {values:,} codes for {len(self._ids):,} ids", place)
        self._unknown = unknown
        self.bytes = sum(array.nbytes for array in arrays.values())
        self.asked = self.unknown = 0
        self._lock = threading.Lock()

    @classmethod
    def open(cls, bundle: Bundle, field: str, unknown: Code) -> Codes:
        """The codes of a field of a bundle. Raises: BundleError."""
        name = codes_file(field)
        return cls(bundle.mapped_tensors(name), unknown, f"{bundle.path}: {name}")

    def encode(self, ids: I64) -> Array:
        """Codes of ids int64 of any shape: int64, float64, or objects that are `bytes`."""
        flat = ids.reshape(-1)
        if len(self._ids):
            at = np.minimum(np.searchsorted(self._ids, flat), len(self._ids) - 1)
            known = self._ids[at] == flat
        else:
            at, known = np.zeros(len(flat), np.int64), np.zeros(len(flat), np.bool_)
        with self._lock:
            self.asked += int(np.count_nonzero(flat != PAD_ID))
            self.unknown += int(np.count_nonzero(~known & (flat != PAD_ID)))
        if self.textual:
            assert isinstance(self._unknown, str)
            found = np.full(len(flat), self._unknown.encode(), object)
            for row in np.flatnonzero(known).tolist():
                start, stop = self._offsets[at[row] : at[row] + 2]
                found[row] = self._text[start:stop].tobytes()
            return found.reshape(ids.shape)
        codes: Array = np.where(known, self._codes[at], self._unknown) if len(self._ids) else self._all_unknown(flat)
        return codes.astype(self._codes.dtype, copy=False).reshape(ids.shape)

    def _all_unknown(self, flat: I64) -> Array:
        return np.full(len(flat), self._unknown, self._codes.dtype)


def code_arrays(codes: Mapping[int, Code]) -> Arrays:
    """Arrays of a file, from codes by id.

    >>> code_arrays({5: 1, 3: 2})["ids"].tolist()
    [3, 5]
    """
    ids = np.array(sorted(codes), np.int64)
    values = [codes[i] for i in ids.tolist()]
    if not any(isinstance(value, str) for value in values):
        whole = all(isinstance(value, int) or value.is_integer() for value in values if not isinstance(value, str))
        return {"ids": ids, "codes": np.array(values, np.int64 if whole else np.float64)}
    texts = [str(value).encode() for value in values]
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(text) for text in texts], out=offsets[1:])
    return {"ids": ids, "offsets": offsets, "text": np.frombuffer(b"".join(texts), np.uint8)}


def _array(arrays: Mapping[str, Array], name: str, dtypes: tuple[str, ...], place: str) -> Array:
    found = arrays.get(name)
    if found is None or found.ndim != 1 or str(found.dtype) not in dtypes:
        raise BundleError(f"{place}: {name!r} must be there as {' or '.join(dtypes)} [V]", place)
    return found

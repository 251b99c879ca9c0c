"""Prediction ids: sortable by time, and verifiable with the installation's secret alone.

20 bytes, written in the 32 letters of base32hex (which sorts as the bytes do): 6 bytes of Unix time in milliseconds,
2 bytes of lane, 6 random bytes, 6 bytes of BLAKE2b keyed with the installation's secret over the first 14.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InvalidInput

__all__ = ["ID_BYTES", "PredictionIds", "PredictionInfo", "given_out", "load_secret", "smallest_id"]

ID_BYTES = 20
_CHECK_BYTES = 6
_RANDOM_BYTES = 6
_BATCH_IDS = 512
_DERIVED_LANE = (1 << 16) - 1  # in place of a lane

_LETTERS = "0123456789abcdefghijklmnopqrstuv"
_PAIRS = [a + b for a in _LETTERS for b in _LETTERS]
_SHIFT_BITS = range(8 * ID_BYTES - 10, -1, -10)


@dataclass(frozen=True, slots=True)
class PredictionInfo:
    """Content of a genuine id: time (Unix milliseconds) and lane."""

    time_ms: int
    lane: int


class PredictionIds:
    """Generator and verifier of ids under one secret key."""

    def __init__(self, key: bytes, lane: int = 0) -> None:
        if not 0 <= lane < 1 << 16:
            raise ValueError(f"lane is a number from 0 to 65535, not {lane}")
        self._keyed = hashlib.blake2b(key=key, digest_size=_CHECK_BYTES)
        self._lane = lane.to_bytes(2, "big")
        self._random: list[bytes] = []

    def new(self, time_ms: int) -> str:
        """A new id for a prediction made at `time_ms` (Unix milliseconds)."""
        body = time_ms.to_bytes(6, "big") + self._lane + self._take_random()
        bits = int.from_bytes(body + self._check(body), "big")
        return "".join([_PAIRS[bits >> shift & 1023] for shift in _SHIFT_BITS])

    def derive(self, time_ms: int, name: str) -> str:
        """The genuine id for a foreign name and a time (Unix milliseconds): always the same."""
        body = max(time_ms, 0).to_bytes(6, "big") + _DERIVED_LANE.to_bytes(2, "big")
        body += hashlib.blake2b(name.encode(), digest_size=_RANDOM_BYTES).digest()
        return base64.b32hexencode(body + self._check(body)).decode().lower()

    def _take_random(self) -> bytes:
        """Six random bytes, fetched many at once: each fetch releases the GIL, and getting it back is slow."""
        while True:
            try:
                return self._random.pop()
            except IndexError:
                many = secrets.token_bytes(_RANDOM_BYTES * _BATCH_IDS)
                self._random.extend(many[i : i + _RANDOM_BYTES] for i in range(0, len(many), _RANDOM_BYTES))

    def parse(self, prediction_id: str) -> PredictionInfo:
        """Read an id.

        Raises:
            InvalidInput: it was not made under this key.
        """
        try:
            raw = base64.b32hexdecode(prediction_id.upper())
        except (binascii.Error, ValueError):
            raw = b""
        if len(raw) != ID_BYTES or not hmac.compare_digest(raw[-_CHECK_BYTES:], self._check(raw[:-_CHECK_BYTES])):
            if not prediction_id:
                raise InvalidInput("prediction_id is empty: an answer without one was not recorded", "prediction_id")
            raise InvalidInput("prediction_id is not one that this installation gave out", "prediction_id")
        return PredictionInfo(int.from_bytes(raw[:6], "big"), int.from_bytes(raw[6:8], "big"))

    def _check(self, body: bytes) -> bytes:
        check = self._keyed.copy()
        check.update(body)
        return check.digest()


def given_out(prediction_id: str) -> bool:
    """Whether an id was given out by a lane, not derived from a foreign name; whose key it has is not looked at."""
    try:
        lane = base64.b32hexdecode(prediction_id.upper())[6:8]
    except (binascii.Error, ValueError):
        return False
    return int.from_bytes(lane, "big") != _DERIVED_LANE


def smallest_id(time_ms: int) -> str:
    """Lower bound of all ids of that time (Unix milliseconds) or later; not a genuine id."""
    body = max(time_ms, 0).to_bytes(6, "big") + bytes(ID_BYTES - 6)
    return base64.b32hexencode(body).decode().lower()


def load_secret(path: Path, first: bytes = b"") -> bytes:
    """The installation's secret (32 bytes), created on first use, readable by its owner only; safe against races.

    Args:
        first: the secret on first use; random if empty.
    """
    try:
        return _read(path)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        handle = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(first or secrets.token_bytes(32))
        try:
            os.link(staging, path)  # fails if another process was first: then its key is used
        except FileExistsError:
            pass
        finally:
            staging.unlink()
        return _read(path)


def _read(path: Path) -> bytes:
    key = path.read_bytes()
    if len(key) != 32:
        raise InvalidInput(f"{path} must hold 32 bytes; it holds {len(key)}: restore it or start with a new home")
    return key

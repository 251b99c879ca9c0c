"""FarmHash Fingerprint64 of bytes, as TensorFlow's `to_hash_bucket_fast`, Keras' hashing of strings and BigQuery compute it.

The function is fixed for ever by its authors (farmhashna::Hash64); teams that hashed values into buckets have tables whose
row numbers depend on it. Pure Python, since callers hash each distinct value once.
"""

from __future__ import annotations

__all__ = ["farm64"]

_MASK = (1 << 64) - 1
_FACTORS = (0xC3A5C85C97CB3127, 0xB492B66FBE98F273, 0x9AE16A3B2F90404F)


def farm64(data: bytes) -> int:
    """The fingerprint of bytes, from 0 to 2^64 - 1.

    >>> [farm64(text) % 3 for text in (b"Hello", b"TensorFlow", b"2.x")]
    [0, 2, 2]
    """
    length = len(data)
    if length <= 16:
        return _to_16(data, length)
    if length <= 32:
        return _to_32(data, length)
    return _to_64(data, length) if length <= 64 else _longer(data, length)


def _u64(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 8], "little")


def _u32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def _rotated(value: int, by: int) -> int:
    value &= _MASK
    return ((value >> by) | (value << (64 - by))) & _MASK if by else value


def _mixed(value: int) -> int:
    return value ^ (value >> 47)


def _of_two(u: int, v: int, multiplier: int) -> int:
    a = _mixed(((u ^ v) * multiplier) & _MASK)
    b = _mixed(((v ^ a) * multiplier) & _MASK)
    return (b * multiplier) & _MASK


def _to_16(s: bytes, length: int) -> int:
    if length >= 8:
        multiplier = _FACTORS[2] + length * 2
        a, b = (_u64(s, 0) + _FACTORS[2]) & _MASK, _u64(s, length - 8)
        c = (_rotated(b, 37) * multiplier + a) & _MASK
        d = ((_rotated(a, 25) + b) * multiplier) & _MASK
        return _of_two(c, d, multiplier)
    if length >= 4:
        return _of_two(length + (_u32(s, 0) << 3), _u32(s, length - 4), _FACTORS[2] + length * 2)
    if length:
        y, z = s[0] + (s[length >> 1] << 8), length + (s[length - 1] << 2)
        return (_mixed(((y * _FACTORS[2]) ^ (z * _FACTORS[0])) & _MASK) * _FACTORS[2]) & _MASK
    return _FACTORS[2]


def _to_32(s: bytes, length: int) -> int:
    multiplier = _FACTORS[2] + length * 2
    a, b = (_u64(s, 0) * _FACTORS[1]) & _MASK, _u64(s, 8)
    c, d = (_u64(s, length - 8) * multiplier) & _MASK, (_u64(s, length - 16) * _FACTORS[2]) & _MASK
    return _of_two(
        (_rotated(a + b, 43) + _rotated(c, 30) + d) & _MASK, (a + _rotated(b + _FACTORS[2], 18) + c) & _MASK, multiplier
    )


def _to_64(s: bytes, length: int) -> int:
    multiplier = _FACTORS[2] + length * 2
    a, b = (_u64(s, 0) * _FACTORS[2]) & _MASK, _u64(s, 8)
    c, d = (_u64(s, length - 8) * multiplier) & _MASK, (_u64(s, length - 16) * _FACTORS[2]) & _MASK
    y = (_rotated(a + b, 43) + _rotated(c, 30) + d) & _MASK
    z = _of_two(y, (a + _rotated(b + _FACTORS[2], 18) + c) & _MASK, multiplier)
    e, f = (_u64(s, 16) * multiplier) & _MASK, _u64(s, 24)
    g, h = ((y + _u64(s, length - 32)) * multiplier) & _MASK, ((z + _u64(s, length - 24)) * multiplier) & _MASK
    return _of_two(
        (_rotated(e + f, 43) + _rotated(g, 30) + h) & _MASK, (e + _rotated(f + a, 18) + g) & _MASK, multiplier
    )


def _pair(s: bytes, at: int, a: int, b: int) -> tuple[int, int]:
    """Two sums of 32 bytes with seeds (WeakHashLen32WithSeeds)."""
    w, x, y, z = (_u64(s, at + 8 * part) for part in range(4))
    a = (a + w) & _MASK
    b = _rotated(b + a + z, 21)
    c = a
    a = (a + x + y) & _MASK
    b = (b + _rotated(a, 44)) & _MASK
    return (a + z) & _MASK, (b + c) & _MASK


def _longer(s: bytes, length: int) -> int:
    seed = 81
    x = seed
    y = (seed * _FACTORS[1] + 113) & _MASK
    z = (_mixed((y * _FACTORS[2] + 113) & _MASK) * _FACTORS[2]) & _MASK
    v, w = (0, 0), (0, 0)
    x = (x * _FACTORS[2] + _u64(s, 0)) & _MASK
    end = ((length - 1) // 64) * 64
    for at in range(0, end, 64):
        x = (_rotated(x + y + v[0] + _u64(s, at + 8), 37) * _FACTORS[1]) & _MASK
        y = (_rotated(y + v[1] + _u64(s, at + 48), 42) * _FACTORS[1]) & _MASK
        x ^= w[1]
        y = (y + v[0] + _u64(s, at + 40)) & _MASK
        z = (_rotated(z + w[0], 33) * _FACTORS[1]) & _MASK
        v = _pair(s, at, (v[1] * _FACTORS[1]) & _MASK, (x + w[0]) & _MASK)
        w = _pair(s, at + 32, (z + w[1]) & _MASK, (y + _u64(s, at + 16)) & _MASK)
        z, x = x, z
    multiplier = (_FACTORS[1] + ((z & 0xFF) << 1)) & _MASK
    at = length - 64
    w = ((w[0] + ((length - 1) & 63)) & _MASK, w[1])
    v = ((v[0] + w[0]) & _MASK, v[1])
    w = ((w[0] + v[0]) & _MASK, w[1])
    x = (_rotated(x + y + v[0] + _u64(s, at + 8), 37) * multiplier) & _MASK
    y = (_rotated(y + v[1] + _u64(s, at + 48), 42) * multiplier) & _MASK
    x ^= (w[1] * 9) & _MASK
    y = (y + v[0] * 9 + _u64(s, at + 40)) & _MASK
    z = (_rotated(z + w[0], 33) * multiplier) & _MASK
    v = _pair(s, at, (v[1] * multiplier) & _MASK, (x + w[0]) & _MASK)
    w = _pair(s, at + 32, (z + w[1]) & _MASK, (y + _u64(s, at + 16)) & _MASK)
    z, x = x, z
    return _of_two(
        (_of_two(v[0], w[0], multiplier) + _mixed(y) * _FACTORS[0] + z) & _MASK,
        (_of_two(v[1], w[1], multiplier) + x) & _MASK,
        multiplier,
    )

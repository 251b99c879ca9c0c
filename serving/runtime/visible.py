"""Foreign text made safe to show: on a terminal, in a table, in a line of a log.

Reasons, names, manifests and messages of servers are written by others. What they hold is shown and never obeyed: a
character that steers a terminal, hides, or turns the order of the letters is written as its escape.
"""

from __future__ import annotations

import re

__all__ = ["json_safe", "visible"]

_UNSEEN = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # control characters of ASCII and of Latin-1, where \x9b begins a command as ESC [ does
    "\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\uffa0"  # hyphens and fillers without a shape
    "\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\uffff"  # no width, ends of lines, order of the letters
    "\ud800-\udfff"  # halves of a character, which no encoding can write
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"  # further ones without a shape, tags
    "]"
)
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def visible(text: str, most: int | None = None) -> str:
    r"""The text on one line, with every character that does not show as itself written as an escape.

    >>> visible("done\x1b[2J\n\u202etxt")
    'done\\x1b[2J\\n\\u202etxt'

    Args:
        most: letters that are shown; the number of the rest stands behind them.
    """
    rest = 0 if most is None else len(text) - most
    if rest > 0:
        text = text[:most]
    shown = _UNSEEN.sub(lambda found: _SHORT.get(found[0]) or _escape(found[0]), text)
    return f"{shown} ... ({rest:,} more letters)" if rest > 0 else shown


def json_safe(document: str) -> str:
    r"""A JSON document of one line with the same content, in which such characters are JSON's own escapes.

    >>> json_safe('"ü\x9b"')
    '"ü\\u009b"'
    """
    return _UNSEEN.sub(lambda found: _json_escape(found[0]), document)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))

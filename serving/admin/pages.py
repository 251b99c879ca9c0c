"""Pages of a list. A token names the entry after which the next page begins, so that entries added or removed between two
calls shift nothing. It is valid only for the list and the filter that it was made for.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable
from typing import TypeVar

from pipeline.documents import parse_json
from pipeline.errors import InvalidInput
from serving.admin.requests import LARGEST_VERSION, Page

__all__ = ["Cursor", "cut", "read_token", "write_token"]

T = TypeVar("T")
Cursor = tuple[str | int, ...]
"""Sort key of an entry."""


def write_token(scope: Page, cursor: Cursor) -> str:
    """Token of the page after the entry at `cursor`. `scope`: the request, whose filter counts."""
    text = json.dumps([_digest(scope), *cursor], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def read_token(scope: Page, *kinds: type) -> Cursor | None:
    """Cursor of the entry before the page, None for the first page.

    Args:
        kinds: types of the cursor's parts, str or int.

    Raises:
        InvalidInput: the token was not made for this list.
    """
    token = scope.page_token
    if not token:
        return None
    wrong = InvalidInput(
        "page_token is not one that this list gave; send `next_page_token` unchanged, with the same filter",
        "page_token",
    )
    try:
        digest, *cursor = parse_json(base64.b64decode(token + "=" * (-len(token) % 4), b"-_", validate=True))
    except (ValueError, TypeError):
        raise wrong from None
    fits = len(cursor) == len(kinds) and all(type(part) is kind for part, kind in zip(cursor, kinds, strict=True))
    if digest != _digest(scope) or not fits or any(type(p) is int and not 0 <= p <= LARGEST_VERSION for p in cursor):
        raise wrong
    return tuple(cursor)


def cut(entries: Iterable[T], page: Page, key: Callable[[T], Cursor], *kinds: type) -> tuple[list[T], str]:
    """One page of an in-memory list, sorted by `key`, and the next page's token.

    Args:
        kinds: types of the key's parts.

    Raises:
        InvalidInput: the page's token was not made for this list.
    """
    after = read_token(page, *kinds)
    rest = sorted((entry for entry in entries if after is None or key(entry) > after), key=key)
    found = rest[: page.page_size]
    return found, write_token(page, key(found[-1])) if len(rest) > len(found) else ""


def _digest(scope: Page) -> str:
    asked = f"{type(scope).__name__} {scope.model_dump_json(exclude={'page_size', 'page_token'})}"
    return hashlib.blake2b(asked.encode(), digest_size=8).hexdigest()

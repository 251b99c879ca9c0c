"""What REST routes share: from headers to a caller, from path and body to a verb's request, from the answer to an ETag."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import Header, Request, Response, Security
from fastapi.security import HTTPBearer
from pydantic import BaseModel

from pipeline.errors import InvalidInput
from serving.admin import Admin, Verb
from serving.admin import requests as r
from serving.admin.answers import Answer
from serving.admin.caller import ACTOR, KEY, caller
from serving.admin.door import request_of
from serving.config.principal import Principal, PrincipalSource

__all__ = ["Ask", "asker", "changer"]

Q = TypeVar("Q", bound=r.Request)
A = TypeVar("A", bound=Answer)

_BEARER = HTTPBearer(auto_error=False, description="a token of `baton token create`, of role viewer or operator")
_ETAG = re.compile(r'"(\d{1,18})"')

Actor = Annotated[
    str, Header(alias=ACTOR, max_length=200, description="who asks, for the audit; where no tokens are configured")
]
Key = Annotated[
    str, Header(alias=KEY, max_length=200, description="the same key with the same request returns the first answer")
]
IfMatch = Annotated[
    str,
    Header(
        alias="if-match", max_length=40, description='ETag of what the caller looked at, such as "5"; as `expected`'
    ),
]


class Ask:
    """One call of one caller.

    Attributes:
        by: who calls.
    """

    def __init__(
        self, admin: Admin, by: Callable[[], Principal], response: Response, key: str = "", if_match: str = ""
    ) -> None:
        self._admin = admin
        self.by = by
        self._response = response
        self._key = key
        self._if_match = if_match

    def __call__(self, verb: Verb[Q, A], body: BaseModel | None = None, **path: Any) -> A:
        """Call a verb with what path and body or query say; an answer with a resource version carries it as its ETag.

        Raises:
            InvalidInput: the request is not one, or If-Match and `expected` differ. And see `Admin.call`.
        """
        fields = {**(body.model_dump(exclude_unset=True) if body is not None else {}), **path}
        if self._if_match:
            fields["expected"] = self._expected(fields.get("expected"))
        answer = self._admin.call(verb, request_of(verb, fields), self.by(), self._key)
        version = getattr(answer, "resource_version", None)
        if version is not None:
            self._response.headers["etag"] = f'"{version}"'
        return answer

    def _expected(self, said: int | None) -> int:
        found = _ETAG.fullmatch(self._if_match)
        if found is None:
            raise InvalidInput('if-match: send the ETag of what you looked at, such as "5"', "if-match")
        if said is not None and said != int(found[1]):
            raise InvalidInput(f"if-match says {found[1]} and expected says {said}; send one of them", "expected")
        return int(found[1])


def asker(admin: Admin, authenticator: PrincipalSource) -> Callable[..., Ask]:
    """The dependency of routes that change nothing."""

    def ask(
        request: Request, response: Response, _: Annotated[Any, Security(_BEARER)] = None, actor: Actor = ""
    ) -> Ask:
        authorization = request.headers.get("authorization", "")
        return Ask(admin, lambda: caller(authenticator, authorization, actor), response)

    return ask


def changer(admin: Admin, authenticator: PrincipalSource) -> Callable[..., Ask]:
    """The dependency of routes that change something: they take an idempotency key and If-Match as well."""

    def ask(
        request: Request,
        response: Response,
        _: Annotated[Any, Security(_BEARER)] = None,
        actor: Actor = "",
        key: Key = "",
        if_match: IfMatch = "",
    ) -> Ask:
        authorization = request.headers.get("authorization", "")
        return Ask(admin, lambda: caller(authenticator, authorization, actor), response, key, if_match)

    return ask

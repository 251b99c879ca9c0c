"""Common part of the REST routes: from headers to a caller, from path and body to a verb's request, from answer to ETag."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from typing import Annotated, Any, TypeVar

from fastapi import Header, Request, Response, Security
from fastapi.security import HTTPBearer
from pydantic import BaseModel

from pipeline.errors import InvalidInput
from serving.admin import Admin, Verb
from serving.admin import requests as r
from serving.admin.answers import Answer
from serving.admin.bulk import BulkAnswer
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
        """Call a verb with the fields of path and body or query. The ETag is the answer's resource version, if it has one.

        Raises:
            InvalidInput: the fields are wrong, or If-Match and `expected` differ. See also `Admin.call`.
        """
        fields = {**(body.model_dump(exclude_unset=True) if body is not None else {}), **path}
        if self._if_match:
            fields["expected"] = self._expected(fields.get("expected"))
        answer = self._admin.call(verb, request_of(verb, fields), self.by(), self._key)
        version = getattr(answer, "resource_version", None)
        if version is not None:
            self._response.headers["etag"] = f'"{version}"'
        return answer

    def bulk(self, verb: Verb[Q, Any], body: BaseModel) -> BulkAnswer:
        """Begin the answer of a verb that is a file. Raises: as `__call__`."""
        return self._admin.bulk(verb, request_of(verb, body.model_dump(exclude_unset=True)), self.by())

    async def at_once(self, verb: Verb[Q, A], body: BaseModel | None = None, **path: Any) -> A:
        """The same in the threads for verbs that stop a candidate: other requests may be using up all the others."""
        context = copy_context()  # it has the caller
        return await asyncio.get_running_loop().run_in_executor(
            self._admin.brake_threads, lambda: context.run(lambda: self(verb, body, **path))
        )

    def _expected(self, field: int | None) -> int:
        found = _ETAG.fullmatch(self._if_match)
        if found is None:
            raise InvalidInput('if-match: send the ETag of what you looked at, such as "5"', "if-match")
        if field is not None and field != int(found[1]):
            raise InvalidInput(f"if-match says {found[1]} and expected says {field}; send one of them", "expected")
        return int(found[1])


def asker(admin: Admin, authenticator: PrincipalSource) -> Callable[..., Awaitable[Ask]]:
    """Dependency of routes that only read."""

    async def ask(
        request: Request, response: Response, _: Annotated[Any, Security(_BEARER)] = None, actor: Actor = ""
    ) -> Ask:
        authorization = request.headers.get("authorization", "")
        return Ask(admin, lambda: caller(authenticator, authorization, actor), response)

    return ask


def changer(admin: Admin, authenticator: PrincipalSource) -> Callable[..., Awaitable[Ask]]:
    """Dependency of routes that change something: they take an idempotency key and If-Match too."""

    async def ask(
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

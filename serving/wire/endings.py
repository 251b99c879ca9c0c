"""Ends of gRPC calls that fail: what is raised keeps nothing of the call.

gRPC holds a call's stream until its state is freed, and the state holds what was raised. Through the traceback that would
hold the frames, they the context, and it the state: a circle, which only the garbage collector ends, maybe after a
connection has run out of streams.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

__all__ = ["bare", "single", "stream"]

_BARE = "_baton_bare"


def single(behaviour: Any) -> Any:
    """A behaviour with one answer, as gRPC is to call it."""

    async def call(request: Any, context: Any) -> Any:
        try:
            return await behaviour(request, context)
        except BaseException as error:
            request = context = None
            _let_go(error)
            raise

    call.__dict__[_BARE] = behaviour
    return call


def stream(behaviour: Any) -> Any:
    """A behaviour with a stream of answers, an async generator, as gRPC is to call it."""

    async def call(request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            async with aclosing(behaviour(request, context)) as answers:
                async for answer in answers:
                    yield answer
        except BaseException as error:
            request = context = answers = None
            _let_go(error)
            raise

    call.__dict__[_BARE] = behaviour
    return call


def bare(behaviour: Any) -> Any:
    """The behaviour that `single` or `stream` was given, for whoever puts it into another one and ends that; else itself."""
    return getattr(behaviour, _BARE, behaviour)


def _let_go(error: BaseException | None) -> None:
    """Drop the frames that an exception came through, and what led to it."""
    while error is not None:
        earlier = error.__context__ or error.__cause__
        error.__traceback__ = error.__context__ = error.__cause__ = None
        error = earlier

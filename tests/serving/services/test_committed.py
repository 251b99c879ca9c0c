"""Waiting for a commit of the traffic log while callers go away and the log fails."""

from __future__ import annotations

import asyncio
import gc
from concurrent.futures import Future
from typing import Any

import pytest

from pipeline.errors import NotReady
from serving.services.rpc import committed


def test_a_commit_that_fails_after_its_caller_has_gone_is_told_nobody() -> None:
    told: list[dict[str, Any]] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        future: Future[None] = Future()
        gone = asyncio.create_task(committed(future))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert not future.cancelled()
        waits = asyncio.create_task(committed(future))
        await asyncio.sleep(0)
        future.set_exception(NotReady("the disk is full"))
        with pytest.raises(NotReady):
            await waits
        del gone
        gc.collect()

    asyncio.run(run())
    gc.collect()
    assert not told

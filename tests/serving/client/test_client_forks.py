"""Clients and a fork: a child has connections of its own, or its calls fail at once; the parent goes on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from serving.client.testing import FakeServer

PROGRAM = """
import asyncio, os, signal, sys, threading, time
import grpc
from protos.baton.ranking.v1 import ranking_pb2 as pb
from serving.client import AsyncRankingClient, Options, RankingClient

def rank(client):
    return client.rank_message(pb.RankRequest(endpoint="ranker"))

def tried(call):
    begin = time.monotonic()
    try:
        call()
        said = "answered"
    except Exception as error:
        said = f"{type(error).__name__} {error}"
    print("late" if time.monotonic() - begin > 10 else said, flush=True)

target = sys.argv[1]
options = Options(timeout=20)

"""
OWN = """
client = RankingClient(target, options)
"""
USED = """
client = RankingClient(target, options)
rank(client)
"""
BUSY = (
    USED
    + """
over = threading.Event()
def work():
    while not over.is_set():
        rank(client)
workers = [threading.Thread(target=work) for _ in range(3)]
[worker.start() for worker in workers]
"""
)
# Open at the fork: with its last channel gRPC ends its threads, now or a little later, and then a child's calls work.
OTHERS = """
channel = grpc.insecure_channel(target)
grpc.channel_ready_future(channel).result(20)
client = RankingClient(target, options)
"""
FORK = """
if os.fork() == 0:
    signal.alarm(50)
    tried(lambda: rank(client))
    tried(lambda: rank(RankingClient(target, options)))
    client.close()
    os._exit(0)
print(os.wait()[1], flush=True)
"""
PARENT = """
if "over" in globals():
    over.set()
    [worker.join() for worker in workers]
tried(lambda: rank(client))
client.close()
"""
ASYNC = """
async def both():
    client = AsyncRankingClient(target, options)
    if os.fork() == 0:
        signal.alarm(50)
        try:
            await rank(client)
            print("answered", flush=True)
        finally:
            os._exit(0)
    print(os.wait()[1], flush=True)
    await rank(client)
    if os.fork() == 0:
        signal.alarm(50)
        try:
            await rank(client)
        except Exception as error:
            print(type(error).__name__, flush=True)
        finally:
            os._exit(0)
    print(os.wait()[1], flush=True)
    await rank(client)
    await client.close()

asyncio.run(both())
"""


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    with FakeServer() as server:
        yield server.target


def run(target: str, program: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + program, target], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_client_made_before_a_fork_and_first_used_after_it_opens_connections_of_its_own(target: str) -> None:
    assert run(target, OWN + FORK + PARENT) == ["answered", "answered", "0", "answered"]


@pytest.mark.parametrize("before", [USED, BUSY, OTHERS], ids=["used", "busy", "others"])
def test_where_grpc_was_used_before_the_fork_a_childs_calls_fail_at_once(target: str, before: str) -> None:
    first, second, status, parent = run(target, before + FORK + PARENT)
    for said in (first, second):
        assert said.startswith("Conflict")
        assert "was forked from" in said
        assert "spawn" in said
    assert (status, parent) == ("0", "answered")


def test_the_async_client_too(target: str) -> None:
    assert run(target, ASYNC) == ["answered", "0", "Conflict", "0"]

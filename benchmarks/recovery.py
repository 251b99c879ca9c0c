"""`python -m benchmarks.recovery`: what clients see of a restart, and of each process stopped in turn as one that hangs.

An installation answers requests of three kinds of clients: over connections that stay, over a new connection each, and by the
library. No call is repeated by the script; the library repeats as it always does. Meanwhile `baton restart` runs, with two lanes
and with one; then each process gets SIGSTOP in turn, the supervisor too. The table has the calls, those that failed, the longest
one, and the seconds: of the command, or from the signal to the last call that failed (`answers`) and to the new process.
Ends with 1 if a call failed in a restart, or a process did not come back.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np

from benchmarks.server import BatonServer
from pipeline.bundle.versions import Repository
from pipeline.errors import BatonError
from pipeline.features import Features, Rows
from pipeline.schema import FieldSpec, Schema
from protos.baton.ranking.v1 import ranking_pb2_grpc
from serving.client import AsyncRankingClient
from serving.client.messages import rank_request
from serving.runtime.process import die_with_parent
from serving.runtime.status import LaneStatus
from transfer.bundles.publish import save
from transfer.click_model.model import ClickModel

__all__ = ["Row", "installation", "measure_hang", "measure_restart"]

SCHEMA = Schema(fields=(FieldSpec(name="user", role="context"), FieldSpec(name="item", role="candidate")))
DEADLINE_S = 5.0
CHANNELS_COUNT = 8
BEFORE_S = 3.0
AFTER_S = 3.0
HANG_LIMIT_S = 60.0
RESTART_LIMIT_S = 300.0
SUPERVISOR_S = 25.0
"""Time for which the supervisor is stopped: longer than its patience with others."""
COMMAND = "from serving.cli.main import app; app()"


@dataclass
class Row:
    """Figures of one incident.

    Args:
        failed: calls by kind of client.
        longest_s: of a call that was answered.
        command_s: seconds of the command; answers_s: until the last call that failed had begun; process_s: until the new process
            had reported.
    """

    what: str
    calls: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    longest_s: float = 0.0
    command_s: float = 0.0
    answers_s: float = 0.0
    process_s: float = 0.0
    problem: str = ""


@dataclass
class _Load:
    """Requests at a steady rate, whatever becomes of them."""

    target: str
    rate: float
    calls: int = 0
    longest_s: float = 0.0
    failures: list[tuple[float, str, str]] = field(default_factory=list)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self, stop: asyncio.Event) -> None:
        """Send until `stop` is set; every third call over a new connection, every third by the library."""
        rows = Rows(ids=np.array([[1, item] for item in range(1, 6)], np.int64), numbers=np.zeros((5, 0), np.float32))
        features = Features.from_context(SCHEMA, rows)
        request = rank_request("ranker", SCHEMA, features, routing_key="user:1")
        channels = [grpc.aio.insecure_channel(self.target, options=_OPTIONS) for _ in range(CHANNELS_COUNT)]
        stubs = [_stub(channel) for channel in channels]

        async def over_new() -> None:
            async with grpc.aio.insecure_channel(self.target, options=_OPTIONS) as channel:
                await _stub(channel).Rank(request, timeout=DEADLINE_S)

        async with AsyncRankingClient(self.target) as library:
            kinds: list[tuple[str, Callable[[int], Awaitable[object]]]] = [
                ("kept", lambda i: stubs[i % CHANNELS_COUNT].Rank(request, timeout=DEADLINE_S)),
                ("new", lambda _: over_new()),
                ("library", lambda _: library.rank("ranker", SCHEMA, features, timeout=DEADLINE_S)),
            ]
            began = time.monotonic()
            while not stop.is_set():
                kind, send = kinds[self.calls % len(kinds)]
                task = asyncio.create_task(self._one(kind, send, self.calls // len(kinds)))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                self.calls += 1
                await asyncio.sleep(max(0.0, began + self.calls / self.rate - time.monotonic()))
            await asyncio.gather(*self._tasks)
        for channel in channels:
            await channel.close()

    async def _one(self, kind: str, send: Callable[[int], Awaitable[object]], number: int) -> None:
        began = time.monotonic()
        try:
            await send(number)
        except (grpc.aio.AioRpcError, BatonError) as error:
            why = str(error.details() if isinstance(error, grpc.aio.AioRpcError) else error)
            self.failures.append((began, kind, why))
        else:
            self.longest_s = max(self.longest_s, time.monotonic() - began)


_OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]


def _stub(channel: grpc.aio.Channel) -> ranking_pb2_grpc.RankingServiceStub:
    return ranking_pb2_grpc.RankingServiceStub(channel)  # type: ignore[no-untyped-call]


async def _under_load(server: BatonServer, rate: float, row: Row, harm: Callable[[Row], Awaitable[None]]) -> None:
    load, stop = _Load(f"127.0.0.1:{server.port}", rate), asyncio.Event()
    sending = asyncio.create_task(load.run(stop))
    try:
        await asyncio.sleep(BEFORE_S)
        began = time.monotonic()
        await harm(row)
        await asyncio.sleep(AFTER_S)
    finally:
        stop.set()
        await sending
    row.calls, row.longest_s = load.calls, load.longest_s
    for at, kind, why in load.failures:
        row.failed[kind] = row.failed.get(kind, 0) + 1
        row.answers_s = max(row.answers_s, at - began)
        row.problem = row.problem or why


def measure_restart(server: BatonServer, rate: float) -> Row:
    """Figures of `baton restart` under `rate` requests a second."""
    before = server.pids
    row = Row(f"baton restart, lanes: {sum(name.startswith('lane-') for name in before)}")

    async def harm(row: Row) -> None:
        began = time.monotonic()
        command = await asyncio.create_subprocess_exec(
            sys.executable, "-c", COMMAND, "restart", "--config", str(server.home / "baton.yaml"),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        said, _ = await asyncio.wait_for(command.communicate(), RESTART_LIMIT_S)
        row.command_s = time.monotonic() - began
        if command.returncode:
            row.problem = said.decode(errors="replace").strip()[-300:]

    asyncio.run(_under_load(server, rate, row, harm))
    kept = [name for name, pid in server.pids.items() if before.get(name) == pid]
    if kept and not row.problem:
        row.problem = f"not restarted: {', '.join(kept)}"
    return row


def measure_hang(server: BatonServer, name: str, rate: float) -> Row:
    """Figures of a process, or of `supervisor`, stopped by a signal under `rate` requests a second."""
    row = Row(f"SIGSTOP of {name}")
    asyncio.run(_under_load(server, rate, row, lambda row: _stopped(server, name, row)))
    return row


def installation(folder: Path, lanes: int, **settings: object) -> BatonServer:
    """An installation of two small models. `settings`: sections of its baton.yaml."""
    repository = Repository(folder / "bundles")
    for name, architecture in (("teacher", "fm"), ("student", "dnn")):
        save(ClickModel.create(SCHEMA, architecture, 4, seed=0), repository, name)
    return BatonServer(folder, {"ranker": ("teacher", "student")}, {"engine": {"lanes": lanes}, **settings})


async def _stopped(server: BatonServer, name: str, row: Row) -> None:
    began = time.monotonic()
    supervisor = server.statuses().supervisor
    assert supervisor is not None
    pid = supervisor.status.pid if name == "supervisor" else server.pids[name]
    os.kill(pid, signal.SIGSTOP)
    if name == "supervisor":
        before = server.pids
        await asyncio.sleep(SUPERVISOR_S)
        os.kill(pid, signal.SIGCONT)
        await asyncio.sleep(2 * AFTER_S)
        if server.pids != before:
            row.problem = "processes were restarted after the supervisor went on"
        return
    until = began + HANG_LIMIT_S
    while time.monotonic() < until:
        found = server.statuses().all().get(name)
        reported = None if found is None else found.status
        ready = not isinstance(reported, LaneStatus) or reported.state == "ready"
        if reported is not None and getattr(reported, "pid", pid) != pid and ready:
            row.process_s = time.monotonic() - began
            return
        await asyncio.sleep(0.2)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    row.problem = f"{name} did not come back within {HANG_LIMIT_S:.0f} s"


def _main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--rate", type=float, default=100.0, help="requests a second")
    words.add_argument("--only", choices=("restart", "hang"), help="one of both parts")
    words.add_argument("--process", action="append", default=[], help="stop only this one; again for more")
    words.add_argument(
        "--lanes", type=int, action="append", default=[], help="restart with so many lanes; again for more"
    )
    given = words.parse_args()
    die_with_parent()
    print(f"{'what':28} {'calls':>6} {'failed':>22} {'longest':>8} {'command':>8} {'answers':>8} {'process':>8}")
    good = True

    def show(row: Row) -> None:
        failed = ", ".join(f"{kind} {count}" for kind, count in row.failed.items()) or "0"
        seconds = " ".join(f"{value:7.1f}s" for value in (row.longest_s, row.command_s, row.answers_s, row.process_s))
        print(f"{row.what:28} {row.calls:6} {failed:>22} {seconds}  {row.problem}", flush=True)

    if given.only != "hang":
        for lanes in given.lanes or (2, 1):
            with tempfile.TemporaryDirectory() as folder, installation(Path(folder) / "home", lanes) as server:
                row = measure_restart(server, given.rate)
            show(row)
            good &= not row.failed and not row.problem
    if given.only != "restart":
        with (
            tempfile.TemporaryDirectory() as folder,
            installation(Path(folder) / "home", 2, worker={"endpoint": "ranker"}) as server,
        ):
            for name in given.process or [*sorted(server.pids), "supervisor"]:
                row = measure_hang(server, name, given.rate)
                show(row)
                good &= "did not come back" not in row.problem and "restarted" not in row.problem
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(_main())

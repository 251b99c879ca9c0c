"""`python -m benchmarks.lost_state`: the state's Redis is emptied, full, slow and replaced under load, each in turn.

An installation with its state and its traffic log in one Redis answers calls at a constant rate, half of them by the candidate.
Each incident begins, the candidate is killed over REST, a lane is ended with SIGKILL and starts anew, and the state is mended:
by `baton state restore` where it was lost. Printed are failed calls, the candidate's share of the answers, the time from the order to kill until the candidate's last
answer, and how long the first sign took. Ends with 1 if a call failed for want of state, the candidate lost its weight, or a kill
took longer than a second.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import redis
import yaml

from benchmarks.recovery import SCHEMA, installation
from benchmarks.server import BatonServer, free_port
from pipeline.errors import BatonError
from pipeline.features import Features, Rows
from serving.cli.api import AdminClient
from serving.client import RankingClient
from serving.runtime.process import die_with_parent

__all__ = ["Incident", "measure", "state_redis"]

WITHIN_S = 1.0
LIMIT_S = 60.0
SETTLE_S = 3.0
SLOW_S = 1.5
"""Delay of each reply of a slow Redis, above the time that kill flags wait for one."""
DEADLINE_S = 2.0
CANDIDATES, USERS_COUNT = 8, 997
DURABLE = ("--save", "", "--appendonly", "yes", "--maxmemory-policy", "noeviction")


@dataclass(frozen=True)
class Incident:
    """Figures of one incident.

    Args:
        calls, failed: from its begin to its end, without those that a lane had in hand when it was ended.
        share: of the answers within the incident and before the kill, those of the candidate, whose weight is 50.
        sign: of lanes, as `baton status` shows it; sign_s: seconds to it; 0: there is none, nothing is wrong for them.
        kill_s: from the order over REST to the candidate's last answer.
        again_s: from the end of the lane to its first answer.
        mended: what brought the state back; back_s: seconds from that to the first answer of the candidate, once released.
    """

    name: str
    calls: int
    failed: int
    share: float
    sign: str
    sign_s: float
    kill_s: float
    again_s: float
    mended: str
    back_s: float

    @property
    def good(self) -> bool:
        """Whether no call failed, the weight stayed, and the kill was in time."""
        return not self.failed and self.share > 0 and self.kill_s <= WITHIN_S


class Door:
    """TCP forwarder whose connections go where it is told, and whose replies wait."""

    def __init__(self, to: int) -> None:
        self.to, self.delay_s, self.port = to, 0.0, free_port()
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, name="door", daemon=True).start()

    def lead(self, to: int) -> None:
        """Let all connections end, and new ones go elsewhere."""
        self.to = to
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            try:
                far = socket.create_connection(("127.0.0.1", self.to))
            except OSError:
                near.close()
                continue
            self._open += [near, far]
            for one, other, late in ((near, far, False), (far, near, True)):
                threading.Thread(target=self._pass, args=(one, other, late), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket, late: bool) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 16):
                if late and self.delay_s:
                    time.sleep(self.delay_s)
                other.sendall(data)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Load:
    """Calls at a constant rate, each by another user; remembers when which arm answered, and what failed."""

    def __init__(self, port: int, rate: float) -> None:
        self.answers: deque[tuple[float, str]] = deque(maxlen=100_000)
        self.failures: deque[tuple[float, str]] = deque(maxlen=100_000)
        self._port, self._pause_s, self._stop = port, 1 / rate, threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(LIMIT_S)

    def last(self, arm: str, since: float = 0.0) -> float:
        """When an arm answered last; 0: never since."""
        return max((at for at, answered in list(self.answers) if answered == arm and at >= since), default=0.0)

    def _run(self) -> None:
        rng, number = np.random.default_rng(0), 0
        with RankingClient([f"127.0.0.1:{self._port}"]) as client:
            while not self._stop.wait(self._pause_s):
                number += 1
                ids = rng.integers(1, 1000, (CANDIDATES, 2))
                ids[:, 0] = user = number % USERS_COUNT
                features = Features.from_context(SCHEMA, Rows(ids, np.zeros((CANDIDATES, 0), np.float32)))
                try:
                    answer = client.rank("ranker", SCHEMA, features, routing_key=f"user:{user}", timeout=DEADLINE_S)
                except BatonError as error:
                    self.failures.append((time.monotonic(), str(error)))
                else:
                    self.answers.append((time.monotonic(), answer.arm))


class _Place:
    """A running installation behind a door to its Redis."""

    def __init__(self, folder: Path, server: BatonServer, door: Door, first: int, load: Load) -> None:
        self.folder, self.server, self.door, self.first, self.load = folder, server, door, first, load
        config = yaml.safe_load((server.home / "baton.yaml").read_text())
        self.admin = AdminClient(f"http://127.0.0.1:{config['listen']['http_port']}")

    def redis(self, port: int = 0) -> redis.Redis:
        """A client of a server itself, past the door."""
        return redis.Redis(port=port or self.first, socket_timeout=10)

    def play(self, name: str, harm: Callable[[], object], mend: Callable[[], str], lost: bool) -> Incident:
        """Figures of one incident, from a candidate at weight 50 to one again."""
        self._at_half()
        began = time.monotonic()
        harm()
        sign, sign_s = self._sign(began) if lost else ("", 0.0)
        time.sleep(SETTLE_S)
        ordered = time.monotonic()
        arms = [arm for when, arm in list(self.load.answers) if ordered - SETTLE_S / 2 <= when]
        share = arms.count("candidate") / max(1, len(arms))
        with contextlib.suppress(
            BatonError
        ):  # where the state cannot be written it says that, and that the kill is in force
            self.admin.post("/endpoints/ranker/kill", {"reason": name}, timeout=LIMIT_S)
        time.sleep(SETTLE_S)
        kill_s = max(0.0, self.load.last("candidate", ordered) - ordered)
        shot = time.monotonic()
        again_s = self._lane_anew()
        time.sleep(SETTLE_S)
        if self.load.last("candidate", ordered + WITHIN_S):
            kill_s = float("inf")  # a lane that started anew has forgotten the kill
        mended, at = mend(), time.monotonic()
        self._at_half()
        back_s = time.monotonic() - at
        ended = time.monotonic()
        calls = sum(began <= when <= ended for when, _ in list(self.load.answers))
        # What a lane had in hand when it got SIGKILL is lost with it, in any state.
        failed = [
            why
            for when, why in list(self.load.failures)
            if began <= when <= ended and not shot <= when <= shot + DEADLINE_S
        ]
        if failed:
            print(f"  {failed[0]}", file=sys.stderr)
        return Incident(name, calls + len(failed), len(failed), share, sign, sign_s, kill_s, again_s, mended, back_s)

    def restored(self) -> str:
        """Bring a lost state back, by the command."""
        words = ["state", "restore", "--reason", "bench", "--config", str(self.server.home / "baton.yaml")]
        self._run(*words)
        return "baton state restore"

    def _run(self, *words: str) -> None:
        argv = [sys.executable, "-c", "from serving.cli.main import app; app()", *words]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        if done.returncode:
            raise RuntimeError(f"baton {' '.join(words)}: {done.stdout}{done.stderr}")

    def _at_half(self) -> None:
        """Release and set the weight, as soon as the state takes it; wait until the candidate answers."""
        arms = {"stable": {"bundle": "teacher"}, "candidate": {"bundle": "student"}}
        until = time.monotonic() + LIMIT_S
        while True:
            try:
                if self.admin.get("/endpoints/ranker")["killed"]:
                    self.admin.post("/endpoints/ranker/release", {"reason": "bench"})
                self.admin.put("/endpoints/ranker", {**arms, "weight": 50, "salt": "bench", "reason": "bench"})
                break
            except BatonError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)
        since = time.monotonic()
        while not self.load.last("candidate", since):
            if time.monotonic() > until:
                raise RuntimeError("the candidate does not answer at weight 50")
            time.sleep(0.05)

    def _sign(self, began: float) -> tuple[str, float]:
        while time.monotonic() < began + LIMIT_S:
            for lane in self.server.lanes():
                if lane.state_away is not None and lane.state_away.lost:
                    return lane.state_away.reason, time.monotonic() - began
            time.sleep(0.05)
        return "none", float("inf")

    def _lane_anew(self) -> float:
        """End a lane; seconds until the new one is ready."""
        pid, began = self.server.pids["lane-0"], time.monotonic()
        os.kill(pid, signal.SIGKILL)
        while time.monotonic() < began + LIMIT_S:
            if any(
                lane.process == "lane-0" and lane.pid != pid and lane.state == "ready" for lane in self.server.lanes()
            ):
                return time.monotonic() - began
            time.sleep(0.1)
        return float("inf")


def measure(rate: float, names: Sequence[str] = ()) -> Iterator[Incident]:
    """Figures of each incident as soon as it is over. `names`: only these."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        first, second = (stack.enter_context(state_redis(folder / name))[1] for name in ("first", "second"))
        door = Door(first)
        url = f"redis://127.0.0.1:{door.port}"
        server = stack.enter_context(
            installation(folder / "home", 2, state={"url": f"{url}/0"}, traffic={"url": f"{url}/1"})
        )
        load = stack.enter_context(Load(server.port, rate))
        place = _Place(folder, server, door, first, load)

        def full() -> None:
            with place.redis() as client:
                client.config_set("maxmemory", 1)

        def room() -> str:
            with place.redis() as client:
                client.config_set("maxmemory", 0)
            return "memory"

        def slow(seconds: float) -> None:
            door.delay_s = seconds

        def quick() -> str:
            slow(0.0)
            return "answers at once"

        def replaced() -> str:
            said = place.restored()
            door.lead(first)  # the old one has the identity still, and is followed
            return said

        def emptied() -> None:
            with place.redis() as client:
                client.flushall()

        plays: list[tuple[str, Callable[[], object], Callable[[], str], bool]] = [
            ("emptied", emptied, place.restored, True),
            ("full", full, room, False),
            ("slow", lambda: slow(SLOW_S), quick, False),
            ("replaced", lambda: door.lead(second), replaced, True),
        ]
        for name, harm, mend, lost in plays:
            if not names or name in names:
                yield place.play(name, harm, mend, lost)


@contextlib.contextmanager
def state_redis(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A Redis that may keep a state, as (process, port), once it answers."""
    folder.mkdir()
    port = free_port()
    argv = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), *DURABLE]
    started = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(port=port) as client:
            until = time.monotonic() + LIMIT_S
            while True:
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.05)
        yield started, port
    finally:
        started.kill()
        started.wait()


def _main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--rate", type=float, default=50.0, help="calls a second")
    words.add_argument("--only", action="append", default=[], help="emptied, full, slow or replaced; again for more")
    given = words.parse_args()
    die_with_parent()
    print(
        f"{'state is':10} {'calls':>6} {'failed':>6} {'share':>6} {'sign':>7} {'kill':>7} {'lane':>7} {'back':>7}  mended by; the sign"
    )
    good = True
    for row in measure(given.rate, given.only):
        seconds = " ".join(f"{value:6.2f}s" for value in (row.sign_s, row.kill_s, row.again_s, row.back_s))
        print(
            f"{row.name:10} {row.calls:6} {row.failed:6} {row.share:6.2f} {seconds}  {row.mended}; {row.sign[:80]}",
            flush=True,
        )
        good &= row.good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(_main())

"""`python -m benchmarks.drill`: incidents of a small production, one after another, as an operator meets them.

Two endpoints, two lanes, a worker, a state in Redis, callers that rank and send labels. Each incident begins, and `baton health` is
asked until it names it: that is the first sign, and the seconds to it. Then the command that helps is given, or nothing where Baton
helps itself, and health is asked until the sign is gone. Calls are counted from the begin to the end, through the client library.
The incidents that concern the state alone are in `benchmarks.lost_state`, restarts and hangs under more load in
`benchmarks.recovery`, a full disk in `tests/e2e/emergency_scenario.py`, every alert in `make drill`. Takes about ten minutes.
Ends with 1 if an incident had no sign, did not end, or a command did not help.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import redis

from benchmarks.lost_state import state_redis
from benchmarks.recovery import COMMAND, SCHEMA, SUPERVISOR_S
from benchmarks.server import BatonServer
from pipeline.bundle.versions import Repository
from pipeline.errors import BatonError
from pipeline.features import Features, Rows
from pipeline.traffic.log import FeedbackEntry, Outcome
from serving.client import RankingClient
from serving.runtime.process import die_with_parent
from transfer.bundles.publish import save
from transfer.click_model.model import ClickModel

__all__ = ["Drill", "Incident", "drill"]

ENDPOINTS = ("ranker", "shop")
CANDIDATES, USERS_COUNT = 8, 997
RATE_HZ = 20.0
LABEL_DELAY_S = 1.0
DEADLINE_S = 3.0
SIGN_LIMIT_S = 240.0
END_LIMIT_S = 120.0
COMMAND_LIMIT_S = 90.0
SETTLE_S = 4.0
WARM_S = 45.0
AGAIN = "started again"
"""Begins what health says for a while of a process that has come back."""


@dataclass(frozen=True)
class Incident:
    """One incident. `sign_s`: seconds to the first sign; `command`: that was given; `end_s`: seconds from it until the sign was gone."""

    name: str
    sign: str
    sign_s: float
    command: str
    end_s: float
    calls: int
    failed: int
    problem: str = ""


class _Callers:
    """A caller of each endpoint, who ranks, and sends labels as long as `labels` has the endpoint."""

    def __init__(self, port: int) -> None:
        self.labels = set(ENDPOINTS)
        self.calls = self.failed = 0
        self._port, self._stop, self._lock = port, threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(name,), daemon=True) for name in ENDPOINTS]

    def __enter__(self) -> _Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * DEADLINE_S)

    def _run(self, endpoint: str) -> None:
        rng, number = np.random.default_rng(len(endpoint)), 0
        waiting: deque[tuple[float, FeedbackEntry]] = deque()
        with RankingClient([f"127.0.0.1:{self._port}"]) as client:
            while not self._stop.wait(1 / RATE_HZ):
                number += 1
                ids = rng.integers(1, 1000, (CANDIDATES, 2))
                ids[:, 0] = user = number % USERS_COUNT
                features = Features.from_context(SCHEMA, Rows(ids, np.zeros((CANDIDATES, 0), np.float32)))
                clicks = [Outcome(at, 1.0, final=True) for at in range(CANDIDATES) if rng.random() < 0.3]
                good = False
                with contextlib.suppress(BatonError):
                    answer = client.rank(endpoint, SCHEMA, features, routing_key=f"user:{user}", timeout=DEADLINE_S)
                    good = True
                    entry = FeedbackEntry(answer.prediction_id, outcomes=clicks, exposed_all=True)
                    waiting.append((time.monotonic() + LABEL_DELAY_S, entry))
                    while waiting and waiting[0][0] < time.monotonic():
                        _, entry = waiting.popleft()
                        if endpoint in self.labels:
                            client.feedback([entry], timeout=DEADLINE_S)
                with self._lock:
                    self.calls, self.failed = self.calls + 1, self.failed + (not good)


class Drill:
    """An installation, its callers and its Redis, and what is done to them."""

    def __init__(
        self, folder: Path, server: BatonServer, state: subprocess.Popen[bytes], port: int, callers: _Callers
    ) -> None:
        self.folder, self.server, self.state, self.port, self.callers = folder, server, state, port, callers

    def baton(self, *words: str) -> str:
        """Run a command of an operator; its output. Raises: BatonError: it failed."""
        argv = [sys.executable, "-c", COMMAND, *words]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_LIMIT_S, check=False)
        if done.returncode:
            raise BatonError(f"baton {' '.join(words)}: {(done.stdout + done.stderr).strip()[-300:]}")
        return done.stdout

    def facts(self) -> dict[tuple[str, str], str]:
        """What `baton health` says that is not well."""
        argv = [sys.executable, "-c", COMMAND, "health", "--json", "--config", self.config, "--server", self.url]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_LIMIT_S, check=False)
        found: list[dict[str, Any]] = json.loads(done.stdout)["facts"]
        return {(fact["about"], fact["name"]): fact["says"] for fact in found if fact["level"] != "ok"}

    @property
    def config(self) -> str:
        return str(self.server.home / "baton.yaml")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.http_port}"

    def play(
        self, name: str, harm: Callable[[], object], about: str, help_: Callable[[], str] | None = None
    ) -> Incident:
        """Play one incident.

        Args:
            about: of the fact that is its sign, with the name after a blank where it has one.
            help_: gives the command that helps, and returns it; None: Baton helps itself.
        """
        began, calls, failed = time.monotonic(), self.callers.calls, self.callers.failed
        harm()
        sign = self._until(about, True, began + SIGN_LIMIT_S)
        sign_s = time.monotonic() - began
        problem, command = "" if sign else "no sign", "none: Baton helps itself"
        ordered = time.monotonic()
        try:
            command = help_() if help_ is not None else command
        except (BatonError, subprocess.TimeoutExpired) as error:
            problem = str(error)
        if sign and self._until(about, False, ordered + END_LIMIT_S):
            problem = problem or "the sign stays"
        end_s = time.monotonic() - ordered
        time.sleep(SETTLE_S)
        return Incident(
            name, sign, sign_s, command, end_s, self.callers.calls - calls, self.callers.failed - failed, problem
        )

    def _until(self, about: str, there: bool, until: float) -> str:
        """What health says of something once it does, or `there` False: what it says still at the end, "" once it does not."""
        said = ""
        while time.monotonic() < until:
            facts = {f"{kind} {name}".rstrip(): says for (kind, name), says in self.facts().items()}
            said = facts.get(about, "")
            if bool(said) is there or (not there and said.startswith(AGAIN)):
                return said if there else ""
        return said

    def stop(self, name: str) -> None:
        """Stop a process as one that hangs is."""
        os.kill(self.server.pids[name], signal.SIGSTOP)

    def kill(self, name: str) -> None:
        """End a process at once."""
        os.kill(self.server.pids[name], signal.SIGKILL)


def _incidents(d: Drill) -> Iterator[tuple[str, Callable[[], Incident]]]:
    def given(*words: str) -> Callable[[], str]:
        def run() -> str:
            d.baton(*words)
            return "baton " + " ".join(words[: words.index("--config")] if "--config" in words else words)

        return run

    def release() -> str:
        d.baton("endpoint", "kill", "ranker", "--release", "--reason", "drill", "--server", d.url)
        return "baton endpoint kill ranker --release"

    def from_home() -> str:
        d.baton("endpoint", "kill", "ranker", "--home", str(d.server.home), "--reason", "drill")
        return "baton endpoint kill ranker --home home"

    def hung_control() -> str:
        said = from_home()
        d._until("process control", False, time.monotonic() + END_LIMIT_S)
        release()
        return said

    def hung_state() -> str:
        with contextlib.suppress(BatonError):  # it is in force on this machine, and says that it is on no other
            from_home()
        d.state.send_signal(signal.SIGCONT)
        time.sleep(SETTLE_S)
        release()
        return "baton endpoint kill ranker --home home; Redis goes on"

    def emptied() -> None:
        with redis.Redis(port=d.port) as client:
            client.flushall()

    def restored() -> str:
        d.baton("state", "restore", "--reason", "drill", "--config", d.config)
        return "baton state restore"

    def silent() -> None:
        d.callers.labels.discard("shop")

    def labels_again() -> str:
        d.callers.labels.add("shop")
        return "the stream of clicks is mended"

    def bad_version() -> None:
        folder = d.server.home / "bundles" / "student" / "9"
        shutil.copytree(d.server.home / "bundles" / "student" / "1", folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, "version": "9"}))
        (folder / "dense.onnx").write_bytes(b"no network")

    def version_gone() -> str:
        shutil.rmtree(d.server.home / "bundles" / "student" / "9")
        return "rm -r bundles/student/9 (baton model list names it)"

    def held_supervisor() -> None:
        supervisor = d.server.statuses().supervisor
        assert supervisor is not None
        pid = supervisor.status.pid
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(SUPERVISOR_S, os.kill, (pid, signal.SIGCONT)).start()

    config = ("--config", d.config)
    plays: list[tuple[str, Callable[[], object], str, Callable[[], str] | None]] = [
        ("a lane is killed", lambda: d.kill("lane-0"), "process lane-0", None),
        ("a lane hangs", lambda: d.stop("lane-1"), "process lane-1", None),
        ("the shadow lane hangs", lambda: d.stop("shadow"), "process shadow", None),
        ("control hangs, a candidate must go", lambda: d.stop("control"), "process control", hung_control),
        ("control is killed", lambda: d.kill("control"), "process control", None),
        (
            "the worker hangs",
            lambda: d.stop("worker"),
            "process worker",
            given("process", "restart", "worker", "--reason", "drill", "--server", d.url),
        ),
        ("the supervisor hangs for 25 s", held_supervisor, "process supervisor", None),
        ("the state's Redis hangs", lambda: d.state.send_signal(signal.SIGSTOP), "state", hung_state),
        ("the state is emptied", emptied, "state", restored),
        ("labels of one endpoint stop", silent, "labels shop", labels_again),
        ("a version cannot be loaded", bad_version, "version", version_gone),
        ("somebody left the kill switch on", from_home, "endpoint ranker", release),
    ]
    for name, harm, about, help_ in plays:
        yield name, lambda name=name, harm=harm, about=about, help_=help_: d.play(name, harm, about, help_)  # type: ignore[misc]

    def restart() -> Incident:
        calls, failed, began, problem = d.callers.calls, d.callers.failed, time.monotonic(), ""
        try:
            d.baton("restart", *config)
        except BatonError as error:
            problem = str(error)
        end_s = time.monotonic() - began
        time.sleep(SETTLE_S)
        return Incident(
            "a setting has changed",
            "-",
            0.0,
            "baton restart",
            end_s,
            d.callers.calls - calls,
            d.callers.failed - failed,
            problem,
        )

    yield "a setting has changed", restart

    def home_lost() -> Incident:
        backup, began = d.folder / "backup", time.monotonic()
        weight = json.loads(d.baton("endpoint", "get", "ranker", "-o", "json", "--server", d.url))["weight"]
        d.baton("backup", str(backup), *config)
        calls, failed = d.callers.calls, d.callers.failed
        d.server.stop()
        emptied()
        kept = Path(d.config).read_text()
        shutil.rmtree(d.server.home)
        ordered, problem = time.monotonic(), ""
        try:
            (d.folder / "kept.yaml").write_text(kept)
            d.baton("restore", str(backup), "--config", str(d.folder / "kept.yaml"))
            Path(d.config).write_text(kept)
            d.baton("state", "restore", "--backup", str(backup), "--reason", "drill", "--config", d.config)
            d.server.__enter__()
            found = json.loads(d.baton("endpoint", "get", "ranker", "-o", "json", "--server", d.url))["weight"]
            problem = "" if found == weight else f"the weight is {found} and was {weight}"
        except BatonError as error:
            problem = str(error)
        end_s = time.monotonic() - ordered
        return Incident(
            "home and state are lost",
            "everything fails",
            ordered - began,
            "baton restore, baton state restore --backup, baton serve",
            end_s,
            d.callers.calls - calls,
            d.callers.failed - failed,
            problem,
        )

    yield "home and state are lost", home_lost


def drill(only: Sequence[str] = ()) -> Iterator[Incident]:
    """Play the incidents. `only`: those whose name has one of these words."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        state, port = stack.enter_context(state_redis(folder / "redis"))
        repository = Repository(folder / "home" / "bundles")
        for name, architecture in (("teacher", "fm"), ("student", "dnn")):
            save(ClickModel.create(SCHEMA, architecture, 4, seed=0), repository, name)
        settings = {
            "engine": {"lanes": 2},
            "state": {"url": f"redis://127.0.0.1:{port}/0"},
            "worker": {"endpoint": "ranker"},
            "traffic": {"attribution_window": "5s"},
        }
        server = stack.enter_context(
            BatonServer(folder / "home", dict.fromkeys(ENDPOINTS, ("teacher", "student")), settings)
        )
        callers = stack.enter_context(_Callers(server.port))
        d = Drill(folder, server, state, port, callers)
        time.sleep(WARM_S)  # labels come in, and health knows their pace
        for name, play in _incidents(d):
            if not only or any(word in name for word in only):
                yield play()


def _main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument(
        "--only", action="append", default=[], help="incidents with this word in their name; again for more"
    )
    given = words.parse_args()
    die_with_parent()
    print(
        "| incident | first sign | after | command | sign gone after | calls | failed |\n|---|---|---|---|---|---|---|",
        flush=True,
    )
    good = True
    for each in drill(given.only):
        print(
            f"| {each.name} | {each.sign[:90]} | {each.sign_s:.0f} s | {each.command} | {each.end_s:.0f} s | {each.calls} | {each.failed} |"
            + (f" {each.problem}" if each.problem else ""),
            flush=True,
        )
        good &= not each.problem
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(_main())

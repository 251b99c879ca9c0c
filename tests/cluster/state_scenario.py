"""What `test_shared_state` runs in a network of its own: replicas on Ray and two control processes that share a Redis.

Under constant load the Redis is restarted, then crashes, then the control process that leads is killed. Prints one JSON
object: what became of the calls meanwhile, when weights were everywhere, who led and what was audited.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from installation import STUDENT, Installation
from leaders import Leaders
from load import Load, until
from nodes import Nodes
from ray import serve
from redis_process import RedisProcess

from pipeline.clock import SystemClock
from pipeline.errors import BatonError
from serving.cli.api import AdminClient
from serving.config import Config
from serving.processes.replica import write_config
from serving.ray_app import serve_on
from serving.wiring.state import open_directory
from serving.wiring.traffic import open_traffic_log

REDIS = 6400
PORT = 9001
REPLICAS = 2
LEASE = 2.0
AWAY = 2 * LEASE
DURABLE = ("--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction")
SETTINGS: dict[str, Any] = {
    "listen": {"grpc_port": PORT},
    "engine": {"lanes": 1},
    "state": {"url": f"redis://127.0.0.1:{REDIS}/0", "node": "lanes", "lease": LEASE},
    "traffic": {"url": f"redis://127.0.0.1:{REDIS}/1"},
    "ray": {"min_replicas": REPLICAS, "max_replicas": REPLICAS, "replicas_per_node": 1, "num_cpus": 1, "control": False},
}  # fmt: skip
ROLLOUT = """
endpoint: ranker
candidate: {bundle: student}
steps: [{shadow: true, min_positives: 1000}, {weight: 50, bias_below: 0.1}, {weight: 100, bias_below: 0.1}]
guards: {}
holdout: 0
"""


class ControlProcess:
    """One of an installation, on a machine of its own as far as it can tell: with a home and ports of its own."""

    def __init__(self, config: Config, name: str, port: int) -> None:
        home = config.home.parent / name
        listen = config.listen.model_copy(update={"http_port": port, "admin_port": port + 1})
        state = config.state.model_copy(update={"node": name})
        update = {"home": home, "bundles": str(config.repository), "listen": listen, "state": state}
        self.name = name
        self.status = home / "run" / "status" / "control.json"
        self.admin = AdminClient(f"http://127.0.0.1:{port}", actor="operator")
        self._config = write_config(config.model_copy(update=update), home / "baton.yaml")
        self.start()

    def start(self) -> None:
        command = ("process", "control", "--config", str(self._config))
        self.process = subprocess.Popen([sys.executable, "-m", "serving.cli.main", *command])

    def end(self, sign: signal.Signals) -> None:
        self.process.send_signal(sign)
        self.process.wait(60)
        self.status.unlink(missing_ok=True)  # by someone who is no more

    def told(self) -> dict[str, Any]:
        """What it says of itself; empty while it says nothing."""
        try:
            found: dict[str, Any] = json.loads(self.status.read_text())
        except (OSError, ValueError):
            return {}
        return found


class Scenario:
    """The installation under load, and what is done to it."""

    def __init__(self, folder: Path, redis: RedisProcess) -> None:
        self.redis = redis
        self.nodes = Nodes(workers=1)
        self.made = Installation(folder, **SETTINGS)
        self.config = self.made.config
        self.control = [ControlProcess(self.config, name, 9100 + 10 * at) for at, name in enumerate(("a", "b"))]
        self.leaders = Leaders(redis, self.control)
        # Replicas are called one by one, so that answers say what every single one does.
        self.load = Load(self.made, *(range(PORT + at, PORT + at + 1) for at in range(REPLICAS)), light=4, heavy=0)
        self.told: dict[str, Any] = {"refused": "", "given": []}

    def run(self) -> dict[str, Any]:
        serve_on(self.nodes.cluster.address, self.config)
        directory = open_directory(self.config, SystemClock())
        until(lambda: len(directory.replicas()) == REPLICAS, "replicas are there")
        until(lambda: self.leaders.now() is not None, "a control process leads")
        with self.leaders, self.load:
            until(self.all_answer(), "all replicas answer")
            self.phase("restarted", self.restart_redis, "candidate", lambda: self.set(100, "after the restart"))
            self.phase("crashed", self.crash_redis, "stable", lambda: self.set(0, "after the crash"))
            self.phase("leader_killed", self.kill_leader, "candidate", lambda: self.set(100, "at the new leader"))
            self.phase("endpoint_killed", lambda: 0.0, "stable", self.kill_endpoint)
        self.told["all"] = dict(self.load.seen)
        self.told["errors"] = dict(self.load.errors)
        self.told["leaders"] = self.leaders.told()
        self.told["audit"] = [(e.seq, e.verb, e.actor, e.reason) for e in self.made.store.audit()]
        for control in self.control:
            control.end(signal.SIGTERM)
        serve.shutdown()  # replicas drain, and write what waits
        traffic = open_traffic_log(self.config)
        self.told["recorded"] = traffic.stats(SystemClock().wall_ms()).predictions
        traffic.close()
        return self.told

    def phase(self, name: str, act: Callable[[], float], arm: str, change: Callable[[], None]) -> None:
        """Do something under which weights are to stand; then have an arm take all, and see that it does at each replica.
        Notes what became of calls all the while."""
        before, token = self.load.marked(), self.leaders.token()
        taken = [latest.get(arm) for latest in self.load.latest]
        seconds = act()
        stood = taken == [latest.get(arm) for latest in self.load.latest]
        left = "stable" if arm == "candidate" else "candidate"
        began = time.monotonic()
        change()
        time.sleep(3.0)
        self.told[name] = {
            "until_led": round(seconds, 2),
            "tokens": [token, self.leaders.token()],
            "weight_stood": stood,
            # Per replica, seconds from the change to the last answer of the arm that is left and the latest of the other.
            "replicas": [{"left": one[left] - began, "taken": one[arm] - began} for one in self.load.latest],
            "seen": dict(self.load.marked() - before),
        }

    # What is done; each gives the seconds until a control process led again.

    def restart_redis(self) -> float:
        """As an upgrade does: it ends in order and comes back at the same port with the same append-only file."""
        assert self.redis.process is not None
        self.redis.signal(signal.SIGTERM)
        self.redis.process.wait(30)
        until(self.all_answer(), "all replicas answer without it")
        return self.come_back()

    def crash_redis(self) -> float:
        """Killed, and away for longer than the lease; operators are refused meanwhile."""
        self.redis.kill()
        began = time.monotonic()
        try:
            self.put(100, "while it is away")
        except BatonError as error:
            self.told["refused"] = str(error)
        until(lambda: time.monotonic() - began > AWAY, "it is away for longer than the lease")
        return self.come_back()

    def come_back(self) -> float:
        self.redis.start()
        began = time.monotonic()
        until(lambda: self.leaders.now() is not None, "a control process leads")
        return time.monotonic() - began

    def kill_leader(self) -> float:
        """The control process that leads is killed in the middle of a rollout, and comes back later."""
        leader = self.leaders.now()
        assert leader is not None
        leader.admin.post("/rollouts", {"file": ROLLOUT, "reason": "a rollout"})
        self.told["given"].append("a rollout")
        token = self.leaders.token()
        leader.end(signal.SIGKILL)
        began = time.monotonic()
        until(lambda: self.leaders.token() > token and self.leaders.now() not in (None, leader), "another one leads")
        seconds = time.monotonic() - began
        leader.start()
        return seconds

    # What changes weights, by an operator at a control process whichever.

    def set(self, weight: float, reason: str) -> None:
        if self.made.store.rollouts(active=True):
            body = {"weight": float(weight), "reason": reason}
            self.steering().post("/rollouts/ranker/set-weight", body)
        else:
            self.put(weight, reason)
        self.told["given"].append(reason)

    def put(self, weight: float, reason: str) -> None:
        arms = {"stable": {"bundle": "teacher"}, "candidate": {"bundle": STUDENT.bundle}}
        self.steering().put("/endpoints/ranker", {**arms, "weight": float(weight), "reason": reason})

    def kill_endpoint(self) -> None:
        """Lanes see the switch by themselves, and so does the leader, which ends the rollout."""
        self.steering().post("/endpoints/ranker/kill", {"reason": "by the switch"})
        self.told["given"].append("by the switch")
        until(lambda: not self.made.store.rollouts(active=True), "the leader ends the rollout")

    # What is there.

    def steering(self) -> AdminClient:
        leader = self.leaders.now()
        return (leader or self.control[0]).admin

    def all_answer(self) -> Callable[[], bool]:
        """Whether each replica has gone on answering for a second from now."""
        then = time.monotonic() + 1.0
        return lambda: all(max(latest.values(), default=0.0) > then for latest in self.load.latest)


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])  # replicas need nothing of the tests
    home = Path(sys.argv[1])
    with RedisProcess(home / "redis", *DURABLE, port=REDIS, url=f"redis://127.0.0.1:{REDIS}/0") as redis:
        print("\n" + json.dumps(Scenario(home / "lanes", redis).run()))

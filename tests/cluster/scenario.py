"""What `test_ray_cluster` runs in a network of its own: a Ray cluster of three nodes through loss, upgrade and scaling.

Prints one JSON object: for each phase what became of the calls meanwhile.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
from installation import Installation
from load import Load, until
from nodes import Nodes
from ray import serve

from pipeline.clock import SystemClock
from serving.config import Config
from serving.ray_app import APP, serve_on
from serving.runtime.status import LaneStatus, read
from serving.state.directory import ServiceRecord
from serving.wiring.state import open_directory

PORT = 9001
PLACES = 6
SETTINGS: dict[str, Any] = {
    "listen": {"grpc_port": PORT, "http_port": 9100, "admin_port": 9103},
    "engine": {"lanes": 1},
    "ray": {
        "min_replicas": 2, "max_replicas": 3, "replicas_per_node": 1, "num_cpus": 1,
        # Waiting alone brings nobody here, so that what the machine is busy with besides does not count.
        "utilisation": 0.9, "queue_wait": "10s", "upscale_delay": "1s", "downscale_delay": "1s", "look_back": "2s",
        "health_period": "1s",
    },
}  # fmt: skip


class Scenario:
    """The installation under load, and what is done to it."""

    def __init__(self, folder: Path) -> None:
        self.nodes = Nodes(workers=2)
        self.made = Installation(folder, **SETTINGS)
        self.config = self.made.config
        self.directory = open_directory(self.config, SystemClock())
        self.told: dict[str, dict[str, Any]] = {}

    def run(self) -> dict[str, Any]:
        serve_on(self.nodes.cluster.address, self.config)
        self.expect(2)
        self.told["start"] = {"nodes": len({r.node for r in self.records()})}
        with Load(self.made, range(PORT, PORT + PLACES)) as load:
            until(lambda: load.seen["right"] > 100, "answers come")
            until(lambda: self.has_answered(2), "both replicas answer")
            load.heavy.set()
            self.phase(load, "killed", self.kill_replica)
            self.phase(load, "node_removed", self.remove_node)
            self.phase(load, "upgraded", lambda: self.upgrade(self.config))
            load.heavy.clear()
            # One replica is enough for the light load, three for the heavy one: by what the lanes say of their work.
            ray = self.config.ray.model_copy(update={"min_replicas": 1, "utilisation": 0.03})
            self.phase(load, "scaled_down", lambda: self.scale(self.config.model_copy(update={"ray": ray}), 1))
            self.phase(load, "scaled_up", lambda: (load.heavy.set(), self.expect(3)))
            self.phase(load, "weighted", lambda: self.give_all_to_the_candidate(load))
            self.phase(load, "scaled_back", lambda: (load.heavy.clear(), self.expect(1)))
            self.told["all"] = dict(load.seen)
            self.told["errors"] = dict(load.errors)
        serve.shutdown()
        return self.told

    def phase(self, load: Load, name: str, act: Any) -> None:
        """Do something, and note what became of calls until a second after it."""
        before, began = load.marked(), time.monotonic()
        act()
        time.sleep(1.0)
        seen: Counter[str] = load.marked() - before
        self.told[name] = {"seen": dict(seen), "seconds": round(time.monotonic() - began, 1)}

    # What is done.

    def kill_replica(self) -> None:
        """Everything of one replica at once, as when its machine loses power."""
        before = self.records()
        lane = self.lane_of(before[0])
        actor = psutil.Process(lane).parent()
        assert actor is not None
        for process in (psutil.Process(lane), actor, *actor.children()):
            process.send_signal(signal.SIGKILL)
        until(lambda: len(self.records()) == 2 and before[0] not in self.records(), "another replica is there")

    def remove_node(self) -> None:
        """A node of a replica goes without a word; another comes."""
        by_node = {node.node_id: node for node in self.nodes.workers}
        gone = next(record for record in self.records() if record.node in by_node)
        lane = psutil.Process(self.lane_of(gone))
        self.nodes.cluster.remove_node(by_node[gone.node], allow_graceful=False)
        self.nodes.workers = [node for node in self.nodes.workers if node.node_id != gone.node]
        self.nodes.workers.append(self.nodes.add())
        until(lambda: gone not in self.records() and len(self.records()) == 2, "a replica is there in its place")
        # Its actor notices by itself that the node is gone, at times after its record: what its end costs belongs here.
        until(lambda: not lives(lane), "the lane of the node that is gone has ended")

    def upgrade(self, config: Config) -> None:
        """As a release does: deployed again, so that every replica is replaced."""
        before = {record.replica for record in self.records()}
        serve_on(self.nodes.cluster.address, config)
        until(lambda: not before & {record.replica for record in self.records()}, "all replicas are new", 150.0)

    def scale(self, config: Config, count: int) -> None:
        self.upgrade(config)
        self.expect(count)

    def give_all_to_the_candidate(self, load: Load) -> None:
        """All replicas read the weight from the state; the last answer of the old arm tells when the last one did."""
        began = time.monotonic()
        self.made.set(weight=100)
        time.sleep(4.0)
        (latest,) = load.latest
        self.told["weights"] = {"last_of_stable": latest["stable"] - began, "candidate": "candidate" in latest}

    # What is there.

    def records(self) -> list[ServiceRecord]:
        return self.directory.replicas()

    def expect(self, count: int) -> None:
        until(lambda: len(self.records()) == count, f"{count} replicas", 150.0)
        until(lambda: serve.status().applications[APP].status == "RUNNING", "Ray Serve agrees")

    def lane_of(self, record: ServiceRecord) -> int:
        port = int(record.address.rpartition(":")[2])
        return next(lane.pid for lane in self.lanes() if lane.port == port)

    def has_answered(self, count: int) -> bool:
        return sum(lane.engine.answered > 0 for lane in self.lanes()) == count

    def lanes(self) -> list[LaneStatus]:
        reports = read(self.config.status, SystemClock().wall_ms()).fresh().lanes
        return [lane.status for lane in reports.values()]


def lives(process: psutil.Process) -> bool:
    """Whether the process has not ended; one that nobody has waited for has."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])  # replicas need nothing of the tests
    print("\n" + json.dumps(Scenario(Path(sys.argv[1])).run()))

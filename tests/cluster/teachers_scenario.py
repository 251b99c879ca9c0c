"""What `test_ray_teachers` runs in a network of its own: rows scored by teachers on Ray, while these come and go.

Prints one JSON object: what became of the rows, and of the members.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from load import until
from nodes import Nodes
from small_log import SmallLog

from pipeline.errors import NotReady
from pipeline.features import Rows
from transfer.bundles.publish import save
from transfer.click_model.model import ClickModel
from transfer.teachers.pool import MemberGone, TeacherPool
from transfer.teachers.process import BundleTeacher
from transfer.teachers.ray_pool import RayTeachers

COUNT = 4
ROWS = 60_000
CHUNK = 200


class Scenario:
    """A head with room for two teachers; four are wanted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = SmallLog(ROWS, seed=3)
        bundle = folder / "teacher"
        save(ClickModel.create(self.log.schema, "dnn", 4, seed=1), bundle, "teacher")
        self.load = BundleTeacher(bundle)
        self.nodes = Nodes(workers=0)
        self.pool = TeacherPool()
        self.random = random.Random(7)
        self.told: dict[str, Any] = {"members": []}

    def run(self) -> dict[str, Any]:
        address = self.nodes.cluster.address
        local = self.load()
        expected = [local(part.rows) for part in self.log.chunks(0.0, 1.0, CHUNK)]
        teachers = RayTeachers(self.pool, self.load, COUNT, address=address)
        found = list(self.pool.score(self.rows()))
        self.told |= vars(self.pool.counters)
        self.told["rows"] = ROWS
        self.told["equal"] = [len(f) for f in found] == [len(e) for e in expected] and bool(
            np.array_equal(np.concatenate(found), np.concatenate(expected))
        )
        teachers.close()
        until(lambda: not actors(), "all actors end, and those that wait for room as well")
        self.told["refused"] = [self.refused(folder, cpus) for folder, cpus in ((self.folder, 1.0), (None, 64.0))]
        ray.shutdown()
        return self.told

    def rows(self) -> Iterator[Rows]:
        """The log, and in the middle of it what happens to the members."""
        events: dict[int, Callable[[], None]] = {
            20: lambda: self.have(2),
            40: self.kill,
            80: lambda: self.have(2),
            100: self.kill,
            120: self.add_node,
            200: self.remove_node,
            240: lambda: self.have(2),
        }
        for at, part in enumerate(self.log.chunks(0.0, 1.0, CHUNK)):
            if at in events:
                events[at]()
            yield part.rows

    def have(self, count: int) -> None:
        until(lambda: len(self.pool.members) == count == len(actors()), f"{count} members work")
        self.told["members"].append(count)

    def kill(self) -> None:
        victim = self.random.choice(actors())
        victim.kill()
        victim.wait(30)

    def add_node(self) -> None:
        self.nodes.workers.append(self.nodes.add())
        self.have(COUNT)

    def remove_node(self) -> None:
        """Without a word, and its teachers with it."""
        self.nodes.cluster.remove_node(self.nodes.workers.pop(), allow_graceful=False)
        until(lambda: len(actors()) == 2, "its teachers are gone")

    def refused(self, bundle: Path | None, cpus: float) -> str:
        """What is said of a teacher that cannot be loaded, or placed."""
        load = self.load if bundle is None else BundleTeacher(bundle)
        try:
            RayTeachers(TeacherPool(), load, 1, cpus=cpus, start=60.0 if bundle else 3.0)
        except (MemberGone, NotReady) as error:
            return str(error)
        return ""


def actors() -> list[psutil.Process]:
    """Processes of teachers that have been placed."""
    return [p for p in psutil.process_iter(["cmdline"]) if "".join(p.info["cmdline"] or ()).startswith("ray::_Teacher")]


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])  # actors need nothing of the tests
    home = Path(sys.argv[1])
    home.mkdir()
    print("\n" + json.dumps(Scenario(home).run()))

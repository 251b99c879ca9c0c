"""Emergency on a disk of its own: run in a mount namespace with an empty folder, it prints what it saw as JSON.

A lane at weight 50 answers while the shared Redis is stopped; then at once its disk is full, its descriptors are used up,
the Redis has no memory left and no control process runs, and an operator kills the candidate.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from handmade import SCHEMA, random_rows
from installation import Installation, eventually, lane_process, status
from redis_process import RedisProcess

from pipeline.features import Features
from serving.client import RankingClient

KEYS = [f"user:{number}" for number in range(400)]
DURABLE = ("--appendonly", "yes", "--maxmemory-policy", "noeviction")


def main(folder: Path, stopped_s: float) -> dict[str, object]:
    home = folder / "home"
    home.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", home], check=True)
    with RedisProcess(folder / "redis", *DURABLE) as redis:
        url = redis.address.url
        made = Installation(home, state={"url": f"{url}?db=0"}, traffic={"url": f"{url}?db=1"})
        made.set(weight=50)
        with lane_process(made) as lane:
            eventually(lambda: status(made, "lane-0").get("state") == "ready", "the lane is ready", 60)
            with RankingClient([f"127.0.0.1:{status(made, 'lane-0')['port']}"]) as client:
                rng = np.random.default_rng(0)
                features = Features.from_context(SCHEMA, random_rows(rng, 3, made.tables))

                def arms() -> list[str]:
                    return [client.rank("ranker", SCHEMA, features, routing_key=key).arm for key in KEYS]

                before = arms()
                redis.signal(signal.SIGSTOP)
                end, stopped = time.monotonic() + stopped_s, []
                while time.monotonic() < end:
                    stopped += arms()
                redis.signal(signal.SIGCONT)
                moved = sum(arm != before[at % len(KEYS)] for at, arm in enumerate(stopped))

                made.set(weight=100)
                eventually(lambda: set(arms()) == {"candidate"}, "the candidate answers", 30)
                fill(home)
                with redis.address.client(5.0) as admin:
                    admin.config_set("maxmemory", 1)
                used = len(os.listdir(f"/proc/{lane.process.pid}/fd"))
                resource.prlimit(lane.process.pid, resource.RLIMIT_NOFILE, (used, used))
                time.sleep(4)  # longer than a lane may be without a look at its kill files
                armed = arms()
                words = ["endpoint", "kill", "ranker", "--reason", "burns", "--home", str(home)]
                kill = subprocess.run(
                    [sys.executable, "-m", "serving.cli.main", *words],
                    capture_output=True,
                    text=True,
                    check=False,
                )
                done = last = time.monotonic()
                while time.monotonic() < done + 3:
                    if client.rank("ranker", SCHEMA, features, routing_key="user:1").arm == "candidate":
                        last = time.monotonic()
                after = arms()
    return {
        "fraction": sum(arm == "candidate" for arm in stopped) / len(stopped),
        "answers": len(stopped),
        "moved": moved,
        "armed": sorted(set(armed)),
        "kill": [kill.returncode, kill.stdout + kill.stderr],
        "seconds": last - done,
        "after": sorted(set(after)),
        "file": (home / "kill" / "ranker").read_text().strip(),
    }


def fill(home: Path) -> None:
    for block in (1 << 16, 1 << 10, 1):
        with contextlib.suppress(OSError), open(home / "ballast", "ab", buffering=0) as ballast:
            while True:
                ballast.write(b"0" * block)


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), float(sys.argv[2]))))

"""Loop that makes load, in its own process: `python -m benchmarks.load.generator SPEC`.

Closed loop: so many calls are always in flight, each answer starts the next; that measures throughput. Open loop: calls
start when a Poisson process says so, whatever the server does, and a call's latency counts from that intended start;
so a server that stalls pays for all who would have come meanwhile (no coordinated omission).

It must know nothing of what it sends. Next stop: `http2`.
"""

from __future__ import annotations

import gc
import json
import random
import select
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.load.http2 import UNAVAILABLE, Connection, ConnectionLost, Stream, message

__all__ = ["UNANSWERED", "Spec", "generate", "read_bodies", "write_bodies"]

UNANSWERED = -1
"""Status of a call that had no answer when the generator stopped waiting."""
RECONNECTS = 100
IDLE_S = 0.5


@dataclass(frozen=True, slots=True)
class Spec:
    """Specification of a load: requests, target and pace.

    Attributes:
        port: on `host`.
        path: `/package.Service/Method`.
        bodies: file of serialised requests (`write_bodies`); they go round.
        phases: open loop: (seconds, requests per second) one after the other.
        inflight, seconds: closed loop, where there are no phases.
        connections: open at once; calls take them in turn.
        several: each connection is one stream of request and answer pairs; closed loop only.
        warmup: seconds of the same load before the window opens.
        deadline: of each call, in seconds; 0: none.
        drain: how long to wait for the last answers.
        metadata: further headers.
        seed: of the arrivals and of the first body.
        keep: write the answers' bytes too (`answers` beside the result); for tests.
    """

    port: int
    path: str
    bodies: str
    phases: list[tuple[float, float]] = field(default_factory=list)
    inflight: int = 1
    seconds: float = 0.0
    connections: int = 1
    several: bool = False
    warmup: float = 0.0
    deadline: float = 0.0
    drain: float = 15.0
    host: str = "127.0.0.1"
    metadata: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    keep: bool = False

    def to_json(self) -> str:
        """JSON text for the command line."""
        return json.dumps(asdict(self))


class Generator:
    """Generator of one run. Call `closed` or `open`, then read what was recorded.

    `intended`, `latency` (seconds, from the intended start to the answer) and `status` (gRPC code) are one entry per
    call whose intended start lay in the window; times are `time.monotonic()`.
    """

    def __init__(self, spec: Spec) -> None:
        self.intended = array("d")
        self.latency = array("d")
        self.status = array("h")
        self.late = array("d")
        """Open loop: how much after its intended start each call was sent; the generator's own fault."""
        self.answers: list[bytes] = []
        self.started = 0.0
        """When the window opened."""
        self.calls = 0
        """All that were sent, those outside the window included."""
        self._spec = spec
        self._bodies = [message(body) for body in read_bodies(Path(spec.bodies))]
        self._turn = spec.seed * 7919
        self._reconnects = 0
        self._end = float("inf")
        self._connections: dict[int, Connection] = {}
        for _ in range(spec.connections):
            self._connect()

    def closed(self) -> None:
        """Keep `inflight` calls in progress for `warmup` + `seconds`."""
        spec = self._spec
        self.started = time.monotonic() + spec.warmup
        self._end = self.started + spec.seconds
        connections = list(self._connections.values())
        for number in range(spec.inflight):
            self._call(connections[number % len(connections)], time.monotonic())
        while time.monotonic() < self._end:
            self._poll(min(IDLE_S, max(0.0, self._end - time.monotonic())))
        self._wait()

    def open(self) -> None:
        """Start calls at the rates of the phases; the warm-up has the first phase's rate."""
        self.started = time.monotonic() + self._spec.warmup
        self._end = self.started + sum(seconds for seconds, _ in self._spec.phases)
        for number, due in enumerate(self._arrivals()):
            while (now := time.monotonic()) < due:
                self._poll(min(IDLE_S, due - now))
            connections = list(self._connections.values())
            self._call(connections[number % len(connections)], due)
            if due >= self.started:
                self.late.append(time.monotonic() - due)
        self._wait()

    def _arrivals(self) -> Iterator[float]:
        rng = random.Random(self._spec.seed)
        due = self.started - self._spec.warmup
        until = self.started
        for seconds, rate in self._spec.phases:
            until += seconds
            while (due := due + rng.expovariate(rate)) < until:
                yield due
            due = until

    def _wait(self) -> None:
        """Read the last answers, then drop the rest."""
        until = time.monotonic() + self._spec.drain
        while (now := time.monotonic()) < until and any(
            # An answered stream of several has no tag and stays open.
            stream.tag
            for connection in self._connections.values()
            for stream in connection.streams.values()
        ):
            self._poll(min(IDLE_S, until - now))
        for connection in self._connections.values():
            for stream in list(connection.streams.values()):
                if stream.tag:
                    self._record(stream, UNANSWERED, b"")
            connection.close()

    # --- calls -------------------------------------------------------------------------------------------------------

    def _body(self) -> memoryview:
        self._turn += 1
        self.calls += 1
        return self._bodies[self._turn % len(self._bodies)]

    def _call(self, connection: Connection, intended: float) -> None:
        connection.call(intended, self._body())

    def _record(self, stream: Stream, status: int, answer: bytes) -> None:
        if self.started <= stream.tag < self._end:
            self.intended.append(stream.tag)
            self.latency.append(time.monotonic() - stream.tag)
            self.status.append(status)
            if self._spec.keep:
                self.answers.append(answer)

    def _done(self, connection: Connection, stream: Stream, status: int, answer: bytes) -> None:
        if not stream.tag:  # a stream that the server ended after its answer
            return
        self._record(stream, status, answer)
        stream.tag = 0.0
        if self._spec.phases:
            return
        now = time.monotonic()
        if now >= self._end:
            return
        if self._spec.several and stream.number in connection.streams:
            connection.send(stream, now, self._body())
        elif not connection.closing:
            self._call(connection, now)

    # --- connections -------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        spec = self._spec
        metadata = [*spec.metadata.items()]
        if spec.deadline:
            metadata.append(("grpc-timeout", f"{max(1, round(1e3 * spec.deadline))}m"))
        connection = Connection(
            (spec.host, spec.port),
            spec.path,
            lambda stream, status, answer: self._done(connection, stream, status, answer),
            metadata=metadata,
            several=spec.several,
        )
        self._connections[connection.socket.fileno()] = connection

    def _poll(self, seconds: float) -> None:
        waiting = [fd for fd, connection in self._connections.items() if connection.wants_write]
        # select, for poll and epoll round a timeout up to a millisecond.
        readable, writable, _ = select.select(list(self._connections), waiting, [], seconds)
        for fd in writable:
            self._attempt(fd, Connection.writable)
        for fd in readable:
            if fd in self._connections:
                self._attempt(fd, Connection.readable)

    def _attempt(self, fd: int, action: Callable[[Connection], None]) -> None:
        connection = self._connections[fd]
        try:
            action(connection)
        except ConnectionLost:
            pass
        else:
            if not (connection.closing and not connection.streams):
                return
        del self._connections[fd]
        lost = list(connection.streams.values())
        connection.close()
        self._reconnects += 1
        if self._reconnects > RECONNECTS:
            raise ConnectionLost(f"the server closed {RECONNECTS} connections")
        self._connect()
        fresh = next(reversed(self._connections.values()))
        again = 0 if self._spec.phases or time.monotonic() >= self._end else max(1, len(lost))
        for stream in lost:
            if stream.tag:
                self._record(stream, UNAVAILABLE, b"")
        for _ in range(again):
            self._call(fresh, time.monotonic())


def generate(spec: Spec) -> Generator:
    """Run a spec in this process."""
    generator = Generator(spec)
    # Nothing here makes cycles by the thousand, and a collection in the middle would look like a slow answer.
    gc.collect()
    gc.freeze()
    gc.disable()
    if spec.phases:
        generator.open()
    else:
        generator.closed()
    return generator


def write_bodies(path: Path, bodies: list[bytes]) -> None:
    """Write serialised requests to a file: of each its length (u32, little endian), then itself."""
    with path.open("wb") as file:
        for body in bodies:
            file.write(len(body).to_bytes(4, "little") + body)


def read_bodies(path: Path) -> list[bytes]:
    """Read what `write_bodies` wrote."""
    data, found, at = path.read_bytes(), [], 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        found.append(data[at + 4 : end])
        at = end
    return found


def main() -> None:
    """Run the JSON SPEC; write arrays to the folder given second, and one JSON line to stdout."""
    spec = Spec(**json.loads(sys.argv[1]))
    folder = Path(sys.argv[2])
    cpu = time.process_time()
    found = generate(spec)
    for name in ("intended", "latency", "status", "late"):
        (folder / name).write_bytes(getattr(found, name).tobytes())
    if spec.keep:
        write_bodies(folder / "answers", found.answers)
    print(json.dumps({"started": found.started, "calls": found.calls, "cpu_seconds": time.process_time() - cpu}))


if __name__ == "__main__":
    main()

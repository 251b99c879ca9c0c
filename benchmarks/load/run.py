"""Processes of the load generator, and their results."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.load.generator import Spec, read_bodies
from pipeline.arrays import F64, Array, Mask
from pipeline.errors import BatonError

__all__ = ["Outcome", "Running", "run", "start"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a load, one entry per call of the window.

    Attributes:
        intended: `time.monotonic()` at which each call was due, float64.
        latency: seconds from then to the answer, float64.
        status: gRPC codes, int16; -1: never answered.
        late: open loop: seconds by which the generator itself sent each call too late.
        started, seconds: the window.
        calls: sent in all, the warm-up included.
        cpu_seconds: of the generator's processes, for all calls.
        answers: bytes of the answers, where they were asked for.
    """

    intended: F64
    latency: F64
    status: npt.NDArray[np.int16]
    late: F64
    started: float
    seconds: float
    calls: int
    cpu_seconds: float
    answers: list[bytes]

    @property
    def good(self) -> Mask:
        """Mask of the calls that were answered without an error."""
        return np.equal(self.status, 0)

    @property
    def throughput(self) -> float:
        """Good answers per second of the window; those that come after it do not count."""
        done = self.intended + self.latency < self.started + self.seconds
        return float((self.good & done).sum()) / self.seconds

    @property
    def errors(self) -> dict[int, int]:
        """Calls by the gRPC code that they failed with."""
        return dict(Counter(self.status[~self.good].tolist()))

    @property
    def failed(self) -> int:
        """Number of calls without a good answer."""
        return int((~self.good).sum())

    def quantile_ms(self, q: float) -> float:
        """Latency of good answers in milliseconds; without any NaN."""
        good = self.latency[self.good]
        return 1e3 * float(np.quantile(good, q)) if len(good) else float("nan")


class Running:
    """Load in progress; `result` waits for its end."""

    def __init__(self, spec: Spec, processes: int = 1) -> None:
        self._spec = spec
        self._folder = tempfile.TemporaryDirectory(prefix="baton-load-")
        self._parts: list[tuple[subprocess.Popen[str], Path]] = []
        for number, part in enumerate(_split(spec, processes)):
            folder = Path(self._folder.name) / str(number)
            folder.mkdir()
            argv = [sys.executable, "-m", "benchmarks.load.generator", part.to_json(), str(folder)]
            process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            self._parts.append((process, folder))

    def result(self) -> Outcome:
        """Wait for the end and read the result.

        Raises:
            BatonError: the generator ended with an error; with its last line.
        """
        told = []
        for process, _ in self._parts:
            out, err = process.communicate()
            if process.returncode:
                last = err.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
                raise BatonError(f"the load generator failed: {last[0]}")
            told.append(json.loads(out))
        folders = [folder for _, folder in self._parts]
        seconds = sum(length for length, _ in self._spec.phases) or self._spec.seconds
        outcome = Outcome(
            intended=_joined(folders, "intended", np.float64),
            latency=_joined(folders, "latency", np.float64),
            status=_joined(folders, "status", np.int16),
            late=_joined(folders, "late", np.float64),
            started=min(part["started"] for part in told),
            seconds=seconds,
            calls=sum(part["calls"] for part in told),
            cpu_seconds=sum(part["cpu_seconds"] for part in told),
            answers=[body for folder in folders for body in read_bodies(folder / "answers")] if self._spec.keep else [],
        )
        self._folder.cleanup()
        return outcome

    def stop(self) -> None:
        """End the generators without a result."""
        for process, _ in self._parts:
            process.kill()
            process.communicate()
        self._folder.cleanup()


def start(spec: Spec, processes: int = 1) -> Running:
    """Start load and return at once; calls in flight and rates are divided among the processes."""
    return Running(spec, processes)


def run(spec: Spec, processes: int = 1) -> Outcome:
    """Start load and wait for its end."""
    running = Running(spec, processes)
    try:
        return running.result()
    except BaseException:
        running.stop()
        raise


def _split(spec: Spec, processes: int) -> list[Spec]:
    return [
        dataclasses.replace(
            spec,
            seed=spec.seed + part,
            phases=[(seconds, rate / processes) for seconds, rate in spec.phases],
            inflight=len(range(part, spec.inflight, processes)),
            connections=max(1, len(range(part, spec.connections, processes))),
        )
        for part in range(processes)
    ]


def _joined(folders: list[Path], name: str, dtype: type) -> Array:
    return np.concatenate([np.frombuffer((folder / name).read_bytes(), dtype) for folder in folders])

"""Cores and memory that this process may use, which are seldom those of the host.

A process gets the cores of its affinity, and of time on them what its control group and each group above it allow; of
memory, what the tightest of these groups leaves. Both versions of control groups count. Nothing else of Baton asks the
system how large the machine is: lanes, threads, memory budgets and reports ask here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = [
    "Allowance",
    "available_bytes",
    "cores",
    "cores_in_words",
    "describe",
    "limit_threads",
    "memory",
    "memory_in_words",
]

_ROOT = Path("/")
_THREADS = "OMP_NUM_THREADS"
"""Variable that OpenMP, and with it torch, OpenBLAS, MKL and Arrow, take for the number of their threads."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """Amount of a resource. `of`: the host's; `by`: what makes it less ("": nothing does)."""

    amount: int
    of: int
    by: str = ""


@dataclass(frozen=True, slots=True)
class _Group:
    """Folder of a control group; `unified`: version 2."""

    folder: Path
    unified: bool

    def number(self, name: str) -> int | None:
        """Content of a file, None where there is none or it sets no limit."""
        try:
            return int((self.folder / name).read_text().split()[0])
        except (OSError, ValueError, IndexError):
            return None

    def quota_cores(self) -> float | None:
        """Cores' worth of time, None without a quota."""
        if self.unified:
            try:
                quota, period = map(int, (self.folder / "cpu.max").read_text().split())
            except (OSError, ValueError):
                return None
        else:
            quota, period = self.number("cpu.cfs_quota_us") or -1, self.number("cpu.cfs_period_us") or 0
        return quota / period if quota > 0 and period > 0 else None

    def memory_limit(self) -> int | None:
        """Bytes that it may use; beyond `memory.high` the kernel slows a process down until it stands still."""
        names = ("memory.max", "memory.high") if self.unified else ("memory.limit_in_bytes",)
        return min((found for name in names if (found := self.number(name)) is not None), default=None)

    def memory_left(self) -> int | None:
        """Bytes below the limit, counting as free what the page cache would give back."""
        limit = self.memory_limit()
        used = self.number("memory.current" if self.unified else "memory.usage_in_bytes")
        if limit is None or used is None:
            return None
        reclaimable = "inactive_file" if self.unified else "total_inactive_file"
        try:
            lines = (line.split() for line in (self.folder / "memory.stat").read_text().splitlines())
            used -= sum(int(value) for name, value in lines if name == reclaimable)
        except (OSError, ValueError):
            pass
        return max(0, limit - used)


def cores(root: Path = _ROOT) -> Allowance:
    """Cores that this process may keep busy, at least 1; of a quota the whole cores."""
    host = os.cpu_count() or 1
    found = Allowance(host, host)
    if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) < host:
        found = Allowance(len(os.sched_getaffinity(0)), host, "affinity")
    quota = min((q for group in _groups("cpu", root) if (q := group.quota_cores()) is not None), default=math.inf)
    if quota < found.amount:
        return Allowance(max(1, int(quota)), host, f"a control group's quota of {quota:g}")
    return found


def memory(root: Path = _ROOT) -> Allowance:
    """Bytes of memory that this process may use, with what it uses now."""
    host = int(psutil.virtual_memory().total)
    limit = min((m for group in _groups("memory", root) if (m := group.memory_limit()) is not None), default=host)
    return Allowance(limit, host, "a control group") if limit < host else Allowance(host, host)


def available_bytes(root: Path = _ROOT) -> int:
    """Bytes of memory that this process may still take without swapping."""
    left = [group.memory_left() for group in _groups("memory", root)]
    return min([int(psutil.virtual_memory().available), *(one for one in left if one is not None)])


def describe() -> str:
    """The cores and the memory of this process in words.

    >>> describe()  # doctest: +SKIP
    '2 of 8 cores (affinity), 4.0 of 31.3 GiB of memory (a control group)'
    """
    return f"{cores_in_words(cores())}, {memory_in_words(memory())}"


def limit_threads(environment: MutableMapping[str, str] | None = None) -> None:
    """Let libraries that are loaded after this call start no more threads than there are cores.

    They know affinity and no quota. What the variable says already stays.
    """
    (os.environ if environment is None else environment).setdefault(_THREADS, str(cores().amount))


def cores_in_words(found: Allowance) -> str:
    if not found.by:
        return f"{found.amount} cores"
    return f"{found.amount} of {found.of} cores ({found.by})"


def memory_in_words(found: Allowance) -> str:
    if not found.by:
        return f"{_gibibytes(found.amount)} GiB of memory"
    return f"{_gibibytes(found.amount)} of {_gibibytes(found.of)} GiB of memory ({found.by})"


def _gibibytes(count: int) -> str:
    return f"{count / (1 << 30):.1f}"


def _groups(controller: str, root: Path) -> Iterator[_Group]:
    """The control groups of this process that limit a resource, each with those above it, as far as they are mounted."""
    try:
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
        members = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # another system
        return
    paths = {names: path for _, names, path in (line.split(":", 2) for line in members)}
    for line in mounts:
        own, _, more = line.partition(" - ")
        top, point = own.split()[3:5]
        kind, _, options = more.split()[:3]
        if kind == "cgroup2":
            path = paths.get("")
        elif kind == "cgroup" and controller in options.split(","):
            path = next((path for names, path in paths.items() if controller in names.split(",")), None)
        else:
            continue
        if path is None:
            continue
        mounted = root / point.lstrip("/")
        for folder in _upwards(path, top):
            yield _Group(mounted / folder, kind == "cgroup2")


def _upwards(path: str, top: str) -> list[str]:
    """A group and those above it, below the group `top` that is mounted. A container may see a path from outside, which
    is not below it; then the mounted group is its own.

    >>> _upwards("/a/b", "/"), _upwards("/docker/x/y", "/docker/x"), _upwards("/elsewhere", "/docker/x")
    (['a/b', 'a', ''], ['y', ''], [''])
    """
    top = top.rstrip("/")
    if ".." in path or not f"{path}/".startswith(f"{top}/"):
        return [""]
    parts = path[len(top) :].strip("/").split("/")
    return ["/".join(parts[:n]) for n in range(len(parts), 0, -1) if parts[:n] != [""]] + [""]

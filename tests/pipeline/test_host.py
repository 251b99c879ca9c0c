"""Cores and memory of this process: affinity, and limits of control groups of both versions, the tightest on the way up."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from pipeline.host import Allowance, available_bytes, cores, limit_threads, memory

UNIFIED = "40 30 0:35 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
SPLIT = (
    "40 30 0:35 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "41 30 0:36 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "42 30 0:37 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)
HOST_BYTES = int(psutil.virtual_memory().total)


def machine(root: Path, mounts: str, member: str, files: Mapping[str, str]) -> Path:
    """A root folder with /proc of this process and control groups."""
    own = root / "proc/self"
    own.mkdir(parents=True)
    (own / "mountinfo").write_text("23 0 0:21 / /proc rw - proc proc rw\n" + mounts)
    (own / "cgroup").write_text(member)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def test_without_limits_they_are_the_hosts(tmp_path: Path) -> None:
    root = machine(tmp_path, UNIFIED, "0::/a\n", {"a/cpu.max": "max 100000", "a/memory.max": "max"})
    usable = len(os.sched_getaffinity(0))
    assert cores(root).amount == cores(tmp_path / "another system").amount == usable
    assert memory(root) == memory(tmp_path / "another system") == Allowance(HOST_BYTES, HOST_BYTES)
    assert 0 < available_bytes(root) <= HOST_BYTES


@pytest.mark.parametrize(("quota", "wanted"), [("50000 100000", 1), ("100000 100000", 1), ("199000 100000", 1)])
def test_a_quota_gives_its_whole_cores_and_one_at_least(
    tmp_path: Path, quota: str, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    root = machine(tmp_path, UNIFIED, "0::/a\n", {"a/cpu.max": quota})
    found = cores(root)
    assert (found.amount, found.of) == (wanted, 16)
    assert "quota" in found.by


def test_affinity_counts_where_it_is_tighter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 9})
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    root = machine(tmp_path, UNIFIED, "0::/a\n", {"a/cpu.max": "400000 100000"})
    assert cores(root) == Allowance(3, 16, "affinity")


@pytest.mark.parametrize("level", ["", "outer/", "outer/inner/"])
@pytest.mark.parametrize("version", [1, 2])
def test_the_tightest_group_on_the_way_up_counts(
    tmp_path: Path, version: int, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    if version == 2:
        files = {"outer/inner/cpu.max": "600000 100000", "outer/inner/memory.max": str(8 << 20)}
        files |= {f"{level}cpu.max": "200000 100000", f"{level}memory.max": "1000000"}
        files |= {f"{level}memory.current": "900000", f"{level}memory.stat": "anon 500000\ninactive_file 50000"}
        root = machine(tmp_path, UNIFIED, "0::/outer/inner\n", files)
    else:
        files = {f"cpu,cpuacct/{level}cpu.cfs_quota_us": "200000", f"cpu,cpuacct/{level}cpu.cfs_period_us": "100000"}
        files |= {"memory/outer/inner/memory.limit_in_bytes": str(8 << 20)}
        files |= {f"memory/{level}memory.limit_in_bytes": "1000000", f"memory/{level}memory.usage_in_bytes": "900000"}
        files |= {f"memory/{level}memory.stat": "inactive_file 10\ntotal_inactive_file 50000"}
        member = "3:cpu,cpuacct:/outer/inner\n2:memory:/outer/inner\n0::/\n"
        root = machine(tmp_path, SPLIT, member, files)
    assert cores(root).amount == 2
    assert memory(root) == Allowance(1_000_000, HOST_BYTES, "a control group")
    assert available_bytes(root) == 150_000


@pytest.mark.parametrize("member", ["0::/docker/x", "0::/", "0::/../elsewhere"])
def test_a_container_that_sees_its_own_group_as_the_root_reads_its_limit(tmp_path: Path, member: str) -> None:
    mount = "40 30 0:35 /docker/x /sys/fs/cgroup ro - cgroup2 cgroup rw\n"
    root = machine(tmp_path, mount, member + "\n", {"cpu.max": "100000 100000", "memory.high": "1000000"})
    assert cores(root).amount == 1
    assert memory(root).amount == 1_000_000


def test_libraries_start_no_more_threads_than_there_are_cores() -> None:
    asked = "import serving.cli.main, os; print(os.environ['OMP_NUM_THREADS'])"
    one = [f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}}); {asked}"]
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", *one], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "1"

    own = {"OMP_NUM_THREADS": "7"}
    limit_threads(own)
    assert own == {"OMP_NUM_THREADS": "7"}, "what the operator set stays"

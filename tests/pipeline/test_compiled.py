"""Kernels on disk: used again as long as nothing changed, compiled anew when a file they import did."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from pipeline import compiled
from pipeline.compiled import stamp_of

KERNEL = """
from pipeline.compiled import njit
from pipeline.embedding.kernels import splitmix64
from transfer.step import STEP, more


@njit("int64(int64)", cache=True)
def add(x):
    return more(x) + STEP


print(add(1), sum(add.stats.cache_hits.values()))
"""
STEP = """
from pipeline.compiled import njit

STEP = {step}


@njit(inline="always", cache=True)
def more(x):
    return x * {factor}
"""


def test_a_stamp_is_of_all_that_is_imported(tmp_path: Path) -> None:
    package = tmp_path / "pipeline"
    package.mkdir()
    (package / "a.py").write_text("import os\nfrom pipeline.b import x\n")
    (package / "b.py").write_text("from pipeline.c import x\nfrom pipeline.a import y\n")
    (package / "c.py").write_text("x = 1\n")
    (package / "d.py").write_text("x = 1\n")
    before = stamp_of(package / "a.py", tmp_path)
    assert stamp_of(package / "a.py", tmp_path) == before
    (package / "d.py").write_text("x = 2\n")
    assert stamp_of(package / "a.py", tmp_path) == before
    (package / "c.py").write_text("x = 2\n")
    assert stamp_of(package / "a.py", tmp_path) != before


def test_a_kernel_is_compiled_anew_when_what_it_imports_has_changed(tmp_path: Path) -> None:
    project = Path(__file__).parents[2]
    for package in ("pipeline", "transfer"):
        (tmp_path / package).mkdir()
    for file in ("pipeline/compiled.py", "pipeline/embedding/kernels.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes((project / file).read_bytes())
    (tmp_path / "transfer" / "kernel.py").write_text(KERNEL)
    # __init__.py keeps the project's own packages from being found instead.
    for package in ("pipeline", "pipeline/embedding", "transfer"):
        (tmp_path / package / "__init__.py").touch()

    def run(step: int, factor: int) -> list[int]:
        (tmp_path / "transfer" / "step.py").write_text(STEP.format(step=step, factor=factor))
        command = [sys.executable, "-c", "import transfer.kernel"]
        environment = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "PYTHONPATH")}
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, env=environment)
        return [int(word) for word in done.stdout.split()]

    assert run(10, 3) == [13, 0]
    assert run(10, 3) == [13, 1]
    assert run(20, 3) == [23, 0]
    assert run(20, 5) == [25, 0]
    assert run(20, 5) == [25, 1]


def test_every_kernel_is_compiled_by_it() -> None:
    root = Path(compiled.__file__).parent.parent
    files = [file for package in ("pipeline", "serving", "transfer") for file in (root / package).rglob("*.py")]
    own = re.compile(r"^from numba import .*\bn?jit\b|\bnumba\.n?jit\b", re.MULTILINE)
    assert [file.name for file in files if own.search(file.read_text())] == ["compiled.py"]

"""Kernels on disk: used again as long as nothing changed, compiled anew when a file they import did."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
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
LATER = """
from pipeline.compiled import njit


@njit(cache=True)
def twice(x):
    return 2 * x


{between}
print(twice(3))
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
    project = _project(tmp_path)

    def run(step: int, factor: int) -> list[int]:
        return _run(project, STEP.format(step=step, factor=factor)).figures

    assert run(10, 3) == [13, 0]
    assert run(10, 3) == [13, 1]
    assert run(20, 3) == [23, 0]
    assert run(20, 5) == [25, 0]
    assert run(20, 5) == [25, 1]


def test_without_a_cache_kernels_are_compiled_in_memory_with_one_warning(tmp_path: Path) -> None:
    project = _project(tmp_path / "project")
    for package in ("transfer", "pipeline", "pipeline/embedding"):
        (project / package / "__pycache__").touch()  # a file, so that no folder can be made
    nowhere = "/dev/null/nowhere"
    done = _run(project, STEP.format(step=10, factor=3), HOME=nowhere, XDG_CACHE_HOME=nowhere, NUMBA_CACHE_DIR="")
    assert done.figures == [13, 0]
    assert done.said.count("set NUMBA_CACHE_DIR") == 1, done.said

    place = tmp_path / "cache"
    again = _run(project, STEP.format(step=10, factor=3), HOME=nowhere, NUMBA_CACHE_DIR=str(place))
    assert (again.figures, again.said) == ([13, 0], ""), "the remedy that the warning names"


def test_a_cache_that_breaks_is_passed_by(tmp_path: Path) -> None:
    place = tmp_path / "cache"
    project = _project(tmp_path / "project")
    step = STEP.format(step=10, factor=3)
    _run(project, step, NUMBA_CACHE_DIR=str(place))
    for entry in place.rglob("*.nb?"):
        entry.write_bytes(entry.read_bytes()[:40])
    cut = _run(project, step, NUMBA_CACHE_DIR=str(place))
    assert cut.figures == [13, 0]
    assert cut.said.count("damaged") == 1, cut.said

    lost = f"import shutil; shutil.rmtree({str(place)!r}); open({str(place)!r}, 'w').close()\n"
    gone = _run(project, step, NUMBA_CACHE_DIR=str(place), lines=LATER.format(between=lost))
    assert gone.figures == [6]
    assert gone.said.count("set NUMBA_CACHE_DIR") == 1, gone.said


def test_a_file_of_the_working_directory_names_no_cache(tmp_path: Path) -> None:
    project = _project(tmp_path)
    (project / ".numba_config.yaml").write_text("cache_dir: ./planted\ndisable_jit: 1\n")
    assert _run(project, STEP.format(step=10, factor=3)).figures == [13, 0]
    assert _run(project, STEP.format(step=10, factor=3)).figures == [13, 1], "kept, and where it is kept elsewhere"
    assert not (project / "planted").exists()


@dataclass
class _Done:
    figures: list[int]
    said: str


def _project(root: Path) -> Path:
    """A copy of what kernels need, in which files may be changed."""
    project = Path(__file__).parents[2]
    for file in ("pipeline/compiled.py", "pipeline/arrays.py", "pipeline/embedding/kernels.py"):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes((project / file).read_bytes())
    (root / "transfer").mkdir()
    # __init__.py keeps the project's own packages from being found instead.
    for package in ("pipeline", "pipeline/embedding", "transfer"):
        (root / package / "__init__.py").touch()
    return root


def _run(project: Path, step: str, lines: str = KERNEL, **environment: str) -> _Done:
    """Run a module of kernels with that `step.py`; the numbers that it prints, and stderr."""
    (project / "transfer" / "step.py").write_text(step)
    (project / "transfer" / "kernel.py").write_text(lines)
    inherited = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "PYTHONPATH")}
    command = [sys.executable, "-B", "-c", "import transfer.kernel"]
    done = subprocess.run(
        command, cwd=project, capture_output=True, text=True, env=inherited | environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return _Done([int(word) for word in done.stdout.split()], done.stderr)


def test_every_kernel_is_compiled_by_it() -> None:
    root = Path(compiled.__file__).parent.parent
    files = [file for package in ("pipeline", "serving", "transfer") for file in (root / package).rglob("*.py")]
    own = re.compile(r"^from numba import .*\bn?jit\b|\bnumba\.n?jit\b", re.MULTILINE)
    assert [file.name for file in files if own.search(file.read_text())] == ["compiled.py"]

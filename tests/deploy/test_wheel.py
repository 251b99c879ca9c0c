"""What a wheel of Baton holds, and what the command line says where only that is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = (
    "pyproject.toml",
    "setup.py",
    "README.md",
    "LICENSE",
    "protos",
    "pipeline",
    "serving",
    "transfer",
    "benchmarks",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("made")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, source)
    command = [sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", str(made)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=120)
    (found,) = made.glob("*.whl")
    return found


def test_it_holds_all_files_that_the_packages_read_and_no_benches(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        there = set(archive.namelist())
        metadata = archive.read(next(name for name in there if name.endswith("METADATA"))).decode()
    tops = {name.split("/")[0] for name in there}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"protos", "pipeline", "serving", "transfer"}
    for package in ("protos", "pipeline", "serving", "transfer"):
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert path.relative_to(ROOT).as_posix() in there
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Dist: grpcio<1.77,>=1.76" in metadata


def test_without_a_checkout_bench_says_where_it_is() -> None:
    code = "import sys; sys.modules['benchmarks'] = None; from serving.cli.main import app; app(['bench', 'serve', '--quick'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "bench is in the source checkout" in done.stderr
    assert "Traceback" not in done.stderr

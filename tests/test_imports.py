"""Imports run one way: protos <- pipeline <- serving, transfer; only the command line knows both."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"protos", "pipeline", "serving", "transfer", "benchmarks"}
ALLOWED = {
    "protos": {"protos"},
    "pipeline": {"protos", "pipeline"},
    "serving": {"protos", "pipeline", "serving"},
    "transfer": {"protos", "pipeline", "transfer"},
}
TRANSPORTS = {"grpc", "fastapi", "starlette", "uvicorn", "ray", "uvloop", "torch"}
WITH_TORCH = {"torch_sets.py", "torch_cache.py"}
"""The device tier of a GPU. Whoever opens one imports them then, so that a process without has no torch."""

WITH_RAY = {"serving/ray_app.py", "transfer/teachers/ray_pool.py"}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return {name.split(".")[0] for name in found}


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_packages_import_only_what_lies_below_them(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        if path.is_relative_to(ROOT / "serving" / "cli") or path.name.endswith(("_pb2.py", "_pb2_grpc.py")):
            continue
        found = imports(path)
        assert found & OURS <= ALLOWED[package], f"{path.relative_to(ROOT)} imports {found & OURS - ALLOWED[package]}"
        if package == "pipeline":
            refused = found & TRANSPORTS - ({"torch"} if path.name in WITH_TORCH else set())
            assert not refused, f"{path.relative_to(ROOT)} imports {refused}"


def test_ray_is_imported_where_it_is_asked_for_alone() -> None:
    found = {
        str(path.relative_to(ROOT))
        for package in sorted(OURS)
        for path in (ROOT / package).rglob("*.py")
        if "ray" in imports(path)
    }
    assert "serving/ray_app.py" in found
    assert found <= WITH_RAY

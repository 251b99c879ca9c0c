"""Ray is imported only by commands that use it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
WITHOUT_RAY = """
import importlib, pkgutil, sys

sys.modules["ray"] = None  # as where it is not installed
ours = ["protos", "pipeline", "serving", "transfer"]
found = [m.name for package in ours for m in pkgutil.walk_packages([package], package + ".")]
for name in found:
    if name not in ("serving.ray_app", "transfer.teachers.ray_pool", "pipeline.embedding.device.torch_sets"):
        importlib.import_module(name)
assert len(found) > 150, len(found)
from typer.testing import CliRunner
from serving.cli.main import app
answer = CliRunner().invoke(app, ["serve", "--config", sys.argv[1], "--ray", "auto"])
assert answer.exit_code == 1, answer.output
print(answer.output)
"""


def test_all_but_the_ray_application_works_without_ray(tmp_path: Path) -> None:
    config = tmp_path / "baton.yaml"
    config.write_text("home: home\n")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY, str(config)], cwd=ROOT, capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stderr
    assert "pip install 'baton[ray]'" in done.stdout

"""`baton bundle verify` and `inspect` on a bundle that names a class: it is named, and nothing of it is imported."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest
from handmade import random_tables, write_bundle
from typer.testing import CliRunner

from pipeline.bundle.versions import Repository
from pipeline.errors import BundleError
from serving.cli.main import app

NAME = "payload_in_a_bundle:Network"


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle whose architecture lies in it as a module, which is on the module path."""
    folder = write_bundle(Repository(tmp_path / "bundles"), random_tables(1)).path
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\n".encode()
    (folder / "payload_in_a_bundle.py").write_bytes(code)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["architecture"] = NAME
    manifest["files"]["payload_in_a_bundle.py"] = {"sha256": hashlib.sha256(code).hexdigest(), "bytes": len(code)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.syspath_prepend(folder)
    return folder


def test_a_foreign_class_is_named_and_not_imported(hostile: Path, tmp_path: Path) -> None:
    refused = CliRunner().invoke(app, ["bundle", "verify", str(hostile)])
    assert refused.exit_code == 1
    said = str(refused.exception) + refused.output
    assert NAME in said
    assert "not of the zoo" in said
    shown = CliRunner().invoke(app, ["bundle", "inspect", str(hostile)])
    assert NAME in shown.output
    assert "not of the zoo" in " ".join(shown.output.split())
    assert CliRunner().invoke(app, ["bundle", "verify", str(hostile), "--arch", NAME]).exit_code == 0
    assert not (tmp_path / "ran").exists()
    assert "payload_in_a_bundle" not in sys.modules


def test_it_is_no_teacher(hostile: Path, tmp_path: Path) -> None:
    from transfer.bundles.frozen import load_teacher

    with pytest.raises(Exception, match="not of the zoo") as refused:
        load_teacher(hostile)
    assert not isinstance(refused.value, BundleError)  # the bundle is whole: its name has to be given
    assert not (tmp_path / "ran").exists()

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.versions import Repository


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "bundles")


@pytest.fixture
def segments(tmp_path: Path) -> Path:
    return tmp_path / "segments"

"""World of a worker: two models that were trained once for the tests of a file, and an open log."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from worker_world import models, open_log

from pipeline.bundle.versions import Repository
from pipeline.traffic.local.log import LocalTrafficLog


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Teacher and student, trained once for all tests."""
    folder = tmp_path_factory.mktemp("trained")
    models(folder)
    return folder / "bundles"


@pytest.fixture
def repository(trained: Path, tmp_path: Path) -> Repository:
    shutil.copytree(trained, tmp_path / "bundles")
    return Repository(tmp_path / "bundles")


@pytest.fixture
def traffic(tmp_path: Path) -> Iterator[LocalTrafficLog]:
    log = open_log(tmp_path)
    yield log
    log.close()

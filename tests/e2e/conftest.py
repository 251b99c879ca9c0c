"""Fixtures; the parts are in `machine.py`."""

from __future__ import annotations

import pytest
from machine import Models, make_models


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return make_models(tmp_path_factory.mktemp("models"))

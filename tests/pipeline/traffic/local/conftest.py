"""Logs of one folder, as the tests of several lanes have them open."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lane_logs import open_lane

from pipeline.traffic.local.log import LocalTrafficLog


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[list[LocalTrafficLog]]:
    """Three processes' logs of one folder."""
    opened = [open_lane(tmp_path / "traffic", lane) for lane in (3, 4, 5)]
    yield opened
    for log in opened:
        log.close()

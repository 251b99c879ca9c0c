"""Kill with a full disk, no descriptors, no control process and a full Redis at once; and a Redis that does not answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from namespaces import in_namespace

STOPPED_S = 6
"""By hand with 20, see docs/state.md."""
pytestmark = pytest.mark.long


def test_nothing_that_fails_keeps_the_candidate_in_traffic(tmp_path: Path) -> None:
    said = in_namespace(tmp_path, Path(__file__).with_name("emergency_scenario.py"), tmp_path, str(STOPPED_S))
    seen = json.loads(said.splitlines()[-1])
    assert seen["moved"] == 0, "a state store that does not answer changes no arm"
    assert 0.45 <= seen["fraction"] <= 0.55
    assert seen["armed"] == ["candidate"], "what fails takes no traffic from a candidate that nobody killed"
    assert seen["kill"][0] == 0, seen["kill"][1]
    assert seen["seconds"] < 1.0
    assert seen["after"] == ["stable"]
    assert json.loads(seen["file"])["reason"] == "burns"

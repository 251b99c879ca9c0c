"""Traffic log of several lanes compared with a plain dictionary: feedback, joins and reads land on any process."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test
from lane_logs import SpreadLog, lane_writing
from traffic_machine import NOBODY, Model, TrafficMachine
from traffic_places import Place

from pipeline.traffic.log import TrafficLog

LANES = 3


class SpreadMachine(TrafficMachine):
    def open(self) -> TrafficLog:
        return cast(TrafficLog, SpreadLog(Path(self.place.where) / "traffic", LANES, NOBODY))

    def queues(self) -> list[list[Model]]:
        (written,) = super().queues()
        return [[p for p in written if lane_writing(p.prediction_id, LANES) == lane] for lane in range(LANES)]


def test_any_interleaving_over_lanes_gives_what_a_dictionary_would(tmp_path: Path) -> None:
    def machine() -> Any:
        return SpreadMachine(Place("local", str(tmp_path)))

    run_state_machine_as_test(
        machine, settings=settings(max_examples=30, stateful_step_count=40, deadline=None, derandomize=True)
    )

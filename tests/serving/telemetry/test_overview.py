"""What the control process tells of the others, of labels and of rollouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from installation import statuses
from prometheus_client.metrics_core import Metric
from rollout_world import SPEC, World

from pipeline.errors import NotFound
from serving.rollout.spec import MIN_BLOCKS
from serving.telemetry.overview import Overview

LANE = {
    "endpoints": {
        "ranker": {
            "stable": {"bundle": "old", "version": "1", "wanted": "1", "state": "READY"},
            "candidate": {"bundle": "new", "version": "2", "wanted": "3", "state": "LOADING"},
        }
    },
}
WORKER = {
    "time_ms": -20_000, "position": 5, "versions": {"new": "7"}, "refused": {"new": ["6", "8", "9"]}, "trained_rows": 100,
    "loss": 0.4, "weight": 0.7, "replay_ratio": None,
}  # fmt: skip
PROCESSES = statuses(
    {
        "lane-0": LANE,
        "shadow": {"time_ms": -20_000},
        "worker": WORKER,
        "supervisor": {"children": {"lane-0": {"restarts": 3}, "lane-1": {"restarts": 2, "causes": {"hung": 2}}}},
    }
)


def told(overview: Overview, name: str) -> dict[tuple[str, ...], float]:
    families: list[Metric] = [family for family in overview.collect() if family.name == name]
    return {tuple(s.labels.values()): s.value for family in families for s in family.samples}


def opened(world: World, made: dict[tuple[str, str], int] | None = None) -> Overview:
    versions = {("old", "1"): 1_000, ("new", "2"): 2_000, ("new", "7"): 7_000} if made is None else made

    def created(bundle: str, version: str) -> int:
        try:
            return versions[bundle, version]
        except KeyError:
            raise NotFound("gone") from None

    return Overview(
        ["control", "shadow", "lane-0", "lane-1", "worker"], lambda: PROCESSES, world.store, world.controller.snapshot,
        world.log.stats, created, world.clock,
    )  # fmt: skip


def test_who_is_alive_and_what_the_worker_did(tmp_path: Path) -> None:
    overview = opened(World(tmp_path))
    assert told(overview, "baton_process_up") == {
        ("control",): 1, ("shadow",): 0, ("lane-0",): 1, ("lane-1",): 0, ("worker",): 0, ("supervisor",): 1,
    }  # fmt: skip
    assert told(overview, "baton_process_restarts") == {
        ("lane-0", "ended"): 3, ("lane-0", "hung"): 0, ("lane-0", "asked"): 0,
        ("lane-1", "ended"): 0, ("lane-1", "hung"): 2, ("lane-1", "asked"): 0,
    }  # fmt: skip
    assert told(overview, "baton_gate_refusals") == {("new",): 3}
    assert told(overview, "baton_gate_refused_in_a_row") == {("new",): 2}
    assert told(overview, "baton_worker_last_publish_timestamp_seconds") == {("new",): 7}
    assert told(overview, "baton_worker_replay_ratio") == {}
    assert told(overview, "baton_model_lanes") == {
        ("ranker", "stable", "true"): 1, ("ranker", "stable", "false"): 0,
        ("ranker", "candidate", "true"): 0, ("ranker", "candidate", "false"): 1,
    }  # fmt: skip
    assert told(overview, "baton_model_created_timestamp_seconds") == {
        ("ranker", "stable", "1"): 1, ("ranker", "candidate", "2"): 2,
    }  # fmt: skip
    assert told(opened(World(tmp_path / "other"), {}), "baton_model_created_timestamp_seconds") == {}


def test_bias_labels_and_phase_of_a_rollout(tmp_path: Path) -> None:
    world = World(tmp_path)
    overview = opened(world)
    assert told(overview, "baton_rollout_phase") == {}
    assert told(overview, "baton_endpoint_candidate_weight_ratio") == {("ranker",): 0}
    world.bias = 0.28  # within the bound of 0.3, and not to be shown so
    world.controller.start(SPEC, "ada", "go", version=1)
    world.seconds(5)
    blocks = told(overview, "baton_bias_blocks")["ranker", "candidate"]
    assert 0 < blocks < MIN_BLOCKS
    assert told(overview, "baton_bias_low_ratio") == told(overview, "baton_bias_high_ratio") == {}
    world.seconds(25)
    assert told(overview, "baton_bias_blocks")["ranker", "candidate"] >= MIN_BLOCKS
    assert told(overview, "baton_rollout_phase")["ranker", "progressing"] == 1
    bias, low, high = (
        told(overview, f"baton_bias_{name}")["ranker", "candidate"] for name in ("ratio", "low_ratio", "high_ratio")
    )
    assert 0.1 < low < bias < high < 0.6
    assert told(overview, "baton_bias_bound_ratio") == {("ranker",): 0.3}
    assert abs(told(overview, "baton_bias_ratio")["ranker", "stable"]) < 0.1
    assert told(overview, "baton_shadow_coverage_ratio") == {("ranker",): 1}
    matured = told(overview, "baton_log_matured_rows")
    rows = matured["ranker",]
    assert matured == {("ranker",): rows, ("unknown",): 0}
    assert rows > 3000
    (last,) = told(overview, "baton_label_last_timestamp_seconds").values()
    assert world.clock.now / 1000 - last < 6
    world.seconds(20, labels=False)
    assert told(overview, "baton_label_last_timestamp_seconds") == {(): last}
    (predictions,) = told(overview, "baton_log_predictions").values()
    assert predictions == 500


def test_a_store_that_is_away_leaves_the_figures_of_before(tmp_path: Path) -> None:
    world = World(tmp_path)
    overview = opened(world)
    assert told(overview, "baton_log_predictions") == {(): 0}

    def away(now_ms: int) -> Any:
        raise NotFound("away")

    overview._read_traffic = away
    world.clock.now += 60_000
    assert told(overview, "baton_log_predictions") == {(): 0}
    assert told(overview, "baton_process_up")["lane-0",] == 1

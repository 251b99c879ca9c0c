"""A healthy quiet system for a simulated week, day and night: no alert fires, neither a page nor a warning."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).parents[3]
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
STEP_MINUTES, STEPS = 5, 7 * 24 * 12
ROWS_OF_A_REQUEST = 10
CLICKS_OF_A_ROW = {"shop": 0.02, "night": 1 / 3000}
DELAYS_S = {"60": 0.5, "900": 0.9, "3600": 1.0, "+Inf": 1.0}
"""Share of labels by upper bound of their delay."""
RESTART = 800
"""Step at which the lane is started again, and its counters begin anew."""

pytestmark = pytest.mark.long


def week() -> dict[str, Sequence[float]]:
    """Series of a lane and control by the names that the installation gives them; counters grow by chance."""
    rng = np.random.default_rng(7)
    hour = np.arange(STEPS) * STEP_MINUTES / 60 % 24
    by_day = np.where((hour >= 8) & (hour < 22), 60, 10) * STEP_MINUTES
    found: dict[str, Sequence[float]] = {}
    lane, control = 'instance="m",process="lane-0"', 'instance="m"'

    def counter(name: str, labels: str, grown: np.ndarray) -> None:
        first, second = np.cumsum(grown[:RESTART]), np.cumsum(grown[RESTART:])
        found[f"{name}{{{labels}}}"] = [*first, *second]

    def constant(name: str, labels: str, value: float) -> None:
        found[f"{name}{{{labels}}}"] = [value] * STEPS

    none = np.zeros(STEPS)
    for endpoint, rate in (("shop", by_day), ("night", np.full(STEPS, 10 * STEP_MINUTES))):
        of = f'{lane},endpoint="{endpoint}"'
        arm = f'{of},arm="stable",version="1"'
        requests = rng.poisson(rate)
        clicks = rng.poisson(ROWS_OF_A_REQUEST * requests * CLICKS_OF_A_ROW[endpoint])
        counter("baton_rows_total", arm, ROWS_OF_A_REQUEST * requests)
        counter("baton_request_seconds_count", arm, requests)
        slow = rng.binomial(requests, 0.003)
        for bound, count in (("0.02", requests - slow), ("0.5", requests), ("+Inf", requests)):
            counter("baton_request_seconds_bucket", f'{arm},le="{bound}"', count)
        counter("baton_arm_failures_total", f'{of},arm="stable",kind="error"', rng.binomial(requests, 0.0005))
        counter("baton_request_failures_total", f'{of},code="RESOURCE_EXHAUSTED"', rng.binomial(requests, 0.001))
        counter("baton_feedback_total", f'{of},kind="exposure",status="accepted"', ROWS_OF_A_REQUEST * requests)
        counter("baton_feedback_total", f'{of},kind="outcome",status="accepted"', clicks)
        counter("baton_log_matured_rows_total", f'{control},endpoint="{endpoint}"', ROWS_OF_A_REQUEST * requests)
        counter("baton_label_delay_seconds_count", of, clicks)
        for bound, share in DELAYS_S.items():
            counter("baton_label_delay_seconds_bucket", f'{of},le="{bound}"', clicks * share)
        counter("baton_labels_late_total", of, rng.binomial(clicks, 0.02))
        counter(
            "baton_shadow_dropped_total",
            f'{control},process="shadow",endpoint="{endpoint}",reason="queue_full"',
            rng.binomial(requests, 0.001),
        )
        counter("baton_shadow_handoff_dropped_total", f'{of},reason="queue_full"', none)
        counter("baton_traffic_dropped_total", f'{of},reason="full"', none)
        constant("baton_endpoint_killed", f'{control},endpoint="{endpoint}"', 0)
        constant("baton_model_lanes", f'{control},endpoint="{endpoint}",arm="stable",wanted="false"', 0)
        constant("baton_embedding_breaker", f'{of},arm="stable",tier="redis"', 0)
    # A rollout of the endpoint by day goes up a step every two days; of few labels its interval is wide.
    step = np.arange(STEPS) // (2 * 288)
    found[f'baton_rollout_step{{{control},endpoint="shop"}}'] = [*step]
    for phase in ("progressing", "paused", "degraded"):
        constant("baton_rollout_phase", f'{control},endpoint="shop",phase="{phase}"', phase == "progressing")
    constant("baton_rollout_overdue", f'{control},endpoint="shop"', 0)
    constant("baton_bias_bound_ratio", f'{control},endpoint="shop"', 0.05)
    swing = 0.03 * np.sin(2 * np.pi * hour / 24)
    for each in ("stable", "candidate"):
        for limit, width in (("low", -0.06), ("high", 0.06)):
            found[f'baton_bias_{limit}_ratio{{{control},endpoint="shop",arm="{each}"}}'] = [*(swing + width)]
    constant("baton_shadow_coverage_ratio", f'{control},endpoint="shop"', 0.99)
    constant("baton_shadow_coverage_min_ratio", f'{control},endpoint="shop"', 0.95)
    counter(
        "baton_caller_failures_total", f'{lane},caller="anonymous",what="label",code="invalid"', rng.poisson(0.2, STEPS)
    )
    constant("baton_traffic_held_back", f'{control},what="unread"', 0)
    constant("baton_log_unwritable", lane, 0)
    constant("baton_state_lost", lane, 0)
    constant("baton_blind", lane, 0)
    constant("baton_state_away_seconds", lane, 0)
    constant("baton_bundle_damaged", f'{control},bundle="student",version="1"', 0)
    constant("baton_model_faults", f'{control},bundle="student",version="1"', 0)
    constant("baton_remote_breaker", f'{lane},bundle="teacher",version="1"', 0)
    constant("baton_gate_refused_in_a_row", f'{control},bundle="student"', 1)
    counter("baton_worker_trained_rows_total", control, ROWS_OF_A_REQUEST * by_day)
    published = np.arange(STEPS) // 6 * 6 * STEP_MINUTES * 60
    found[f'baton_worker_last_publish_timestamp_seconds{{{control},bundle="student"}}'] = [*published]
    found[f"baton_backup_last_timestamp_seconds{{{control}}}"] = [*(np.arange(STEPS) // 288 * 86_400)]
    for kind, store, size in (("disk", "home", 1e11), ("redis", "state", 1e9)):
        constant("baton_store_free_bytes", f'{control},store="{store}",kind="{kind}"', size / 2)
        constant("baton_store_size_bytes", f'{control},store="{store}",kind="{kind}"', size)
        counter("baton_store_refused_writes_total", f'{control},store="{store}",kind="{kind}"', none)
    counter("baton_disk_refused_writes_total", f'{lane},reason="full"', none)
    for process in ("lane-0", "shadow", "worker", "control", "supervisor"):
        constant("baton_process_up", f'{control},process="{process}"', 1)
        counter("baton_process_restarts_total", f'{control},process="{process}",reason="ended"', none)
        counter("baton_process_restarts_total", f'{control},process="{process}",reason="hung"', none)
    constant("up", 'instance="m",job="baton"', 1)
    return found


def test_no_alert_fires_in_a_healthy_week(tmp_path: Path) -> None:
    found = week()
    asked = set(re.findall(r"\b(baton_[a-z_0-9]+|up)\b(?=[{\[ )]|$)", _expressions()))
    # No rollout is held by a guard: that family has no series then.
    assert asked - {"baton_rollout_alarm"} <= {name.partition("{")[0] for name in found}, (
        "the week has a series of each metric"
    )
    fired = 'count by (alertname, endpoint, severity) (count_over_time(ALERTS{alertstate="firing"}[7d]))'
    test = {
        "interval": f"{STEP_MINUTES}m",
        "input_series": [
            {"series": name, "values": " ".join(f"{value:g}" if value < 1e5 else f"{value:.6f}" for value in values)}
            for name, values in found.items()
        ],
        "promql_expr_test": [
            {"expr": fired, "eval_time": "167h55m", "exp_samples": []},
            {
                "expr": "count(baton:labels_per_row:ratio7d > 0)",
                "eval_time": "167h55m",
                "exp_samples": [{"labels": "{}", "value": 2}],
            },
        ],
    }
    (tmp_path / "alerts.yml").write_text(RULES.read_text())
    content = {"rule_files": ["alerts.yml"], "evaluation_interval": f"{STEP_MINUTES}m", "tests": [test]}
    (tmp_path / "week.yml").write_text(yaml.safe_dump(content, width=1 << 30))
    done = subprocess.run(
        ["promtool", "test", "rules", "week.yml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _expressions() -> str:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return "\n".join(rule["expr"] for group in groups for rule in group["rules"])

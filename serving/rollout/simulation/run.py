"""Simulation of a rollout file on generated traffic, to try its thresholds before it is used.

The evidence, the reconciler and the state machine are the real ones; only the traffic is generated: blocks are drawn from a
`pool` and changed by a scenario (`scenarios`), so that hundreds of runs take seconds. Labels are mature at once: a real
attribution window delays all of them by the same time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import NormalDist
from typing import Any, TypedDict, Unpack

import numpy as np

from pipeline.children import spawning
from pipeline.errors import InvalidInput
from pipeline.host import cores
from serving.rollout.analysis import new_table
from serving.rollout.loss_bound import nats
from serving.rollout.observed import Observed
from serving.rollout.reconcile import Context, Decision, reconcile
from serving.rollout.simulation.pool import pool
from serving.rollout.simulation.scenarios import BLOCK_ROWS, SCENARIOS, Scenario, Traffic, scenario_of
from serving.rollout.spec import Rollout
from serving.rollout.state import Abort, Phase, StepBack, apply, begin
from serving.rollout.sums import selection
from serving.rollout.sums.evidence import attempt_error
from serving.rollout.sums.outcome import OutcomeSums

__all__ = ["SCENARIOS", "SimulationReport", "fixed_horizon", "simulate"]


_MANY_RUNS = 40
"""Runs from which on several processes are faster than one."""
_HALF_PERCENT = 50.0


class TrafficOptions(TypedDict, total=False):
    """Changes to the generated traffic.

    bias: of the candidate, instead of the scenario's. turned_bias: of a candidate that turned bad, either way.
    block_rows: labelled rows per block, 30 in `low_traffic`. horizon: blocks after which a run ends.
    heavy_share: of the rows that one user has, in `heavy_user`.
    most_blocks: that the table of blocks may hold before old ones are merged in pairs; as few as the breach window needs.
    strength: of what is odd: the swing over a day (0.04) in `day_night`, the part of a block that goes on in the next one (0.5)
        in `dependent`, the click rate (0.001) in `rare_clicks`, the coefficient of variation (2) in `clustered_clicks`.
    """

    bias: float | None
    turned_bias: float
    block_rows: int
    horizon: int
    heavy_share: float
    most_blocks: int
    strength: float | None


@dataclass(frozen=True, slots=True)
class SimulationReport:
    """Fractions of runs, 0..1. `labels_to_full`: labelled rows until the last step, over the runs that reached it.

    `stepped_back_in_time` is the fraction of the runs with a candidate that turned bad which stepped back within two
    breach windows of mature rows. `fixed_horizon_labels`: need of one look at the end, see `fixed_horizon`. `doublings`: how
    often blocks were merged in pairs within a run. `left_out`: fraction of the rows that the cap on a key left out, mean of all
    runs. `reached`: by weight, fraction of the runs that got there. `back_twice`: that stepped back more than once. `alarms`:
    that called an operator, by cause. `reasons_back`: guards of step backs and returns to an earlier version, by verb and guard.
    `interval_missed`: runs in which the interval that is shown missed the long-run bias at any look. `seen_at_bias`: the bias when
    it was first seen by a hold, a step back or an alarm after the end. `effects`: on clicks per request, means over the runs
    (`learns_from_both`).
    """

    scenario: str
    runs: int
    promoted: float
    stepped_back: float
    aborted: float
    labels_to_full: dict[str, float | None]
    reached_half: float
    blocks_to_full: dict[str, float | None]
    blocks_to_step_back: dict[str, float | None]
    stepped_back_in_time: float | None
    fixed_horizon_labels: float | None
    doublings: dict[str, float | None]
    left_out: float
    reached: dict[str, float] = field(default_factory=dict)
    back_twice: float = 0.0
    alarms: dict[str, float] = field(default_factory=dict)
    reasons_back: dict[str, float] = field(default_factory=dict)
    interval_missed: float = 0.0
    seen_at_bias: dict[str, float | None] = field(default_factory=dict)
    effects: dict[str, float] = field(default_factory=dict)


def simulate(
    spec: Rollout,
    scenario: str = "good",
    runs: int = 200,
    seed: int = 0,
    *,
    carry: bool = True,
    processes: int | None = None,
    **traffic: Unpack[TrafficOptions],
) -> SimulationReport:
    """Run a rollout file `runs` times against a scenario.

    Args:
        scenario: one of SCENARIOS; docs/rollout.md says what each is.
        carry: False gathers new evidence at each step, for comparison.
        processes: that share the runs; None: one per core where there are many runs. They change no figure.
        traffic: see `TrafficOptions`.

    Raises:
        InvalidInput: an unknown scenario, or fewer than one run.
    """
    if scenario not in SCENARIOS:
        raise InvalidInput(f"scenario {scenario!r} is not one of {', '.join(SCENARIOS)}", "scenario")
    if runs < 1:
        raise InvalidInput("runs must be at least 1", "runs")
    generated = Traffic(scenario, **traffic)
    done = _all_runs(partial(_run, spec, generated, carry), np.random.default_rng(seed).spawn(runs), processes)
    to_back = [run.back_at - run.turned_at if run.back_at else None for run in done if run.turned_at is not None]
    two_windows = 2 * spec.analysis.breach_window / spec.analysis.block
    return SimulationReport(
        scenario=scenario,
        runs=runs,
        promoted=float(np.mean([run.promoted_at is not None for run in done])),
        stepped_back=float(np.mean([run.back_at is not None for run in done])),
        aborted=float(np.mean([run.aborted for run in done])),
        labels_to_full=_spread([run.rows_to_full for run in done if run.promoted_at is not None]),
        blocks_to_full=_spread([run.promoted_at for run in done if run.promoted_at is not None]),
        reached_half=float(np.mean([run.highest >= _HALF_PERCENT for run in done])),
        blocks_to_step_back=_spread([after for after in to_back if after is not None]),
        stepped_back_in_time=(
            float(np.mean([after is not None and after <= two_windows for after in to_back])) if to_back else None
        ),
        fixed_horizon_labels=fixed_horizon(
            spec, generated.bias if generated.bias is not None else 0.005, generated.block_rows
        ),
        doublings=_spread([run.doublings for run in done]),
        left_out=float(np.mean([run.left_out for run in done])),
        reached={
            f"{step.weight:g}": float(np.mean([run.highest >= step.weight for run in done])) for step in spec.steps[1:]
        },
        back_twice=float(np.mean([run.backs > 1 for run in done])),
        alarms=_fractions([run.alarms for run in done]),
        reasons_back=_fractions([run.reasons for run in done]),
        interval_missed=float(np.mean([run.interval_missed for run in done])),
        seen_at_bias=_spread([run.seen_at for run in done if run.seen_at is not None]),
        effects=_means([run.effects for run in done if run.effects]),
    )


def fixed_horizon(
    spec: Rollout, bias: float = 0.005, block_rows: int = BLOCK_ROWS, power: float = 0.95
) -> float | None:
    """Labelled rows that a test with one look, at its end, needs to prove the last step's conditions for an equal candidate.

    The normal two-moment formula `(z(1 - error) + z(power))^2 sigma^2 / margin^2` in blocks, with the error of the
    sequential test's first attempt, for the most demanding of bias, LogLoss and AUC; None where no number of rows is
    enough. Each condition alone has that power, so together they would need somewhat more.
    """
    lines = pool(block_rows, bias).lines
    error, guards = attempt_error(spec.analysis.confidence, 1), spec.guards
    bound = spec.steps[-1].bound
    tests = [
        (lines[:, selection.CANDIDATE] - (1 + bound) * lines[:, selection.CLICKS], error / 2),
        ((1 - bound) * lines[:, selection.CLICKS] - lines[:, selection.CANDIDATE], error / 2),
    ]
    if guards.logloss_delta_max is not None:
        clicks, rows = (float(lines[:, column].sum()) for column in (selection.CLICKS, selection.ROWS))
        most = nats(guards.logloss_delta_max, clicks, rows)
        tests.append((lines[:, selection.LOSS_DELTA] - most * lines[:, selection.ROWS], error))
    if guards.auc_delta_min is not None:
        tests.append((guards.auc_delta_min - lines[:, selection.AUC_DELTA], error))
    normal, needed = NormalDist(), 0.0
    for values, one_sided in tests:
        mean = float(np.nanmean(values))
        if mean >= 0:
            return None
        z = normal.inv_cdf(1 - one_sided) + normal.inv_cdf(power)
        needed = max(needed, (z * float(np.nanstd(values, ddof=1)) / mean) ** 2)
    return math.ceil(needed) * block_rows


@dataclass(slots=True)
class _Run:
    rows: float = 0.0
    rows_to_full: float = 0.0
    promoted_at: int | None = None
    back_at: int | None = None
    turned_at: int | None = None
    aborted: bool = False
    highest: float = 0.0
    backs: int = 0
    doublings: int = 0
    left_out: float = 0.0
    alarms: set[str] = field(default_factory=set)
    reasons: set[str] = field(default_factory=set)
    interval_missed: bool = False
    seen_at: float | None = None
    effects: dict[str, float] = field(default_factory=dict)

    def note(self, decision: Decision, scenario: Scenario, number: int) -> None:
        """Take down what an operator sees of a decision."""
        verb = "" if decision.event is None else decision.event.verb
        if decision.alarm:
            self.alarms.add(decision.alarm)
        if "guard" in decision.evidence and verb:
            self.reasons.add(f"{verb} {decision.evidence['guard']}")
        if self.seen_at is None and (decision.alarm == "drift" or verb == "step_back"):
            self.seen_at = abs(scenario.bias_at(number))
        low, high = (decision.evidence.get(name) for name in ("bias_low", "bias_high"))
        if low is not None and high is not None and not low <= scenario.bias <= high:
            self.interval_missed = True


def _all_runs(
    run: Callable[[np.random.Generator], _Run], streams: list[np.random.Generator], processes: int | None
) -> list[_Run]:
    """A run for each random stream. Each run has its own stream, so the split over processes changes nothing."""
    if processes is None:
        processes = cores().amount if len(streams) >= _MANY_RUNS else 1
    if processes == 1:
        return [run(stream) for stream in streams]
    chunk = max(1, len(streams) // (8 * processes))
    with ProcessPoolExecutor(processes, spawning()) as pool:
        return list(pool.map(run, streams, chunksize=chunk))


def _run(spec: Rollout, traffic: Traffic, carry: bool, rng: np.random.Generator) -> _Run:
    run = _Run()
    block_ms = spec.analysis.block_ms
    start = 1_000_000 * block_ms  # any multiple of the block's length
    first = start // block_ms
    table = new_table(spec, traffic.most_blocks)
    state = begin(spec, version=1, now_ms=start, seq=0)
    table.begin(state.evidence_from_ms, state.evidence_version)
    scenario = scenario_of(traffic, spec, rng)
    next_look = 0
    for number in range(traffic.horizon):
        block = scenario.block(number, state)
        if block.changed is not None:
            table.fill(first + block.changed[0], block.changed[1][None])
        now = start + (number + 1) * block_ms
        observed = Observed(
            since_ms=now - block_ms,
            requests=block.candidate.requests,
            slow=block.candidate.slow,
            p99_ms=block.candidate.p99_ms,
            stable=block.stable,
            versions=block.versions,
        )
        if block.shown is not None and block.answered is not None:
            table.outcome.add_counts(block.shown, block.answered)
        if (line := block.line) is not None:
            table.fill(first + number, line[None])
            run.doublings = max(run.doublings, table.doublings)
            run.rows += float(line[selection.ROWS])
            observed = replace(
                observed,
                scored_rows=int(line[selection.ROWS]),
                predicted_candidate=float(line[selection.CANDIDATE]),
                predicted_stable=float(line[selection.STABLE]),
            )
        decision = reconcile(Context(spec, state, observed, now, next_look, lambda: table, carry))
        next_look = decision.next_look_ms
        run.note(decision, scenario, number)
        if decision.event is None:
            continue
        state = apply(spec, state, decision.event, now, 0)
        table.begin(state.evidence_from_ms, state.evidence_version)
        if state.entered_ms == now:
            table.outcome = OutcomeSums()
        run.highest = max(run.highest, state.weight)
        if isinstance(decision.event, StepBack | Abort):
            run.back_at, run.backs = run.back_at or number, run.backs + 1
            run.aborted = isinstance(decision.event, Abort)
            if run.aborted or (scenario.until_back and scenario.turned_at is not None):
                break
        if state.phase == Phase.WATCHING:
            run.promoted_at = run.promoted_at or number
            run.rows_to_full = run.rows_to_full or run.rows
            if not scenario.watches:
                break
        if state.phase == Phase.COMPLETED and not scenario.goes_on:
            break
    run.turned_at, run.effects = scenario.turned_at, scenario.effects()
    run.left_out = table.select(0).left_out_fraction()
    return run


def _spread(values: list[Any]) -> dict[str, float | None]:
    if not values:
        return {"median": None, "p95": None}
    return {"median": float(np.median(values)), "p95": float(np.quantile(values, 0.95))}


def _fractions(found: list[set[str]]) -> dict[str, float]:
    """Fraction of the runs in which each was found."""
    return {name: sum(name in each for each in found) / len(found) for name in sorted(set().union(*found))}


def _means(found: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each number over the runs that have it."""
    return {name: round(float(np.mean([each[name] for each in found])), 4) for name in (found[0] if found else ())}

"""Simulation of a rollout file on generated traffic, to try its thresholds before it is used.

The evidence, the reconciler and the state machine are the real ones; only the traffic is generated. Rows have known true
probabilities, two calibrated arms of equal quality know different things of each row, and the rows of a request share a
cause that neither arm sees. Blocks are drawn from a pool of such blocks, so that hundreds of runs take seconds. Labels
are mature at once: a real attribution window delays all of them by the same time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from statistics import NormalDist
from typing import Any, TypedDict, Unpack

import numpy as np

from pipeline.arrays import F64
from pipeline.calibration import sigmoid
from pipeline.children import spawning
from pipeline.errors import InvalidInput
from pipeline.host import cores
from pipeline.metrics import auc, row_logloss
from serving.rollout.analysis import new_table
from serving.rollout.reconcile import Context, Observed, reconcile
from serving.rollout.spec import Rollout
from serving.rollout.state import Abort, Phase, StepBack, apply, begin
from serving.rollout.sums import selection
from serving.rollout.sums.blocks import MAX_BLOCKS
from serving.rollout.sums.evidence import attempt_error

__all__ = ["SCENARIOS", "SimulationReport", "fixed_horizon", "simulate"]


SCENARIOS = ("good", "biased", "worse_auc", "turns_bad", "label_outage", "low_traffic", "base_rate_jump")

REQUEST_ROWS = 10
BLOCK_ROWS = 1250
LOW_TRAFFIC_ROWS = 30
POOL_KEYS = 800
TURN_WEIGHT_PERCENT = 50.0
"""`turns_bad`: from this weight on."""
OUTAGE_BLOCKS = (60, 160)
"""`label_outage`: blocks without a click; the second half of them without any row."""
JUMP_AT_BLOCKS = 60
_CHUNKS = 100
_MANY_RUNS = 40
"""Runs from which on several processes are faster than one."""


class TrafficOptions(TypedDict, total=False):
    """Changes to the generated traffic.

    bias: of the candidate, instead of the scenario's. turned_bias: of a candidate that turned bad, either way.
    block_rows: labelled rows per block, 30 in `low_traffic`. horizon: blocks after which a run ends.
    most_blocks: that the table of blocks may hold before old ones are merged in pairs; as few as the breach window needs.
    """

    bias: float | None
    turned_bias: float
    block_rows: int
    horizon: int
    most_blocks: int


@dataclass(frozen=True, slots=True)
class _Traffic:
    scenario: str
    bias: float | None = None
    turned_bias: float = 0.05
    block_rows: int = BLOCK_ROWS
    horizon: int = 1600
    most_blocks: int = MAX_BLOCKS

    def usual_bias(self, side: float) -> float:
        """Bias of the candidate while it has not turned bad; `side` is 1 or -1."""
        if self.bias is not None:
            return self.bias
        return side * (0.05 if self.scenario == "biased" else 0.005 if self.scenario != "worse_auc" else 0.0)

    def out(self, block: int) -> bool:
        """Whether the labels of a block are missing."""
        return self.scenario == "label_outage" and OUTAGE_BLOCKS[0] <= block < OUTAGE_BLOCKS[1]

    def draw(self, block: int, bias: float, weight: float, rng: np.random.Generator) -> F64:
        """The line of a block for a candidate with this bias that answers `weight` percent."""
        rows = LOW_TRAFFIC_ROWS if self.scenario == "low_traffic" else self.block_rows
        jumped = self.scenario == "base_rate_jump" and block >= JUMP_AT_BLOCKS
        line = _pool(rows, bias, self.scenario == "worse_auc", jumped).draw(rng, weight)
        line[selection.VERSION] = 1
        if self.out(block):
            line[[selection.CLICKS, selection.SERVED_CLICKS]] = 0.0
            line[selection.AUC_DELTA] = np.nan
        return line


@dataclass(frozen=True, slots=True)
class SimulationReport:
    """Fractions of runs, 0..1. `labels_to_full`: labelled rows until the last step, over the runs that reached it.

    `stepped_back_in_time` is the fraction of the runs with a candidate that turned bad which stepped back within two
    breach windows of mature rows. `fixed_horizon_labels`: need of one look at the end, see `fixed_horizon`. `doublings`: how
    often blocks were merged in pairs within a run.
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
        scenario: one of SCENARIOS: `good` (equal arms, bias of 0.5 % either way), `biased` (5 %), `worse_auc` (by 0.01),
            `turns_bad` (5 % from 50 % of the traffic on), `label_outage` (good, with an outage), `low_traffic` (good,
            30 rows per block), `base_rate_jump` (good; clicks become 8 % more frequent than both arms think).
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
    generated = _Traffic(scenario, **traffic)
    done = _all_runs(partial(_run, spec, generated, carry), np.random.default_rng(seed).spawn(runs), processes)
    to_back = [run.back_at - run.turned_at if run.back_at else None for run in done if run.turned_at is not None]
    two_windows = 2 * spec.analysis.breach_window / spec.analysis.block
    return SimulationReport(
        scenario=scenario,
        runs=runs,
        promoted=float(np.mean([run.promoted_at is not None for run in done])),
        stepped_back=float(np.mean([run.back_at is not None for run in done])),
        aborted=float(np.mean([run.aborted for run in done])),
        labels_to_full=_spread([run.rows for run in done if run.promoted_at is not None]),
        blocks_to_full=_spread([run.promoted_at for run in done if run.promoted_at is not None]),
        reached_half=float(np.mean([run.reached_half for run in done])),
        blocks_to_step_back=_spread([after for after in to_back if after is not None]),
        stepped_back_in_time=(
            float(np.mean([after is not None and after <= two_windows for after in to_back])) if to_back else None
        ),
        fixed_horizon_labels=fixed_horizon(
            spec, generated.bias if generated.bias is not None else 0.005, generated.block_rows
        ),
        doublings=_spread([run.doublings for run in done]),
    )


def fixed_horizon(
    spec: Rollout, bias: float = 0.005, block_rows: int = BLOCK_ROWS, power: float = 0.95
) -> float | None:
    """Labelled rows that a test with one look, at its end, needs to prove the last step's conditions for an equal candidate.

    The normal two-moment formula `(z(1 - error) + z(power))^2 sigma^2 / margin^2` in blocks, with the error of the
    sequential test's first attempt, for the most demanding of bias, LogLoss and AUC; None where no number of rows is
    enough. Each condition alone has that power, so together they would need somewhat more.
    """
    lines = _pool(block_rows, bias, worse=False, jumped=False).lines
    error, guards = attempt_error(spec.analysis.confidence, 1), spec.guards
    bound = spec.steps[-1].bound
    tests = [
        (lines[:, selection.CANDIDATE] - (1 + bound) * lines[:, selection.CLICKS], error / 2),
        ((1 - bound) * lines[:, selection.CLICKS] - lines[:, selection.CANDIDATE], error / 2),
    ]
    if guards.logloss_delta_max is not None:
        tests.append((lines[:, selection.LOSS_DELTA] - guards.logloss_delta_max * lines[:, selection.ROWS], error))
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
    promoted_at: int | None = None
    back_at: int | None = None
    turned_at: int | None = None
    aborted: bool = False
    reached_half: bool = False
    doublings: int = 0


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


def _run(spec: Rollout, traffic: _Traffic, carry: bool, rng: np.random.Generator) -> _Run:
    run = _Run()
    block_ms = spec.analysis.block_ms
    start = 1_000_000 * block_ms  # any multiple of the block's length
    table = new_table(spec, traffic.most_blocks)
    state = begin(spec, version=1, now_ms=start, seq=0)
    table.begin(state.evidence_from_ms, state.evidence_version)
    side = 1.0 if rng.random() < 0.5 else -1.0
    next_look = 0
    for number in range(traffic.horizon):
        if traffic.scenario == "turns_bad" and run.turned_at is None and state.weight >= TURN_WEIGHT_PERCENT:
            run.turned_at = number
        bias = side * traffic.turned_bias if run.turned_at is not None else traffic.usual_bias(side)
        line = traffic.draw(number, bias, state.weight, rng)
        if not (traffic.out(number) and number >= sum(OUTAGE_BLOCKS) // 2):
            table.fill(start // block_ms + number, line[None])
            run.doublings = max(run.doublings, table.doublings)
        run.rows += float(line[selection.ROWS])
        now = start + (number + 1) * block_ms
        observed = Observed(
            since_ms=now - block_ms,
            scored_rows=int(line[selection.ROWS]),
            predicted_candidate=float(line[selection.CANDIDATE]),
            predicted_stable=float(line[selection.STABLE]),
        )
        decision = reconcile(Context(spec, state, observed, now, next_look, lambda: table, carry))
        next_look = decision.next_look_ms
        if decision.event is None:
            continue
        state = apply(spec, state, decision.event, now, 0)
        table.begin(state.evidence_from_ms, state.evidence_version)
        run.reached_half = run.reached_half or state.weight >= TURN_WEIGHT_PERCENT
        if isinstance(decision.event, StepBack | Abort):
            run.back_at = run.back_at or number
            run.aborted = isinstance(decision.event, Abort)
            if run.aborted or run.turned_at is not None:
                break
        if state.phase == Phase.WATCHING:
            run.promoted_at = number
            if traffic.scenario != "turns_bad":
                break
    return run


@dataclass(frozen=True, slots=True)
class _Pool:
    """Complete blocks `[POOL, COLUMNS]`, and sums over the first 0..100 percent of their requests `[POOL, 101]`."""

    lines: F64
    served_rows: F64
    served_clicks: F64
    served: F64

    def draw(self, rng: np.random.Generator, weight: float) -> F64:
        """One block with its served columns for a weight in percent."""
        at = int(rng.integers(len(self.lines)))
        chunk = round(weight / 100 * _CHUNKS)
        line: F64 = self.lines[at].copy()
        line[selection.SERVED_ROWS] = self.served_rows[at, chunk]
        line[selection.SERVED_CLICKS] = self.served_clicks[at, chunk]
        line[selection.SERVED] = self.served[at, chunk]
        return line


@lru_cache(maxsize=32)
def _pool(rows: int, bias: float, worse: bool, jumped: bool) -> _Pool:
    """Blocks of `rows` rows whose candidate has this bias and, if `worse`, an AUC lower by 0.01."""
    rng = np.random.default_rng([rows, worse, jumped])
    shape = (POOL_KEYS, rows)
    known_c = 0.27 if worse else 0.4  # spread of what only that arm knows, in log-odds; 0.4 for both: equal AUC
    known_s, shared, unseen = 0.4, 0.9, 0.3
    base = rng.normal(-1.65, shared, shape)
    only_c, only_s = rng.normal(0, 0.4, shape), rng.normal(0, known_s, shape)
    requests = -(-rows // REQUEST_ROWS)
    cause = np.repeat(rng.normal(0, unseen, (POOL_KEYS, requests)), REQUEST_ROWS, axis=1)[:, :rows]
    truth = sigmoid(base + only_c + only_s + cause)
    if jumped:
        truth = truth * 1.08
    clicks = (rng.random(shape) < truth).astype(np.float64)
    # What the candidate sees of its own cause; the rest is noise to it. Expected clicks given what is seen: calibrated.
    part = (known_c / 0.4) ** 2
    seen = part * only_c + np.sqrt(part * (1 - part)) * rng.normal(0, 0.4, shape) if worse else only_c
    stable = _expected(base + only_s, np.hypot(0.4, unseen))
    candidate = _expected(base + seen, np.sqrt(known_s**2 + unseen**2 + 0.16 * (1 - part)))
    # Exact by construction, so that the random error of the pool is not a bias that all runs share.
    stable *= clicks.sum() / (1.08 if jumped else 1.0) / stable.sum()
    candidate *= (1.0 + bias) * clicks.sum() / (1.08 if jumped else 1.0) / candidate.sum()
    np.clip(candidate, 0.0, 0.999, out=candidate)
    lines = np.zeros((POOL_KEYS, selection.COLUMNS))
    lines[:, selection.ROWS] = lines[:, selection.EXPOSED] = rows
    lines[:, selection.CLICKS] = clicks.sum(1)
    lines[:, selection.STABLE], lines[:, selection.CANDIDATE] = stable.sum(1), candidate.sum(1)
    lines[:, selection.LOSS_DELTA] = (row_logloss(clicks, candidate) - row_logloss(clicks, stable)).sum(1)
    apart = np.array([auc(y, c) - auc(y, s) for y, c, s in zip(clicks, candidate, stable, strict=True)])
    lines[:, selection.AUC_DELTA] = apart - np.nanmean(apart) - (0.01 if worse else 0.0)
    ends = np.round(np.linspace(0, rows, _CHUNKS + 1)).astype(int)

    def sums(values: F64) -> F64:
        total = np.concatenate([np.zeros((POOL_KEYS, 1)), np.cumsum(values, axis=1)], axis=1)
        taken: F64 = total[:, ends]
        return taken

    return _Pool(lines, sums(np.ones(shape)), sums(clicks), sums(candidate))


def _expected(logits: F64, spread: float) -> F64:
    """Mean of sigmoid(logits + spread * z) over standard normal z, by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)
    grid = np.linspace(-12, 12, 2401)
    table = (sigmoid(grid[:, None] + spread * nodes) * weights).sum(1) / weights.sum()
    found: F64 = np.interp(logits, grid, table)
    return found


def _spread(values: list[Any]) -> dict[str, float | None]:
    if not values:
        return {"median": None, "p95": None}
    return {"median": float(np.median(values)), "p95": float(np.quantile(values, 0.95))}

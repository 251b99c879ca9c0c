"""Scenarios of simulated traffic: what is odd about it, block by block.

A scenario draws blocks from the `pool` and changes them: by the hour, by what the candidate answers, by versions that come.
`run` asks it for one block after the other and knows nothing else of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from pipeline.arrays import F64, I64
from pipeline.metrics import auc, row_logloss
from serving.rollout.analysis import new_cap
from serving.rollout.observed import ArmCounters, NewVersion
from serving.rollout.simulation.pool import REQUEST_ROWS, USUAL_CLICK_FRACTION, pool
from serving.rollout.simulation.shop import SHOWN_ROWS, Trials
from serving.rollout.spec import Rollout
from serving.rollout.state import RolloutState
from serving.rollout.sums import selection
from serving.rollout.sums.blocks import MAX_BLOCKS
from serving.rollout.sums.cap import GROUPS
from serving.rollout.sums.outcome import GROUPS as KEY_GROUPS

__all__ = ["BLOCK_ROWS", "SCENARIOS", "Block", "Scenario", "Traffic", "scenario_of"]

BLOCK_ROWS = 1250
LOW_TRAFFIC_ROWS = 30
TURN_WEIGHT_PERCENT = 50.0
"""`turns_bad`: from this weight on."""
BAD_VERSION_WEIGHT_PERCENT = 25.0
STABLE_JUMP_WEIGHT_PERCENT = 5.0
STABLE_JUMP_FRACTION = 0.36
OUTAGE_BLOCKS = (60, 160)
"""`label_outage`: blocks without a click; the second half of them without any row."""
JUMP_AT_BLOCKS = 60
VISIT_BLOCKS = 60
TASTE_FACTOR = 0.3
"""`heavy_user`: visits of half an hour, half of the time; in each the user clicks more or less than everybody, by this spread."""
SWING_FRACTION = 0.04
RATE_DEVIATION, BIAS_DEVIATION = 0.05, 0.03
"""`dependent`: standard deviations of the click rate and of the bias around their means."""
DAILY_DRIFT_FRACTION = 0.01
LATE_FRACTION = 0.2
LATE_MS = 1_800_000
VERSION_BLOCKS = 10
VERSION_DEVIATION = 0.01
LOST_FRACTION = 0.2
BUSY_FRACTION = 0.3
SHOWN_FRACTION = 0.9
_DAY_MS = 86_400_000
_CANDIDATE = [selection.CANDIDATE, selection.SERVED]
_STABLE = [selection.STABLE, selection.SERVED_STABLE]
_CLICKS = [selection.CLICKS, selection.SERVED_CLICKS]


@dataclass(frozen=True, slots=True)
class Traffic:
    """Settings of the generated traffic, see `run.TrafficOptions`."""

    scenario: str
    bias: float | None = None
    turned_bias: float = 0.26
    block_rows: int = BLOCK_ROWS
    horizon: int = 1600
    heavy_share: float = 0.05
    most_blocks: int = MAX_BLOCKS
    strength: float | None = None


@dataclass(slots=True)
class Block:
    """One block of traffic.

    Args:
        line: its sums, float64 `[COLUMNS]`; None: it has no row.
        changed: (number of an older block, its line now), where labels came late.
        versions: newer ones that the gate has passed.
        candidate, stable: counters of the arms.
        shown: shown requests by group of keys and arm, int64 `[KEY_GROUPS, 2]`; None: not of interest. answered: all of them.
    """

    line: F64 | None
    changed: tuple[int, F64] | None = None
    versions: tuple[NewVersion, ...] = ()
    candidate: ArmCounters = field(default_factory=ArmCounters)
    stable: ArmCounters = field(default_factory=ArmCounters)
    shown: I64 | None = None
    answered: I64 | None = None


class Scenario:
    """Traffic of one run; the usual one: a candidate with a bias of 0.5 % either way.

    Attributes:
        turned_at: block from which on the candidate or stable is another one than before, None before that.
        watches: the run goes on through the watch after the last step.
        until_back: the run ends with the first step back. goes_on: it goes on after completion.
    """

    watches = False
    until_back = goes_on = False
    usual = 0.005

    def __init__(self, traffic: Traffic, spec: Rollout, rng: np.random.Generator) -> None:
        self.traffic, self.spec, self.rng = traffic, spec, rng
        self.side = 1.0 if rng.random() < 0.5 else -1.0
        self.bias = self.side * self.usual if traffic.bias is None else traffic.bias
        """Bias of the candidate in the long run."""
        self.turned_at: int | None = None
        self.day_blocks = _DAY_MS / spec.analysis.block_ms

    def block(self, number: int, state: RolloutState) -> Block:
        """Block number 0, 1, ... of a rollout in this state."""
        return Block(self.draw(state.weight))

    def draw(
        self, weight: float, rows: int | None = None, bias: float | None = None, rate: float = USUAL_CLICK_FRACTION
    ) -> F64:
        """A line from the pool, at a weight in percent."""
        rows = self.traffic.block_rows if rows is None else rows
        line = pool(rows, self.bias if bias is None else bias, rate=rate).draw(self.rng, weight)
        line[selection.VERSION] = 1
        return line

    def bias_at(self, number: int) -> float:
        """Bias of the candidate now."""
        return self.bias

    def effects(self) -> dict[str, float]:
        """Relative effects on clicks per request by the end of a run, by name; none where they are not of interest."""
        return {}


class _Biased(Scenario):
    usual = 0.05


class _WorseAuc(Scenario):
    usual = 0.0

    def block(self, number: int, state: RolloutState) -> Block:
        line = pool(self.traffic.block_rows, self.bias, worse=True).draw(self.rng, state.weight)
        line[selection.VERSION] = 1
        return Block(line)


class _TurnsBad(Scenario):
    watches, until_back = True, True

    def block(self, number: int, state: RolloutState) -> Block:
        if self.turned_at is None and state.weight >= TURN_WEIGHT_PERCENT:
            self.turned_at = number
        turned = self.turned_at is not None
        return Block(self.draw(state.weight, bias=self.side * self.traffic.turned_bias if turned else self.bias))


class _LabelOutage(Scenario):
    def block(self, number: int, state: RolloutState) -> Block:
        line = self.draw(state.weight)
        if OUTAGE_BLOCKS[0] <= number < OUTAGE_BLOCKS[1]:
            line[_CLICKS] = 0.0
            line[selection.AUC_DELTA] = np.nan
            if number >= sum(OUTAGE_BLOCKS) // 2:
                return Block(None)
        return Block(line)


class _LowTraffic(Scenario):
    def block(self, number: int, state: RolloutState) -> Block:
        return Block(self.draw(state.weight, LOW_TRAFFIC_ROWS))


class _BaseRateJump(Scenario):
    def block(self, number: int, state: RolloutState) -> Block:
        line = pool(self.traffic.block_rows, self.bias, jumped=number >= JUMP_AT_BLOCKS).draw(self.rng, state.weight)
        line[selection.VERSION] = 1
        return Block(line)


class _HeavyUser(Scenario):
    """One user of many, whose rows are capped as those of the log are."""

    watches = True

    def __init__(self, traffic: Traffic, spec: Rollout, rng: np.random.Generator) -> None:
        super().__init__(traffic, spec, rng)
        self._cap = new_cap(spec)
        self._key = int(rng.integers(1, 1 << 62))
        self._bucket = 100 * rng.random()
        self._requests = round(2 * traffic.heavy_share * traffic.block_rows / REQUEST_ROWS)
        self._visit, self._taste = -1, 0.0

    def block(self, number: int, state: RolloutState) -> Block:
        traffic, rng = self.traffic, self.rng
        visit = number // VISIT_BLOCKS
        if visit != self._visit:
            self._visit = visit
            self._taste = math.exp(rng.normal(-0.5 * TASTE_FACTOR**2, TASTE_FACTOR)) if rng.random() < 0.5 else 0.0
        requests = self._requests if self._taste else 0
        others = traffic.block_rows - REQUEST_ROWS * requests
        line = self.draw(state.weight, others)
        left_out = 0
        if self._cap is not None:
            # Every other request is of a key that comes once.
            asked = np.bincount(rng.integers(0, GROUPS, others // REQUEST_ROWS), minlength=GROUPS)
            self._cap.count_groups(number, REQUEST_ROWS * asked)
            self._cap.count(number, self._key, REQUEST_ROWS * requests)
            tickets = rng.integers(0, 1 << 64, requests, np.uint64).tolist()
            left_out = sum(self._cap.leaves_out(number, self._key, ticket) for ticket in tickets)
        line[selection.LEFT_OUT] = REQUEST_ROWS * left_out
        if requests > left_out:
            rows = REQUEST_ROWS * (requests - left_out)
            own = self.draw(100.0 * (self._bucket < state.weight), rows)
            own[_CLICKS] *= self._taste
            own[selection.AUC_DELTA] = 0.0
            line += own
        line[selection.VERSION] = 1
        return Block(line)


class _EarnsNothing(Scenario):
    """What the candidate shows is never clicked."""

    def block(self, number: int, state: RolloutState) -> Block:
        line = self.draw(state.weight)
        line[selection.CLICKS] -= line[selection.SERVED_CLICKS]
        line[selection.SERVED_CLICKS] = 0.0
        return Block(line)


class _RatioMismatch(Scenario):
    """A fifth of the candidate's exposures is lost."""

    def block(self, number: int, state: RolloutState) -> Block:
        answered = self.answered(self.traffic.block_rows // REQUEST_ROWS, state.weight)
        shown = answered.copy()
        shown[:, 1] = self.rng.binomial(shown[:, 1], 1.0 - LOST_FRACTION)
        return Block(self.draw(state.weight), shown=shown, answered=answered)

    def answered(self, requests: int, weight: float) -> I64:
        """Requests of keys that come once, by group and arm."""
        share = weight / 100 * (1.0 - self.spec.holdout)
        groups = np.bincount(self.rng.integers(0, KEY_GROUPS, requests), minlength=KEY_GROUPS)
        candidate = self.rng.binomial(groups, share)
        return np.stack([groups - candidate, candidate], axis=1)


class _BusyKey(_RatioMismatch):
    """One key makes 30 % of the requests; the arms are equal."""

    def __init__(self, traffic: Traffic, spec: Rollout, rng: np.random.Generator) -> None:
        super().__init__(traffic, spec, rng)
        self._group, self._bucket = int(rng.integers(KEY_GROUPS)), 100 * rng.random()

    def block(self, number: int, state: RolloutState) -> Block:
        requests = self.traffic.block_rows // REQUEST_ROWS
        busy = round(BUSY_FRACTION * requests)
        answered = self.answered(requests - busy, state.weight)
        answered[self._group, int(self._bucket < state.weight)] += busy
        shown = self.rng.binomial(answered, SHOWN_FRACTION)
        return Block(self.draw(state.weight), shown=shown, answered=answered)


class _TeacherOff(Scenario):
    """Stable is 20 % too low or too high; the candidate is right."""

    def block(self, number: int, state: RolloutState) -> Block:
        line = self.draw(state.weight)
        line[_STABLE] *= 1.0 + 0.2 * self.side
        return Block(line)


class _BadVersion(Scenario):
    """A version that is adopted at 25 % is bad, and the one before it was good."""

    def block(self, number: int, state: RolloutState) -> Block:
        if self.turned_at is None and state.weight >= BAD_VERSION_WEIGHT_PERCENT:
            self.turned_at = number
        versions = (NewVersion(2, 0.0),) if self.turned_at is not None and state.candidate_version < 2 else ()
        bad = state.candidate_version >= 2
        line = self.draw(state.weight, bias=self.side * self.traffic.turned_bias if bad else self.bias)
        line[selection.VERSION] = state.candidate_version
        return Block(line, versions=versions)


class _StableJumps(Scenario):
    def block(self, number: int, state: RolloutState) -> Block:
        if self.turned_at is None and state.weight >= STABLE_JUMP_WEIGHT_PERCENT:
            self.turned_at = number
        line = self.draw(state.weight)
        if self.turned_at is not None:
            line[_STABLE] *= 1.0 + STABLE_JUMP_FRACTION
        return Block(line)


class _BothSlow(Scenario):
    """Both arms' latency doubles, beyond the limit, at 50 %."""

    def block(self, number: int, state: RolloutState) -> Block:
        if self.turned_at is None and state.weight >= TURN_WEIGHT_PERCENT:
            self.turned_at = number
        line, limit = self.draw(state.weight), self.spec.guards.p99_ms_max or 50.0
        requests = self.traffic.block_rows // REQUEST_ROWS
        p99, slow = (1.6 * limit, 0.05) if self.turned_at is not None else (0.8 * limit, 0.002)
        arms = []
        for share in (state.weight / 100, 1 - state.weight / 100):
            count = int(self.rng.binomial(requests, share))
            arms.append(ArmCounters(count, slow=int(self.rng.binomial(count, slow)), p99_ms=p99 if count else None))
        return Block(line, candidate=arms[0], stable=arms[1])


class _DayNight(Scenario):
    """The bias swings over the day."""

    watches = True
    usual = 0.0
    both = False

    def __init__(self, traffic: Traffic, spec: Rollout, rng: np.random.Generator) -> None:
        super().__init__(traffic, spec, rng)
        self._phase = 2 * math.pi * rng.random()

    def bias_at(self, number: int) -> float:
        swing = SWING_FRACTION if self.traffic.strength is None else self.traffic.strength
        return self.bias + swing * math.sin(self._phase + 2 * math.pi * number / self.day_blocks)

    def block(self, number: int, state: RolloutState) -> Block:
        line = self.draw(state.weight)
        factor = (1.0 + self.bias_at(number)) / (1.0 + self.bias)
        line[_CANDIDATE] *= factor
        if self.both:
            line[_STABLE] *= factor
        return Block(line)


class _DayNightBoth(_DayNight):
    both = True


class _Dependent(Scenario):
    """Click rate and bias of a block go on in the next one (AR(1))."""

    watches = True

    def __init__(self, traffic: Traffic, spec: Rollout, rng: np.random.Generator) -> None:
        super().__init__(traffic, spec, rng)
        self._phi = 0.5 if traffic.strength is None else traffic.strength
        self._rate, self._off = rng.normal(0.0, RATE_DEVIATION), rng.normal(0.0, BIAS_DEVIATION)

    def block(self, number: int, state: RolloutState) -> Block:
        line = self.draw(state.weight)
        fresh = math.sqrt(1.0 - self._phi**2)
        self._rate = self._phi * self._rate + self.rng.normal(0.0, RATE_DEVIATION * fresh)
        self._off = self._phi * self._off + self.rng.normal(0.0, BIAS_DEVIATION * fresh)
        line[[*_CLICKS, *_STABLE, *_CANDIDATE]] *= max(0.1, 1.0 + self._rate)
        line[_CANDIDATE] *= 1.0 + self._off
        return Block(line)


class _RareClicks(Scenario):
    watches = True

    def block(self, number: int, state: RolloutState) -> Block:
        rate = 0.001 if self.traffic.strength is None else self.traffic.strength
        return Block(self.draw(state.weight, rate=rate))


class _ClusteredClicks(Scenario):
    """Clicks come in clusters: those of a block are up to many times what both arms expect."""

    watches = True

    def block(self, number: int, state: RolloutState) -> Block:
        line = self.draw(state.weight)
        variation = 2.0 if self.traffic.strength is None else self.traffic.strength
        line[_CLICKS] *= self.rng.gamma(1.0 / variation**2, variation**2)
        return Block(line)


class _SlowDrift(Scenario):
    watches = goes_on = True
    usual = 0.0

    def bias_at(self, number: int) -> float:
        return self.bias + self.side * DAILY_DRIFT_FRACTION * number / self.day_blocks

    def block(self, number: int, state: RolloutState) -> Block:
        line = self.draw(state.weight)
        line[_CANDIDATE] *= (1.0 + self.bias_at(number)) / (1.0 + self.bias)
        return Block(line)


class _LatePositives(Scenario):
    """A fifth of the clicks on the candidate's rows comes half an hour after they were mature."""

    watches = True

    def __init__(self, traffic: Traffic, spec: Rollout, rng: np.random.Generator) -> None:
        super().__init__(traffic, spec, rng)
        self._late = max(1, LATE_MS // spec.analysis.block_ms)
        self._whole: dict[int, F64] = {}

    def block(self, number: int, state: RolloutState) -> Block:
        whole = self.draw(state.weight)
        self._whole[number] = whole
        line = whole.copy()
        line[_CLICKS] -= LATE_FRACTION * whole[selection.SERVED_CLICKS]
        old = self._whole.pop(number - self._late, None)
        return Block(line, None if old is None else (number - self._late, old))


class _RepeatedRows(Scenario):
    """Half of the rows come again in the block after."""

    watches = True

    def __init__(self, traffic: Traffic, spec: Rollout, rng: np.random.Generator) -> None:
        super().__init__(traffic, spec, rng)
        self._before: F64 | None = None

    def block(self, number: int, state: RolloutState) -> Block:
        fresh = self.draw(state.weight, self.traffic.block_rows // 2)
        before = fresh if self._before is None else self._before
        self._before = fresh.copy()
        line = fresh + before
        line[selection.VERSION] = 1
        line[selection.AUC_DELTA] /= 2
        return Block(line)


class _ManyVersions(Scenario):
    """A version every few minutes; each moves the mean score around the bias of all of them."""

    usual = 0.0

    def __init__(self, traffic: Traffic, spec: Rollout, rng: np.random.Generator) -> None:
        super().__init__(traffic, spec, rng)
        self._moves = [rng.normal(0.0, VERSION_DEVIATION)]

    def block(self, number: int, state: RolloutState) -> Block:
        if number and number % VERSION_BLOCKS == 0:
            self._moves.append(self.rng.normal(0.0, VERSION_DEVIATION))
        line = self.draw(state.weight)
        serves, newest = self._moves[state.candidate_version - 1], self._moves[-1]
        line[_CANDIDATE] *= 1.0 + serves
        line[selection.VERSION] = state.candidate_version
        if len(self._moves) == state.candidate_version:
            return Block(line)
        return Block(line, versions=(NewVersion(len(self._moves), (1.0 + newest) / (1.0 + serves) - 1.0),))


class _LearnsFromBoth(Scenario):
    """A shop whose arms learn from what both of them show; the candidate tells items apart that stable cannot."""

    def __init__(self, traffic: Traffic, spec: Rollout, rng: np.random.Generator) -> None:
        super().__init__(traffic, spec, rng)
        self._trials = Trials(rng)

    def block(self, number: int, state: RolloutState) -> Block:
        share = state.weight / 100 * (1.0 - self.spec.holdout)
        shown = self._trials.block(self.traffic.block_rows // SHOWN_ROWS, share)
        served, clicks = np.repeat(shown.by_candidate, SHOWN_ROWS), shown.clicks.ravel()
        stable, candidate = shown.stable.ravel(), shown.candidate.ravel()
        line = np.zeros(selection.COLUMNS)
        line[[selection.ROWS, selection.EXPOSED]] = len(clicks)
        line[selection.CLICKS], line[selection.SERVED_CLICKS] = clicks.sum(), clicks[served].sum()
        line[selection.STABLE], line[selection.SERVED_STABLE] = stable.sum(), stable[served].sum()
        line[selection.CANDIDATE], line[selection.SERVED] = candidate.sum(), candidate[served].sum()
        line[selection.SERVED_ROWS], line[selection.VERSION] = served.sum(), 1
        line[selection.LOSS_DELTA] = float((row_logloss(clicks, candidate) - row_logloss(clicks, stable)).sum())
        line[selection.AUC_DELTA] = (
            auc(clicks, candidate) - auc(clicks, stable) if 0 < clicks.sum() < len(clicks) else np.nan
        )
        return Block(line)

    def effects(self) -> dict[str, float]:
        return self._trials.effects()


_KINDS: dict[str, type[Scenario]] = {
    "good": Scenario,
    "biased": _Biased,
    "worse_auc": _WorseAuc,
    "turns_bad": _TurnsBad,
    "label_outage": _LabelOutage,
    "low_traffic": _LowTraffic,
    "base_rate_jump": _BaseRateJump,
    "heavy_user": _HeavyUser,
    "earns_nothing": _EarnsNothing,
    "ratio_mismatch": _RatioMismatch,
    "busy_key": _BusyKey,
    "teacher_off": _TeacherOff,
    "bad_version": _BadVersion,
    "stable_jumps": _StableJumps,
    "both_slow": _BothSlow,
    "day_night": _DayNight,
    "day_night_both": _DayNightBoth,
    "dependent": _Dependent,
    "rare_clicks": _RareClicks,
    "clustered_clicks": _ClusteredClicks,
    "slow_drift": _SlowDrift,
    "late_positives": _LatePositives,
    "repeated_rows": _RepeatedRows,
    "many_versions": _ManyVersions,
    "learns_from_both": _LearnsFromBoth,
}
SCENARIOS = tuple(_KINDS)


def scenario_of(traffic: Traffic, spec: Rollout, rng: np.random.Generator) -> Scenario:
    """The scenario that the settings name, for one run."""
    return _KINDS[traffic.scenario](traffic, spec, rng)

"""Guards that need no labels: what the lanes count and both arms' scores, judged since the step was entered.

Both arms run on the same machines at the same time, so the candidate answers for what it does worse than stable: a limit
that both are over is a fault of serving, which holds the rollout and calls an operator, and is none of the candidate's.
`reconcile` asks these guards before it looks at the labels, since such a breach cannot wait for those.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Self

from serving.rollout.observed import ArmCounters, Observed
from serving.rollout.spec import Guards, Rollout
from serving.rollout.state import RolloutState
from serving.rollout.sums.blocks import BlockTable
from serving.rollout.sums.evidence import Verdict, fraction_above, fraction_worse
from serving.rollout.sums.selection import CANDIDATE, ROWS, STABLE
from serving.rollout.sums.view import EvidenceView

__all__ = ["Finding", "PastScores", "counters", "judge_without_labels"]

_LEAST_SCORED_ROWS = 500
_LEAST_REQUESTS = 20
_LEAST_TIMED_REQUESTS = 100
"""Fewest requests of which the slowest hundredth means something, where there is nothing to compare it with."""
_LEAST_UNSORTED_REQUESTS = 1000
_LEAST_COMPARED_REQUESTS = 100
"""Fewest requests of stable that the candidate is compared with; with fewer the limit alone counts."""
_WORSE_ERROR_FRACTION = 0.001
"""Chance that equal arms are ever taken for unequal during one stay, for each guard."""
_WINDOW_MS = 60_000
_SLOW_FRACTION = 0.01


@dataclass(frozen=True, slots=True)
class Finding:
    """What a guard found. `breached`: the candidate is shown to be at fault; else the rollout holds, and where `alarm` is set an
    operator is called."""

    guard: str
    seen: str
    breached: bool
    alarm: bool = True


@dataclass(frozen=True, slots=True)
class PastScores:
    """Scores of both arms on the mature rows of this attempt, which those of the last seconds are held against.

    Args:
        ratio: sum of the candidate's scores over the sum of stable's.
        candidate, stable: mean score per row of the breach window; None where nothing is known of them.
    """

    ratio: float
    candidate: float | None = None
    stable: float | None = None

    @classmethod
    def of(cls, table: BlockTable, window_s: float) -> Self | None:
        """Of a table of blocks; None where it has too few mature rows yet."""
        view = EvidenceView(table)
        rows = view.all()
        if rows.total(ROWS) < _LEAST_SCORED_ROWS or rows.total(STABLE) <= 0:
            return None
        recent = view.since((table.newest_ms or 0) - window_s * 1000)
        recent = recent if recent.total(ROWS) >= _LEAST_SCORED_ROWS else rows
        ratio = rows.total(CANDIDATE) / rows.total(STABLE)
        return cls(ratio, *(recent.total(arm) / recent.total(ROWS) for arm in (CANDIDATE, STABLE)))


def judge_without_labels(
    spec: Rollout, state: RolloutState, observed: Observed, now_ms: int, past: Callable[[], PastScores | None]
) -> list[Finding]:
    """What guards find in reports of after the entry of the step: breaches, and what holds the rollout.

    Args:
        past: called where both arms' scores are judged.
    """
    return list(_findings(spec, state, observed, now_ms, past))


def counters(observed: Observed) -> dict[str, Any]:
    """What was observed, for the audit."""
    figures = asdict(observed)
    del figures["versions"], figures["stable_versions"], figures["killed"]
    return figures


def _findings(
    spec: Rollout, state: RolloutState, observed: Observed, now_ms: int, past: Callable[[], PastScores | None]
) -> Iterator[Finding]:
    scored_ms = observed.since_ms if observed.scored_since_ms is None else observed.scored_since_ms
    if scored_ms >= state.judged_from_ms and spec.guards.score_ratio is not None:
        yield from _scores(spec.guards.score_ratio, observed, past)
    if observed.since_ms < state.judged_from_ms:
        return
    # The k-th minute of a stay spends a fraction 1 / (k (k + 1)) of the error.
    k = 1 + max(0, now_ms - state.judged_from_ms) // _WINDOW_MS
    for guard in _limits(spec.guards):
        error = (1.0 - spec.analysis.confidence) / 2
        if state.weight > 0:
            yield from guard.judge(observed, error, _WORSE_ERROR_FRACTION / (k * (k + 1)), spec.guards.absolute)
        # A comparison with default rows proves nothing, whoever scored with them.
        for arm, what in ((observed.stable, "that stable answered"), (observed.shadow, "that the shadow lane scored")):
            if guard.name == "degraded_max" and guard.over(arm, error, guard.least):
                yield Finding(guard.name, f"{guard.seen(arm)} {what}", breached=False)


def _scores(
    bounds: tuple[float, float], observed: Observed, past_scores: Callable[[], PastScores | None]
) -> Iterator[Finding]:
    """The ratio of both arms' scores, against that over the mature rows; and stable's own scores against its recent ones."""
    if observed.scored_rows < _LEAST_SCORED_ROWS or observed.predicted_stable <= 0:
        return
    ratio, past = observed.predicted_candidate / observed.predicted_stable, past_scores()
    if past is None or past.ratio <= 0:
        if not bounds[0] <= ratio <= bounds[1]:
            seen = f"score_ratio {ratio:.3f} is outside {list(bounds)}, and no mature rows say yet what it should be"
            yield Finding("score_ratio", seen, breached=False, alarm=False)
        return
    moved = ratio / past.ratio
    seen = f"score_ratio {ratio:.3f} is {moved:.3f} of that over all mature rows, outside {list(bounds)}"
    count = observed.scored_weight or observed.scored_rows
    by_stable = 0.0 if not past.stable else observed.predicted_stable / count / past.stable
    by_candidate = 0.0 if not past.candidate else observed.predicted_candidate / count / past.candidate
    outside = not bounds[0] <= moved <= bounds[1]
    if by_stable > 0 and by_candidate > 0:
        stable_moved = abs(math.log(by_stable)) > abs(math.log(by_candidate))
        # What moves both arms is the traffic. Stable alone is judged where the candidate did not go along half of the way.
        alone = not math.sqrt(bounds[0]) <= moved <= math.sqrt(bounds[1])
        if stable_moved and alone and (outside or not bounds[0] <= by_stable <= bounds[1]):
            seen = f"stable's mean score is {by_stable:.3f} of its recent one, and the candidate's {by_candidate:.3f}"
            yield Finding("stable_scores", f"{seen}: stable has jumped", breached=False)
            return
    if outside:
        # What the breach window has seen for long is no turn of the candidate's: stable may have jumped before it.
        recent = past.candidate / past.stable if past.candidate and past.stable else past.ratio
        turned = not bounds[0] <= ratio / recent <= bounds[1]
        yield Finding("score_ratio", seen if turned else f"{seen}, and the breach window is there too", breached=turned)


@dataclass(frozen=True, slots=True)
class _Limit:
    """A limit on a fraction of the requests of an arm."""

    name: str
    most: float
    hits: Callable[[ArmCounters], int | None]
    least: int = _LEAST_REQUESTS
    p99_ms: float | None = None
    """Where the fraction is that of slow requests: their limit."""

    def judge(self, observed: Observed, error: float, worse_error: float, absolute: bool) -> Iterator[Finding]:
        candidate, stable = observed.candidate, observed.stable
        mine, theirs = self.hits(candidate), self.hits(stable)
        alone = absolute or stable.requests < _LEAST_COMPARED_REQUESTS or mine is None or theirs is None
        if not self.over(candidate, error, self.least if alone else _LEAST_REQUESTS):
            return
        if alone:
            yield Finding(self.name, self.seen(candidate), breached=True)
            return
        assert mine is not None
        assert theirs is not None
        worse = fraction_worse(mine, candidate.requests, theirs, stable.requests, worse_error)
        both = self.over(stable, error, _LEAST_REQUESTS)
        said = "stable" if worse else "stable is no better" if both else "not shown to be worse than stable"
        seen = f"{self.seen(candidate)}; {said}: {self.seen(stable, limit=False)}"
        yield Finding(self.name, seen, breached=worse, alarm=both)

    def over(self, arm: ArmCounters, error: float, least: int) -> bool:
        """Whether an arm with at least so many requests is shown to be over the limit."""
        hits = self.hits(arm)
        if self.p99_ms is not None:
            if arm.p99_ms is None or arm.p99_ms <= self.p99_ms:
                return False
            if hits is None:
                return arm.requests >= _LEAST_UNSORTED_REQUESTS
        return arm.requests >= least and fraction_above(hits or 0, arm.requests, self.most, error) is Verdict.BREACHED

    def seen(self, arm: ArmCounters, *, limit: bool = True) -> str:
        """The figure of an arm in words."""
        name = f"{self.name}: " if limit else ""
        if self.p99_ms is not None:
            figure = "nothing" if arm.p99_ms is None else f"{arm.p99_ms:.1f} ms"
            return f"{name}{figure} over {arm.requests} requests"
        at_most = f", at most {self.most:g}" if limit else ""
        return f"{name}{self.hits(arm)} of {arm.requests} requests{at_most}"


def _limits(guards: Guards) -> Iterator[_Limit]:
    if guards.error_rate_max is not None:
        yield _Limit("error_rate_max", guards.error_rate_max, lambda arm: arm.errors)
    if guards.deadline_miss_max is not None:
        yield _Limit("deadline_miss_max", guards.deadline_miss_max, lambda arm: arm.deadline_misses)
    if guards.degraded_max is not None:
        yield _Limit("degraded_max", guards.degraded_max, lambda arm: arm.degraded)
    if guards.p99_ms_max is not None:
        slow = _SLOW_FRACTION
        yield _Limit("p99_ms_max", slow, lambda arm: arm.slow, _LEAST_TIMED_REQUESTS, guards.p99_ms_max)

"""What the processes report of an endpoint, without labels: counters of both arms, sums of their scores, versions.

`serving.wiring.observe` fills it in once per pass. Read next: `guards` judges it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from serving.rollout.label_path import LabelPath

__all__ = ["ArmCounters", "NewVersion", "Observed"]


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A whole version of an arm's bundle that is newer than the one that serves.

    Args:
        shift: relative, of the mean score on the gate's rows against what serves; None: not known.
        passed: it has a report of the gate, which it passed.
        publisher: who published it, "" where the manifest does not say.
    """

    number: int
    shift: float | None = None
    passed: bool = True
    publisher: str = ""


@dataclass(frozen=True, slots=True)
class ArmCounters:
    """Requests that one arm had to answer within the window.

    Args:
        requests: all of them; errors, deadline_misses: those that got no answer, by our fault or too late.
        degraded: answers for which a tier could not give rows, so that default rows stand in for them.
        slow: how many took longer than the guard's p99_ms_max, None without a histogram.
        p99_ms: their 99th percentile, None without requests.
    """

    requests: int = 0
    errors: int = 0
    deadline_misses: int = 0
    degraded: int = 0
    slow: int | None = None
    p99_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Observed:
    """Reports of the processes over a recent window; no labels.

    Args:
        since_ms: Unix milliseconds at which the window begins; figures from before the present step was entered are not
            judged.
        requests, errors, deadline_misses, slow, p99_ms: of the candidate as answering arm, see `ArmCounters`.
        scored_rows, predicted_candidate, predicted_stable: rows that both arms scored and the sums of their scores.
        shadow_coverage: fraction of recent predictions that the shadow lane scored, None where unknown.
        versions: of the candidate's bundle, rising; those not newer than the present one are skipped.
        killed: reason of an engaged kill switch, None without.
        degraded: of the candidate, see `ArmCounters`.
        stable: the same counters of stable, of the same time.
        scored_since_ms: where the window of the scores begins; None: as `since_ms`.
        scored_weight: rows of the traffic that the scored rows stand for, where not all are recorded; 0: as many.
        stable_version: that stable answers with, 0 where no lane tells; stable_versions: newer ones of its bundle, where it
            is not pinned.
        shadow: predictions that the shadow lane scored in the window of the scores, and the degraded ones of them.
        ill: why serving itself is ill, so that no step is entered; "": it is not.
        labels: what came of exposures and labels.
    """

    since_ms: int = 0
    requests: int = 0
    errors: int = 0
    deadline_misses: int = 0
    slow: int | None = None
    p99_ms: float | None = None
    scored_rows: int = 0
    predicted_candidate: float = 0.0
    predicted_stable: float = 0.0
    shadow_coverage: float | None = None
    versions: tuple[NewVersion, ...] = ()
    killed: str | None = None
    degraded: int = 0
    stable: ArmCounters = ArmCounters()
    scored_since_ms: int | None = None
    scored_weight: float = 0.0
    stable_version: int = 0
    stable_versions: tuple[NewVersion, ...] = ()
    shadow: ArmCounters = ArmCounters()
    ill: str = ""
    labels: LabelPath = field(default_factory=LabelPath)

    @property
    def candidate(self) -> ArmCounters:
        """The candidate's counters."""
        return ArmCounters(self.requests, self.errors, self.deadline_misses, self.degraded, self.slow, self.p99_ms)

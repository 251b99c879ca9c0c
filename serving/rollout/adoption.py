"""Adoption of new versions while a rollout runs: which one an arm may take, and what waits and why.

A weight is earned by a model, so a version that comes later has to prove first that it is the same one: it passed the gate,
and on the gate's rows its mean score is within a bound of that of what serves. The version that is the newest when a rollout
starts is judged by the rollout from its first step on, and needs no report.
"""

from __future__ import annotations

from collections.abc import Sequence

from serving.rollout.observed import NewVersion
from serving.rollout.state import Phase, RolloutState

__all__ = ["SHIFT_BOUND_FRACTION", "adoptable", "moves", "newest_passed", "waiting"]

SHIFT_BOUND_FRACTION = 0.10
"""A version that moves the mean score of what serves by more than this scores like another model."""
STABLE_SHIFT_FRACTION = 0.05
"""As SHIFT_BOUND_FRACTION, of stable, which has no steps to try a version at."""


def moves(version: NewVersion, most: float = SHIFT_BOUND_FRACTION) -> bool:
    """Whether a version scores like another model than the one that serves, or is not known to score like it."""
    return version.shift is None or abs(version.shift) > most


def newest_passed(state: RolloutState, versions: Sequence[NewVersion]) -> NewVersion | None:
    """The version that the candidate adopts now; a pause freezes versions."""
    if state.phase == Phase.PAUSED:
        return None
    passed = [each for each in versions if each.passed and each.number > state.newest_known]
    return max(passed, key=lambda each: each.number, default=None)


def adoptable(state: RolloutState, versions: Sequence[NewVersion]) -> NewVersion | None:
    """The version that an unpinned stable adopts now: it has all traffic that the candidate has not, and no steps."""
    paused = state.phase == Phase.PAUSED
    fit = [each for each in versions if each.passed and not moves(each, STABLE_SHIFT_FRACTION)]
    return None if paused else max(fit, key=lambda each: each.number, default=None)


def waiting(state: RolloutState, candidate: Sequence[NewVersion], stable: Sequence[NewVersion]) -> str:
    """What waits of both arms' newer versions, and why; empty: nothing does."""
    told = []
    newest = max(candidate, key=lambda each: each.number, default=None)
    if newest is not None and newest.number > state.newest_known:
        if not newest.passed:
            told.append(
                f"version {newest.number}{_by(newest)} waits: it has no passed gate report, `baton rollout start --version` anew takes it"
            )
        elif state.phase == Phase.PAUSED:
            told.append(f"version {newest.number}{_by(newest)} waits for the end of the pause")
    newest = max(stable, key=lambda each: each.number, default=None)
    if newest is not None and (why := _why_not(state, newest)):
        told.append(f"version {newest.number} of stable{_by(newest)} waits: {why}")
    return "; ".join(told)


def _why_not(state: RolloutState, version: NewVersion) -> str:
    if not version.passed:
        return "it has no passed gate report"
    if version.shift is None:
        return "how it moves the mean score of what serves is not known"
    if moves(version, STABLE_SHIFT_FRACTION):
        return f"it moves the mean score of what serves by {version.shift:+.4f}, at most {STABLE_SHIFT_FRACTION:g}"
    return "the rollout is paused" if state.phase == Phase.PAUSED else ""


def _by(version: NewVersion) -> str:
    return f" by {version.publisher}" if version.publisher else ""

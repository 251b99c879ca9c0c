"""Newer versions of an arm's bundle: whole ones that may serve, whether they passed the gate, and how they move the mean score.

A manifest tells the shift against the version that served when it was published. What serves an endpoint may be older, so the
shifts along the way are put together; versions that retention has removed since are remembered.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.bundle.bundle import Manifest
from pipeline.bundle.versions import Repository
from pipeline.errors import BatonError
from pipeline.schema import Schema
from serving.rollout.observed import NewVersion
from serving.rollout.routing import ArmSpec

__all__ = ["NewVersions"]

_MOST_VERSIONS_COUNT = 4096


@dataclass(frozen=True, slots=True)
class _Facts:
    """What a manifest tells. `before`: version that the shift is measured against, 0 where it names none."""

    servable: bool
    passed: bool
    publisher: str
    before: int
    shift: float | None
    schema: Schema


class NewVersions:
    """Reader of the repository for rollouts; for one thread.

    Args:
        verdict: why a version, by bundle and number, must not serve; "": nothing is known against it; None: not known yet.
    """

    def __init__(self, repository: Repository, verdict: Callable[[str, str], str | None]) -> None:
        self._repository, self._verdict = repository, verdict
        self._facts: dict[tuple[str, int], _Facts] = {}
        self._fits: dict[tuple[str, int, ArmSpec], bool] = {}

    def after(self, bundle: str, serving: int, known: int, beside: ArmSpec | None) -> tuple[NewVersion, ...]:
        """Versions that are newer than `known` and may serve, rising.

        Args:
            serving: the version that their shifts are against.
            beside: the endpoint's other arm, whose inputs they must go with; None or answered elsewhere: any.
        """
        numbers = [int(version) for version in self._repository.versions(bundle)]
        other = None if beside is None or beside.observed else beside
        found = []
        for number in numbers:
            try:
                facts = self._read(bundle, number)
                if number <= known or not facts.servable or (other and not self._goes_with(bundle, number, other)):
                    continue
            except BatonError:
                continue  # it may be repaired
            if self._verdict(bundle, str(number)) == "":
                shift = self._shift(bundle, number, serving, numbers)
                found.append(NewVersion(number, shift, facts.passed, facts.publisher))
        return tuple(found)

    def _read(self, bundle: str, number: int) -> _Facts:
        facts = self._facts.get((bundle, number))
        if facts is None:
            facts = _facts(self._repository.manifest(bundle, str(number)))
            while len(self._facts) >= _MOST_VERSIONS_COUNT:
                del self._facts[next(iter(self._facts))]
            self._facts[bundle, number] = facts
        return facts

    def _goes_with(self, bundle: str, number: int, other: ArmSpec) -> bool:
        """Whether one request can serve a version and the other arm."""
        pair = bundle, number, other
        if pair not in self._fits:
            beside = self._repository.open(other.bundle, str(other.version or "")).manifest.model_schema
            while len(self._fits) >= _MOST_VERSIONS_COUNT:
                del self._fits[next(iter(self._fits))]
            self._fits[pair] = self._read(bundle, number).schema.inputs_match(beside) is None
        return self._fits[pair]

    def _shift(self, bundle: str, number: int, serving: int, numbers: list[int]) -> float | None:
        """Relative shift of the mean score between two versions, over the last one that both come from."""
        mine, theirs = (self._levels(bundle, each, numbers) for each in (number, serving))
        common = max(mine.keys() & theirs.keys(), default=None)
        return None if common is None or theirs[common] <= 0 else mine[common] / theirs[common] - 1.0

    def _levels(self, bundle: str, number: int, numbers: list[int]) -> dict[int, float]:
        """Mean score of a version as a multiple of that of each version that it comes from."""
        level, levels = 1.0, {number: 1.0}
        while (facts := self._known(bundle, number)) is not None and facts.shift is not None:
            number = facts.before or self._passed_below(bundle, number, numbers)
            if not number or number in levels:
                break
            level *= 1.0 + facts.shift
            levels[number] = level
        return levels

    def _known(self, bundle: str, number: int) -> _Facts | None:
        try:
            return self._read(bundle, number)
        except BatonError:
            return None

    def _passed_below(self, bundle: str, number: int, numbers: list[int]) -> int:
        """The version that served when one was published whose manifest does not say it, 0 where there was none."""
        for below in sorted((each for each in numbers if each < number), reverse=True):
            facts = self._known(bundle, below)
            if facts is not None and facts.servable:
                return below
        return 0


def _facts(manifest: Manifest) -> _Facts:
    shift = manifest.metrics.get("score_shift")
    return _Facts(
        servable=manifest.servable,
        passed=manifest.gate is not None and manifest.gate.passed,
        publisher=manifest.publisher,
        before=int(manifest.shift_from or manifest.parent or 0),
        shift=float(shift) if shift is not None and math.isfinite(shift) and shift > -1 else None,
        schema=manifest.model_schema,
    )

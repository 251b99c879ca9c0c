"""Facts of an installation's health, each a line: what it is about, whether it is well, and what to do where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Fact", "Health", "Level"]


class Level(StrEnum):
    """How a fact is. `attention`: a person should look at it; `unknown`: it cannot be told now."""

    OK = "ok"
    ATTENTION = "attention"
    UNKNOWN = "unknown"


EXIT_CODES = {Level.OK: 0, Level.ATTENTION: 1, Level.UNKNOWN: 2}


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact.

    Args:
        about: what it is of: processes, state, stores, log, labels, bias, rollout, approval, freeze, worker, endpoint.
        name: of the endpoint, process or store, "" of the whole installation.
        says: it in words. do: the command that helps, or "".
    """

    about: str
    name: str
    level: Level
    says: str
    do: str = ""

    def __str__(self) -> str:
        """The line that people read.

        >>> print(Fact("freeze", "", Level.OK, "no freeze"))
        ok         freeze: no freeze
        """
        what = f"{self.about} {self.name}".rstrip()
        return f"{self.level:<10} {what}: {self.says}" + (f"  [{self.do}]" if self.do else "")


@dataclass(frozen=True, slots=True)
class Health:
    """All facts at a time, Unix milliseconds. `source`: where they are from."""

    time_ms: int
    source: str
    facts: Sequence[Fact]

    @property
    def level(self) -> Level:
        """Of the whole: `attention` before `unknown` before `ok`."""
        levels = {fact.level for fact in self.facts}
        return next((level for level in (Level.ATTENTION, Level.UNKNOWN) if level in levels), Level.OK)

    @property
    def exit_code(self) -> int:
        """0: all is well; 1: something needs a person; 2: it cannot be told."""
        return EXIT_CODES[self.level]

    def ordered(self) -> list[Fact]:
        """Facts that need a person first, then those that cannot be told."""
        order = (Level.ATTENTION, Level.UNKNOWN, Level.OK)
        return sorted(self.facts, key=lambda fact: order.index(fact.level))

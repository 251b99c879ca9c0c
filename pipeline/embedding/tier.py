"""What a tier of the embedding hierarchy is: it fills what is still open in a lookup, and may keep what others found.

A lookup is a few `Wanted`: ids of one width and the places where their rows go. The store passes them down the tiers in
their configured order; each fills what it holds and marks it, what no tier holds gets the default row of its table, and
then each tier is offered what the tiers below it found. It knows nothing of features, fields or models. Next stop:
`pipeline.embedding.hierarchy.store`, which drives tiers; `device`, `segment` and `redis` beside it are some.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import xxhash

__all__ = [
    "DEFAULT_STATUS",
    "PENDING_STATUS",
    "STALE_STATUS",
    "Fault",
    "Generation",
    "Group",
    "Tier",
    "TierSource",
    "Wanted",
    "WantedArrays",
    "is_open",
    "salt_of",
]

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

PENDING_STATUS = 0
"""Mark of an id that no tier has found yet. Tiers are 1, 2, ... from the top."""
DEFAULT_STATUS = 127
"""Mark of an id that no tier holds: its row is the default of its table."""
STALE_STATUS = 128
"""Bit beside a tier's mark: the row is in its place but older than it should be. Lower tiers go on looking for it, and
it is served only if none of them has it."""

Fault = Literal["late", "error", "open", "incomplete"]
"""Why a tier did not look at all that was open: past the deadline, failed, its circuit breaker is open, or the rows of
the generation are not all there yet."""


@dataclass(frozen=True, slots=True)
class Group:
    """All tables of one width.

    Attributes:
        width: d, numbers of a row.
        tables: names, sorted; an id's key is the id xor-ed with `salt_of(table)`.
        rows: of all these tables in the base together.
    """

    width: int
    tables: tuple[str, ...]
    rows: int


@dataclass(frozen=True, slots=True)
class Generation:
    """The base that a model version builds on. Versions on one base share their untouched rows, and so what a tier
    keeps of them.

    Attributes:
        bundle: its name.
        base: version of the base, decimal.
        version: the version itself; `base` where there are no deltas.
        groups: by width, rising; `Wanted.group` is an index into it.
        linear: whether every id has a weight.
    """

    bundle: str
    base: str
    version: str
    groups: tuple[Group, ...]
    linear: bool


WantedArrays = tuple[I64, I64, F32, I64, F32, U8]
"""keys, at, rows, linear_at, linear and found of a `Wanted`."""


class Wanted(NamedTuple):
    """Ids of one width group whose rows go into one array.

    A lookup has one per width group and destination. Ids may repeat, and several `Wanted` of a lookup may name the same
    id. All arrays are C-contiguous.

    Attributes:
        group: index into `Generation.groups`.
        width: d of the group.
        keys: int64 `[m]`, ids xor-ed with the salt of their table; any value is legal.
        at: int64 `[m]`, element of `rows` where an id's row begins: the row is `rows[at : at + width]`.
        rows: float32, flat, shared with the network's inputs; elements that no `at` covers are not the tier's.
        linear_at: int64 `[m]`, element of `linear` where an id's weight goes.
        linear: float32, flat; empty where the model has no weight per id, and then `linear_at` is not to be read.
        found: uint8 `[m]`: `PENDING_STATUS`, the mark of the tier that filled the row, or that mark with `STALE_STATUS`.
    """

    group: int
    width: int
    keys: I64
    at: I64
    rows: F32
    linear_at: I64
    linear: F32
    found: U8

    @property
    def arrays(self) -> WantedArrays:
        """`keys` to `found`, as compiled loops take them: a plain tuple reaches them a microsecond sooner than this one."""
        return self[2:]


def is_open(found: U8) -> npt.NDArray[np.bool_]:
    """Which ids a tier has still to look for, bool `[m]`: pending ones, and those with a stale row.

    >>> is_open(np.array([PENDING, 1, STALE | 1, 2], np.uint8)).tolist()
    [True, False, True, False]
    """
    answer: npt.NDArray[np.bool_] = (found == PENDING_STATUS) | (found >= STALE_STATUS)
    return answer


def salt_of(table: str) -> int:
    """Salt of a table, signed 64-bit: an id xor the salt is its key. All tables of one width share a tier, and one id may
    occur in several of them."""
    digest: int = xxhash.xxh3_64_intdigest(f"table:{table}".encode())
    return digest - (1 << 64) if digest >= 1 << 63 else digest


class Tier(Protocol):
    """One level, for one model version. Called from several threads at once.

    Attributes:
        name: `device`, `segment`, `redis`, as configured; in metrics and in reasons for degraded answers.
        shared_over_versions: whether the row of a key may change while the tier is in use, since versions on one base
            share it. What is kept of such a row has a bounded age.
    """

    @property
    def name(self) -> str: ...

    @property
    def shared_over_versions(self) -> bool: ...

    def find(self, wanted: Sequence[Wanted], mark: int, deadline: float) -> Fault | None:
        """Fill what is open (`is_open`) and held here: the row, the weight, and `found` with `mark`.

        A row that it marks is whole; one that stays pending may hold anything; a stale one it does not have stays as it
        is. It never raises for a failure outside the process.

        Args:
            wanted: of one lookup. Arrays may be written in place only as said.
            mark: this tier's place in the store, 1 to 126.
            deadline: monotonic seconds (`Clock.monotonic`) after which it must not wait any more; local tiers, which
                never wait, need not look.

        Returns:
            None when it looked for all that was open; else why not.
        """

    def offer(self, wanted: Sequence[Wanted], mark: int) -> None:
        """Keep what it likes of the rows that lower tiers found: those with `mark < found < DEFAULT`. Never waits."""

    def describe(self) -> Mapping[str, float | str]:
        """What it holds, for status files: `rows`, `bytes` and what else there is to tell, by name."""

    def close(self) -> None:
        """Let go of what it holds for this version; called once, after the last lookup."""


class TierSource(Protocol):
    """Opens a configured tier for model versions; one per process, so that versions may share what they hold."""

    @property
    def name(self) -> str: ...

    def open(self, generation: Generation) -> Tier:
        """The tier of one version.

        Raises:
            BundleError: the version's tables do not fit the tier.
        """

    def close(self) -> None:
        """End what it runs, save what is to be saved; once, after the last lookup."""

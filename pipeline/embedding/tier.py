"""Protocol of a tier of the embedding hierarchy, and the types that tiers exchange.

A lookup is a few `Wanted`: ids of one width and the places where their rows go. The store passes them down the tiers in
their configured order. Each tier fills what it holds and marks it; an id that no tier holds gets the default row of its
table; then each tier is offered what the tiers below it found. A tier knows nothing of features, fields or models. Next
stop: `pipeline.embedding.hierarchy.store`, which calls tiers; `device`, `segment` and `redis` are the tiers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import xxhash

from pipeline.arrays import F32, I64, U8, Mask

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


PENDING_STATUS = 0
"""Mark of an id that no tier has found yet. Tiers are 1, 2, ... from the top."""
DEFAULT_STATUS = 127
"""Mark of an id that no tier holds: its row is the default of its table."""
STALE_STATUS = 128
"""Bit beside a tier's mark: the row is filled in but older than allowed. Lower tiers still look for it, and it is served
only if none of them has it."""

Fault = Literal["late", "error", "open", "incomplete"]
"""Why a tier did not look up all open ids: the deadline passed, it failed, its circuit breaker is open, or the rows of
the generation are not complete yet."""


@dataclass(frozen=True, slots=True)
class Group:
    """All tables of one width.

    Attributes:
        width: d, numbers of a row.
        tables: names, sorted; an id's key is the id xor `salt_of(table)`.
        rows: number of rows of all these tables in the base.
    """

    width: int
    tables: tuple[str, ...]
    rows: int


@dataclass(frozen=True, slots=True)
class Generation:
    """Base of a model version. Versions on one base share the rows that no delta touched, and the tiers' copies of them.

    Attributes:
        bundle: its name.
        base: version of the base, decimal.
        version: the version itself; `base` where there are no deltas.
        groups: by width, ascending; `Wanted.group` is an index into it.
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
    """Ids of one width group, and where their rows go.

    A lookup has one per width group and destination. Ids may repeat, within one `Wanted` and between several. All arrays
    are C-contiguous.

    Attributes:
        group: index into `Generation.groups`.
        width: d of the group.
        keys: int64 `[m]`, ids xor the salt of their table; any value is legal.
        at: int64 `[m]`, element of `rows` where an id's row begins: the row is `rows[at : at + width]`.
        rows: float32, flat, shared with the network's inputs; a tier leaves elements that no `at` covers unchanged.
        linear_at: int64 `[m]`, element of `linear` where an id's weight goes.
        linear: float32, flat; empty where the model has no weight per id; then `linear_at` has no meaning.
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
        """`keys` to `found` as a plain tuple, which compiled loops take a microsecond faster than a named one."""
        return self[2:]


def is_open(found: U8) -> Mask:
    """Mask of the ids that a tier looks up, bool `[m]`: pending ones, and those with a stale row.

    >>> is_open(np.array([PENDING_STATUS, 1, STALE_STATUS | 1, 2], np.uint8)).tolist()
    [True, False, True, False]
    """
    mask: Mask = (found == PENDING_STATUS) | (found >= STALE_STATUS)
    return mask


def salt_of(table: str) -> int:
    """Salt of a table, signed 64-bit: an id xor the salt is its key. All tables of one width share a tier, and one id may
    occur in several of them."""
    digest: int = xxhash.xxh3_64_intdigest(f"table:{table}".encode())
    return digest - (1 << 64) if digest >= 1 << 63 else digest


class Tier(Protocol):
    """One level of the hierarchy, for one model version. Called from several threads at once.

    Attributes:
        name: `device`, `segment` or `redis`, as configured; used in metrics and in reasons for degraded answers.
    """

    @property
    def name(self) -> str: ...

    def find(self, wanted: Sequence[Wanted], mark: int, deadline: float) -> Fault | None:
        """Fill the ids that are open (`is_open`) and held here: the row, the weight, and `found` with `mark`.

        A marked row is complete; the row of an id that stays pending has no defined content; a stale row that this tier
        does not have stays unchanged. A failure outside the process never raises.

        Args:
            wanted: of one lookup. Only the elements named above are written.
            mark: this tier's place in the store, 1 to 126.
            deadline: monotonic seconds (`Clock.monotonic`) after which the tier must not wait; local tiers never wait and
                may ignore it.

        Returns:
            None when all open ids were looked up; else the reason.
        """

    def offer(self, wanted: Sequence[Wanted], mark: int) -> None:
        """Take rows that lower tiers found (`mark < found < DEFAULT_STATUS`); the tier chooses which. Never waits."""

    def describe(self) -> Mapping[str, float | str]:
        """Figures for status files by name: `rows`, `bytes` and what is specific to the tier."""

    def close(self) -> None:
        """Release what it holds for this version; called once, after the last lookup."""


class TierSource(Protocol):
    """Opens a configured tier for model versions. One per process, so that versions can share what they hold."""

    @property
    def name(self) -> str: ...

    def open(self, generation: Generation) -> Tier:
        """The tier of one version.

        Raises:
            BundleError: the version's tables do not fit the tier.
        """

    def close(self) -> None:
        """Stop its threads and save its state; called once, after the last lookup."""

"""Cap on the rows of one key: a key that has more than its share of an hour's rows counts for no more than that share.

What one user likes is not what the model got wrong, and the rows of a busy one come in long runs: evidence of blocks takes
them for many independent ones. So of a key above the cap only some predictions are counted, chosen by the hash of their id,
and the rows of the others are counted as left out.

The share of a key is known when its hour is over, but rows are counted as they come, labels are taken back, and any order
must give the same sums. So a key's rows of one hour are held to what is known of the hours that were over an hour before it
began: the largest share that the key had in one of them, within a day. Whether a prediction counts follows from its time,
its key and its id alone, weights are 0 and 1, and no sum is ever corrected. The price: a key is counted in full in the first
two to three hours of its being busy; one that comes back within a day is capped from its first row on.

Keys are told apart by groups of their hash, so memory does not grow with them. This file knows hashes; `analysis` asks it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from pipeline.arrays import I64, Array
from serving.rollout.sums.blocks import REVISABLE_BLOCKS

__all__ = ["GROUPS", "MUCH_LEFT_OUT_FRACTION", "KeyCap"]

GROUPS = 4096
"""Groups of keys. One holds more than the cap only where a key of it does: on average each has 1/40 of the default cap."""
MUCH_LEFT_OUT_FRACTION = 0.2
"""Fraction of rows left out from which on a rollout says so."""
_FEW_KEYS = 20.0
"""Where keys are few, a key may have so many times the rows of the average one."""
_HOUR_MS = 3_600_000
_DAY_HOURS = 24
_REMEMBERED_HOURS = 8 * 24
"""Hours whose busy keys are kept for late labels."""
_ALL_UNITS = 1 << 32


class KeyCap:
    """Predictions that count as evidence, and those that are left out since their key has too many rows.

    Args:
        share: of an hour's rows that one key may have, above 0.
        block_ms: length of a block.

    An hour is a whole number of blocks, and no shorter than those that late labels still change (`REVISABLE_BLOCKS`): rows
    that come that late change nothing.
    """

    def __init__(self, share: float, block_ms: int) -> None:
        self._share = share
        self._hour = max(-(-_HOUR_MS // block_ms), REVISABLE_BLOCKS)
        self._newest = 0
        self._rows: dict[int, I64] = {}
        self._busy: dict[int, dict[int, int]] = {}
        self._kept: dict[int, dict[int, int]] = {}
        self._settled = False

    def count(self, block: int, routing_hash: int, rows: int) -> None:
        """Count rows of a key, 0 for none, that had not been counted. They have to be counted before `leaves_out` is asked."""
        counted = self._counted(block)
        if counted is not None:
            counted[routing_hash % GROUPS if routing_hash else GROUPS] += rows

    def count_groups(self, block: int, rows: I64) -> None:
        """As `count`, of many keys: rows of each group of them, int64 `[GROUPS]`."""
        counted = self._counted(block)
        if counted is not None:
            counted[:GROUPS] += rows

    def leaves_out(self, block: int, routing_hash: int, ticket: int) -> bool:
        """Whether a prediction is left out. `ticket`: 64-bit hash of its id."""
        if not self._busy or not routing_hash:
            return False
        hour = block // self._hour
        if hour < self._newest - _REMEMBERED_HOURS + _DAY_HOURS:
            return True  # whether it was counted is not known any more, so nothing of it is taken back
        kept = self._kept.get(hour)
        if kept is None:
            kept = self._kept[hour] = {}
            for before in range(hour - _DAY_HOURS - 1, hour - 1):
                for group, fraction in self._busy.get(before, {}).items():
                    kept[group] = min(kept.get(group, _ALL_UNITS), fraction)
        return (ticket >> 32) >= kept.get(routing_hash % GROUPS, _ALL_UNITS)

    def _counted(self, block: int) -> I64 | None:
        """Rows by group of the hour of a block; None: no row changes them any more."""
        hour = block // self._hour
        if hour > self._newest:
            self._newest = hour
            for over in [each for each in self._rows if each <= hour - 2]:
                self._close(over)
        if self._settled or hour <= self._newest - 2:
            return None
        if hour not in self._rows:
            self._rows[hour] = np.zeros(GROUPS + 1, np.int64)
        return self._rows[hour]

    def save(self) -> dict[str, Array]:
        """All of it, as arrays for `restore`."""
        hours = sorted(self._rows)
        counted = np.array([self._rows[hour] for hour in hours], np.int64).reshape(len(hours), GROUPS + 1)
        return {**self.save_busy(), "cap_hours": np.array([self._newest, *hours], np.int64), "cap_rows": counted}

    def save_busy(self) -> dict[str, Array]:
        """The busy keys of all hours, as an array for `restore_busy`."""
        busy = [(hour, *each) for hour, groups in sorted(self._busy.items()) for each in sorted(groups.items())]
        return {"cap_busy": np.array(busy, np.int64).reshape(len(busy), 3)}

    def restore(self, arrays: Mapping[str, Array]) -> None:
        """Continue from `save`."""
        self._read(arrays["cap_busy"])
        self._newest, *hours = arrays["cap_hours"].tolist()
        self._rows = {hour: counted.copy() for hour, counted in zip(hours, arrays["cap_rows"], strict=True)}

    def restore_busy(self, arrays: Mapping[str, Array]) -> None:
        """Leave out what was left out when `save_busy` was called, to read the same rows again. No key is found to be busy."""
        self._read(arrays["cap_busy"])
        self._settled = True

    def _read(self, busy: Array) -> None:
        self._busy, self._kept = {}, {}
        for hour, group, fraction in busy.tolist():
            self._busy.setdefault(hour, {})[group] = fraction

    def _close(self, hour: int) -> None:
        """Find the busy keys of an hour that no row changes any more."""
        counted = self._rows.pop(hour)
        groups = counted[:GROUPS]
        used = int(np.count_nonzero(groups))
        # Several keys share a group: the number of keys that fills so many groups on average.
        keys = -GROUPS * math.log(1.0 - used / GROUPS) if used < GROUPS else math.inf
        most = float(counted.sum()) * max(self._share, _FEW_KEYS / max(keys, 1.0))
        busy = {int(group): int(_ALL_UNITS * most / int(groups[group])) for group in np.flatnonzero(groups > most)}
        if busy:
            self._busy[hour] = busy
        for each in [each for each in self._busy if each < hour - _REMEMBERED_HOURS]:
            del self._busy[each]
        self._kept = {each: kept for each, kept in self._kept.items() if each > hour - _REMEMBERED_HOURS}

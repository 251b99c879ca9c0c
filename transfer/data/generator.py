"""Generator of click logs with drift and known click probabilities.

Items (and, more slowly, users) leave and new ids take their places; tastes turn; the base rate swings. A model that keeps
learning follows; a constant one gets worse. Rows are made in blocks that depend on the seed and the block's number alone,
so any range can be read at any time, in chunks of any size, with memory bounded by the chunk. Users and items are defined
in `world.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipeline.arrays import F64, I64
from pipeline.errors import InvalidInput
from pipeline.features import Rows
from transfer.data.log import Log, LogChunk
from transfer.data.world import AHEAD_HOURS, DEVICES, SCHEMA, World

__all__ = ["GeneratedLog"]

START_MS = 1_735_689_600_000  # 1 January 2025, 00:00 UTC
BLOCK_ROWS, BLOCK_S = 16_384, 5.0  # nothing changes within a block
HOUR_MS = 3_600_000
_BLOCK_SEED = 100  # keeps the random streams of blocks apart from those of the world


class GeneratedLog(Log):
    """A log of `rows` rows in requests of `rows_per_request` distinct candidates, as `transfer.data.log.Log` describes.

    Args:
        rows: of the whole log.
        seed: the same seed and arguments give the same rows.
        rows_per_request: candidates of a request; the last request may have fewer.
        rows_per_second: of the log's own time; with it, how much changes between two rows.
        base_rate: mean click probability at the start.
        drift: speed of all changes; 1 changes the base rate by a few percent in minutes, 0 nothing.
        abrupt_at: from this fraction of the rows on, tastes are turned by one radian and log-odds raised by 0.3.
        users: how many there are at a time.
        items: how many there are at a time.

    Raises:
        InvalidInput: an argument is out of range.
    """

    def __init__(
        self,
        rows: int,
        seed: int = 0,
        *,
        rows_per_request: int = 100,
        rows_per_second: float = 5_000.0,
        base_rate: float = 0.2,
        drift: float = 1.0,
        abrupt_at: float | None = None,
        users: int = 2_000,
        items: int = 3_000,
    ) -> None:
        for good, name, value, wanted in (
            (rows >= 1, "rows", rows, "at least 1"),
            (seed >= 0, "seed", seed, "0 or more"),
            (rows_per_request >= 1, "rows_per_request", rows_per_request, "at least 1"),
            (rows_per_second > 0, "rows_per_second", rows_per_second, "more than 0"),
            (0 < base_rate < 1, "base_rate", base_rate, "between 0 and 1"),
            (drift >= 0, "drift", drift, "0 or more"),
            (abrupt_at is None or 0 <= abrupt_at <= 1, "abrupt_at", abrupt_at, "a fraction of the rows, 0 to 1"),
            (users >= 1, "users", users, "at least 1"),
            (items >= 2 * rows_per_request, "items", items, f"at least {2 * rows_per_request}, two per candidate"),
        ):
            if not good:
                raise InvalidInput(f"{name} is {value}; {wanted} was expected", name)
        self.name = "generated"
        self.schema = SCHEMA
        self.rows = rows
        self.request_count = -(-rows // rows_per_request)
        self._seed, self._drift, self._base_rate = seed, drift, base_rate
        self._users, self._items = users, items
        self._per_request, self._per_second = rows_per_request, rows_per_second
        self._abrupt_request = self.request_count if abrupt_at is None else round(abrupt_at * rows) // rows_per_request
        block = min(BLOCK_ROWS, BLOCK_S * rows_per_second)
        self._block_requests = max(1, int(block // rows_per_request))

    def _request_start(self, row: int) -> int:
        return row if row == self.rows else row - row % self._per_request

    def _parts(self, first: int, last: int) -> Iterator[LogChunk]:
        size = self._block_requests * self._per_request
        world = World(self._seed, self._users, self._items, self._base_rate, self._drift)
        for block in range(first // size, -(-last // size)):
            begin = block * size
            yield self._block(world, block).slice(max(first - begin, 0), min(last - begin, size))

    def _block(self, world: World, block: int) -> LogChunk:
        """The rows of one block, all of its requests complete."""
        rng = np.random.default_rng([self._seed, _BLOCK_SEED, block])
        requests = np.arange(block * self._block_requests, (block + 1) * self._block_requests)
        time_ms = START_MS + (requests * self._per_request * 1000 / self._per_second).astype(np.int64)
        world.advance((int(time_ms[0]) - START_MS) / 1000)
        user = np.searchsorted(np.cumsum(world.users.weight), rng.random(len(requests))).clip(max=self._users - 1)
        device = rng.choice(len(DEVICES), len(requests), p=(0.6, 0.1, 0.25, 0.05))
        traits = world.users.traits
        hour = (time_ms // HOUR_MS + AHEAD_HOURS[traits.second[user]]) % 24
        item = self._candidates(rng, world.items.weight, len(requests)).ravel()
        context = np.stack(
            [
                world.users.ids[user],
                world.segment_ids[traits.group[user]],
                world.country_ids[traits.second[user]],
                world.device_ids[device],
                world.hour_ids[hour],
            ],
            axis=1,
        )
        of = np.repeat(np.arange(len(requests)), self._per_request)
        shown = world.items.traits
        ids = np.empty((len(of), len(SCHEMA.ids)), np.int64)
        ids[:, :5] = context[of]
        ids[:, 5] = world.items.ids[item]
        ids[:, 6] = world.category_ids[shown.group[item]]
        ids[:, 7] = world.brand_ids[shown.second[item]]
        numbers = np.stack([traits.number[user][of], shown.number[item]], axis=1).astype(np.float32)
        changed = (requests >= self._abrupt_request).astype(np.int64)
        truth = world.click_probability(user[of], item, device[of], hour[of], changed[of])
        return LogChunk(
            Rows(ids, numbers, (world.tags.take(item),)),
            (rng.random(len(of)) < truth).astype(np.float32),
            time_ms[of],
            requests[of],
            np.array([str(n) for n in world.users.numbers[user].tolist()], np.object_)[of],
            np.tile(np.arange(self._per_request, dtype=np.int32), len(requests)),
            truth.astype(np.float32),
        )

    def _candidates(self, rng: np.random.Generator, weight: F64, requests: int) -> I64:
        """Distinct items `[requests, rows_per_request]`, each shown in proportion to its weight.

        Systematic sampling: equally spaced points on the line of weights, one random start per request. As no weight
        is longer than the space between two points, no item is hit twice.
        """
        longest = 0.95 / self._per_request
        for _ in range(20):  # the weight cut off goes to the others, which may then be too long
            weight = np.minimum(weight / weight.sum(), longest)
        order = rng.permutation(len(weight))
        line = np.cumsum(weight[order])
        points = (np.arange(self._per_request) + rng.random((requests, 1))) / self._per_request * line[-1]
        found = order[np.searchsorted(line, points).clip(max=len(order) - 1)]
        shuffled: I64 = rng.permuted(found, axis=1)
        return shuffled

"""Users, items and click probabilities of a generated log.

Users and items are in slots. The occupant of a slot leaves after a lifetime and another one, with a new id, takes its
place: so ids come and go. Everything about an occupant is drawn from (seed, population, generation, slot), so the world at
any moment can be computed without the time before it. It knows nothing of rows, requests or files; `generator.py` shows
items to users and takes the click probabilities from here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.arrays import F64, I64, Index
from pipeline.calibration import sigmoid
from pipeline.features import Bag
from pipeline.hashing import hash_bag_column, hash_value
from pipeline.schema import FieldSpec, Schema

__all__ = ["SCHEMA", "Population", "World"]


SCHEMA = Schema(
    fields=(
        FieldSpec(name="user_id", role="context"),
        FieldSpec(name="segment", role="context"),
        FieldSpec(name="country", role="context"),
        FieldSpec(name="device", role="context"),
        FieldSpec(name="hour", role="context"),
        FieldSpec(name="account_days", role="context", kind="number", transform="log1p"),
        FieldSpec(name="item_id", role="candidate"),
        FieldSpec(name="category", role="candidate"),
        FieldSpec(name="brand", role="candidate"),
        FieldSpec(name="tags", role="candidate", kind="bag", separator="|"),
        FieldSpec(name="price", role="candidate", kind="number", transform="log1p"),
    )
)

COUNTRIES = (None, "AR", "BR", "DE", "EG", "ES", "FR", "GB", "IN", "JP", "MX", "US")  # None: not known
AHEAD_HOURS = np.array([0, -3, -3, 1, 2, 1, 1, 0, 5, 9, -6, -5])
DEVICES = ("phone", "tablet", "desktop", "tv")
SEGMENTS, CATEGORIES, CATEGORY_BRANDS, TAGS, TASTES = 8, 24, 6, 60, 6

# Spread of the parts of a click's log-odds. Their squares add up to about 1.6: an AUC of about 0.78 for a perfect model.
USER_DEVIATION, ITEM_DEVIATION, BRAND_DEVIATION, TASTE_DEVIATION, TAG_DEVIATION, PRICE_DEVIATION = (
    0.35,
    0.4,
    0.25,
    0.95,
    0.5,
    0.25,
)
SHARED_TASTE_FRACTION = 0.6  # part of a taste that a user has from the segment, an item from the category

# Speed of changes at drift 1.
TURN_RADIANS_PER_S = (
    np.array([1.0, 0.7, 1.3]) * 2 * np.pi / 7_200
)  # radians per second by which tastes turn, per pair of dimensions
SWING_LOGIT, SWING_S = 0.06, 1_200.0  # of the log-odds of a click, as a sine
ITEM_LIFE_S, USER_LIFE_S = (900.0, 3_600.0), (3_600.0, 14_400.0)  # seconds, shortest and longest
# What happens at an abrupt change, whatever the drift.
ABRUPT_TURN_RADIANS, ABRUPT_SHIFT_LOGIT = 1.0, 0.3

_USERS, _ITEMS, _CONSTANTS, _INTERCEPT = range(4)


@dataclass(slots=True)
class _Traits:
    """Traits of the occupants of all slots, by column; groups are segments (users) or categories (items)."""

    group: I64
    second: I64  # users: country; items: brand
    bias: F64
    taste: F64  # [slots, TASTES]
    number: F64  # users: days since they signed up; items: price; NaN where not known
    bag: I64  # items: a bit per tag

    def copy_from(self, other: _Traits, slots: Index) -> None:
        for name in self.__slots__:
            getattr(self, name)[slots] = getattr(other, name)[slots]


class Population:
    """Users or items, as they are at the moment of the last `advance`.

    `ids` int64 `[slots]` are hashed, `numbers` the raw ids, `weight` float64 `[slots]` sums to 1.
    """

    def __init__(self, world: World, which: int, field: str, slots: int, life: tuple[float, float]) -> None:
        rng = np.random.default_rng([world.seed, which])
        self._world, self._which, self._field, self._slots = world, which, field, slots
        self._life = rng.uniform(*life, slots)
        self._phase = rng.random(slots)
        # Zipf with a flattened head, in no order
        self._popularity = rng.permutation((np.arange(slots) + 20.0) ** -0.9)
        self._generation = np.full(slots, -1)
        self._generations: dict[int, _Traits] = {}
        self.traits = self._draw(0)
        self.ids = np.zeros(slots, np.int64)
        self.numbers = np.zeros(slots, np.int64)
        self.weight = np.full(slots, 1 / slots)

    def advance(self, seconds: float) -> None:
        """Move to a time of the world, forwards or back."""
        age = self._phase + self._world.drift * seconds / self._life
        generation = age.astype(np.int64)
        arrived = np.flatnonzero(generation != self._generation)
        for number in np.unique(generation[arrived]).tolist():
            self.traits.copy_from(self._draw(number), arrived[generation[arrived] == number])
        self._generation = generation
        self.numbers[arrived] = arrived + self._slots * generation[arrived]
        self.ids[arrived] = [hash_value(self._field, n) for n in self.numbers[arrived].tolist()]
        alive = age - generation
        weight = (
            self._popularity * np.minimum(1.0, 0.2 + alive / 0.05) * np.exp(-1.5 * alive)
        )  # soon known, then fading
        self.weight = weight / weight.sum()

    def _draw(self, generation: int) -> _Traits:
        if generation not in self._generations:
            if len(self._generations) >= 8:
                self._generations.pop(next(iter(self._generations)))
            rng = np.random.default_rng([self._world.seed, self._which, generation])
            self._generations[generation] = self._world.traits(self._which, rng, self._slots)
        traits = self._generations[generation]
        return _Traits(*(getattr(traits, name).copy() for name in _Traits.__slots__))


class World:
    """Users, items and the probability that one clicks on the other.

    Args:
        seed: of all random numbers.
        users, items: how many exist at a time.
        base_rate: mean click probability at second 0.
        drift: speed of all changes; 0: none.
    """

    def __init__(self, seed: int, users: int, items: int, base_rate: float, drift: float) -> None:
        self.seed, self.drift = seed, drift
        rng = np.random.default_rng([seed, _CONSTANTS])
        self._segment_taste = rng.standard_normal((SEGMENTS, TASTES))
        self._category_taste = rng.standard_normal((CATEGORIES, TASTES))
        self._brand_bias = BRAND_DEVIATION * rng.standard_normal(CATEGORIES * CATEGORY_BRANDS)
        self._tag_bias = TAG_DEVIATION * rng.standard_normal(TAGS)
        self._price_bias = PRICE_DEVIATION * rng.standard_normal(SEGMENTS)
        self._device_bias = 0.15 * rng.standard_normal(len(DEVICES))
        self.users = Population(self, _USERS, "user_id", users, USER_LIFE_S)
        self.items = Population(self, _ITEMS, "item_id", items, ITEM_LIFE_S)
        self.segment_ids = _ids("segment", [f"s{i}" for i in range(SEGMENTS)])
        self.country_ids = _ids("country", COUNTRIES)
        self.device_ids = _ids("device", DEVICES)
        self.hour_ids = _ids("hour", range(24))
        self.category_ids = _ids("category", [f"c{i}" for i in range(CATEGORIES)])
        self.brand_ids = _ids(
            "brand", [f"c{i // CATEGORY_BRANDS}-{i % CATEGORY_BRANDS}" for i in range(len(self._brand_bias))]
        )
        self._tag_ids = hash_bag_column("tags", ["|".join(f"t{i}" for i in range(TAGS))], "|")[1]
        self.tags = Bag(0, np.zeros(1, np.int32), np.zeros(0, np.int64))
        self._item_bias = np.zeros(items)
        self._price = np.zeros(items)
        self._taste = np.zeros((2, items, TASTES))
        self._intercept = 0.0
        self.advance(0.0)
        self._start = self._solve(base_rate)
        self.advance(0.0)

    def advance(self, seconds: float) -> None:
        """Move to a time of the world, forwards or back."""
        self.users.advance(seconds)
        self.items.advance(seconds)
        traits = self.items.traits
        has = (traits.bag[:, None] >> np.arange(TAGS)) & 1 == 1
        sizes = has.sum(axis=1)
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
        self.tags = Bag(0, offsets, self._tag_ids[np.nonzero(has)[1]])
        tag_bias = np.where(has, self._tag_bias, 0.0).sum(axis=1) / np.maximum(sizes, 1)
        self._item_bias = traits.bias + self._brand_bias[traits.second] + tag_bias
        self._price = np.nan_to_num((np.log(traits.number) - 3.0) / 0.8)
        angle = TURN_RADIANS_PER_S * self.drift * seconds
        self._taste = np.stack([_turned(traits.taste, angle), _turned(traits.taste, angle + ABRUPT_TURN_RADIANS)])
        self._taste *= TASTE_DEVIATION / np.sqrt(TASTES)
        self._intercept = self.drift * SWING_LOGIT * np.sin(2 * np.pi * seconds / SWING_S)

    def click_probability(self, user: Index, item: Index, device: Index, hour: Index, changed: Index) -> F64:
        """Probability float64 `[n]` that a user (slot) clicks on an item (slot), after an abrupt change where `changed` is 1."""
        logit = self._logit(user, item, device, hour, changed) + self._start + self._intercept
        return sigmoid(logit)

    def traits(self, which: int, rng: np.random.Generator, slots: int) -> _Traits:
        """Traits of the occupants of one generation."""
        users = which == _USERS
        uneven = rng.random(slots) ** 1.5  # some groups are larger
        group = ((SEGMENTS if users else CATEGORIES) * uneven).astype(np.int64)
        centre = (self._segment_taste if users else self._category_taste)[group]
        taste = np.sqrt(SHARED_TASTE_FRACTION) * centre + np.sqrt(1 - SHARED_TASTE_FRACTION) * rng.standard_normal(
            (slots, TASTES)
        )
        bias = (USER_DEVIATION if users else ITEM_DEVIATION) * rng.standard_normal(slots)
        number = np.exp((5.0 if users else 3.0) + 0.8 * rng.standard_normal(slots)).round(2)
        number[rng.random(slots) < 0.04] = np.nan
        if users:
            second = rng.integers(0, len(COUNTRIES), slots)
        else:
            second = group * CATEGORY_BRANDS + rng.integers(0, CATEGORY_BRANDS, slots)
        bits = (np.int64(1) << rng.integers(0, TAGS, (slots, 4))) * (rng.random((slots, 4)) < 0.5)
        return _Traits(group, second, bias, taste, number, np.bitwise_or.reduce(bits, axis=1))

    def _logit(self, user: Index, item: Index, device: Index, hour: Index, changed: Index) -> F64:
        traits = self.users.traits
        own = (
            traits.bias[user]
            + self._device_bias[device]
            + 0.1 * np.sin(2 * np.pi * hour / 24)
            + ABRUPT_SHIFT_LOGIT * changed
        )
        match = np.einsum("nd,nd->n", traits.taste[user], self._taste[changed, item])
        logit: F64 = own + self._item_bias[item] + match + self._price_bias[traits.group[user]] * self._price[item]
        return logit

    def _solve(self, base_rate: float) -> float:
        """The intercept at which the mean probability is `base_rate` now, by bisection on a sample."""
        rng = np.random.default_rng([self.seed, _INTERCEPT])
        n = 50_000
        user = rng.choice(len(self.users.ids), n, p=self.users.weight)
        item = rng.choice(len(self.items.ids), n, p=self.items.weight)
        device, hour = rng.integers(0, len(DEVICES), n), rng.integers(0, 24, n)
        logit = self._logit(user, item, device, hour, np.zeros(n, np.int64))
        low, high = -20.0, 20.0
        for _ in range(50):
            middle = (low + high) / 2
            if float(np.mean(sigmoid(logit + middle))) < base_rate:
                low = middle
            else:
                high = middle
        return low


def _turned(taste: F64, angle: F64) -> F64:
    """Tastes turned in each pair of dimensions; lengths, and so the spread of log-odds, stay."""
    even, odd = taste[:, 0::2], taste[:, 1::2]
    turned = np.empty_like(taste)
    turned[:, 0::2] = np.cos(angle) * even - np.sin(angle) * odd
    turned[:, 1::2] = np.sin(angle) * even + np.cos(angle) * odd
    return turned


def _ids(field: str, values: object) -> I64:
    return np.array([hash_value(field, value) for value in values], np.int64)  # type: ignore[attr-defined]

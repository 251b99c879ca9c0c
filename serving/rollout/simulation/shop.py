"""Shop whose arms learn from what is shown: both learn from the rows that the other one chose, and so grow alike.

Items have a click rate of their own and are replaced by new ones all the time. The candidate knows each item by itself, stable knows
groups of them only. Each shows the best of those that a request offers. Where both learn from all rows, what one finds out helps the
other one, and the comparison is moved towards no difference (arXiv 2310.17496). So the same
shop is also run with each arm alone with its own traffic, which is what a team wants to know, and with rows weighted by the inverse of
their arm's probability.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pipeline.arrays import F64, I64, Index, Mask

__all__ = ["Learner", "Shop", "Shown", "Trials"]

ITEM_IDS = 400
OFFERED_IDS = 30
SHOWN_ROWS = 10
CLICK_FRACTION = 0.2
PRIOR_ROWS = 20.0
"""Click rates are drawn from a beta distribution that is worth so many rows, which both arms know."""
GROUP_IDS = 4
"""Neighbouring items that stable cannot tell apart."""
REPLACED_FRACTION = 0.005
"""Of the items, in a block."""
SETTLED_BLOCKS = 50
"""Blocks with both arms before their clicks count: what they knew before is of other traffic."""


class Learner:
    """Estimates of click rates. `size`: items that count as one."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._rows, self._clicks = np.zeros(ITEM_IDS), np.zeros(ITEM_IDS)

    def estimates(self) -> F64:
        """Of each item, float64 `[ITEM_IDS]`."""
        rows, clicks = (each.reshape(-1, self._size).sum(axis=1) for each in (self._rows, self._clicks))
        return np.repeat((clicks + CLICK_FRACTION * PRIOR_ROWS) / (rows + PRIOR_ROWS), self._size)

    def learn(self, shown: Shown, rows: Mask, weights: F64) -> None:
        """Take rows of requests `[r]`, each with a weight `[r]`."""
        items, many = shown.items[rows].ravel(), np.repeat(weights[rows], SHOWN_ROWS)
        self._rows += np.bincount(items, many, ITEM_IDS)
        self._clicks += np.bincount(items, many * shown.clicks[rows].ravel(), ITEM_IDS)

    def forget(self, items: Index) -> None:
        """New items stand in the places of these."""
        self._rows[items] = self._clicks[items] = 0.0


@dataclass(frozen=True, slots=True)
class Shown:
    """What `r` requests were shown: items and clicks `[r, SHOWN_ROWS]`, both arms' estimates of them, and whether the candidate
    answered, `[r]`."""

    items: I64
    clicks: F64
    stable: F64
    candidate: F64
    by_candidate: Mask


class Shop:
    """Requests answered by two learners.

    Args:
        apart: each learns from what it showed itself; else both learn from all rows.
        weighted: rows count by the inverse of their arm's probability.
    """

    def __init__(self, *, apart: bool = False, weighted: bool = False) -> None:
        self.stable, self.candidate = Learner(GROUP_IDS), Learner(1)
        self._apart, self._weighted = apart, weighted

    def block(self, rates: F64, offered: I64, chance: F64, share: float) -> Shown:
        """Answer a block of requests and learn from it.

        Args:
            rates: of the items; offered: items of each request, `[r, OFFERED_IDS]`.
            chance: in 0..1 of each request: of its arm, and of a click at each place, `[r, 1 + SHOWN_ROWS]`.
            share: of the requests that is the candidate's.
        """
        of_stable, of_candidate = self.stable.estimates(), self.candidate.estimates()
        by_candidate = chance[:, 0] < share
        scores = np.where(by_candidate[:, None], of_candidate[offered], of_stable[offered])
        best = np.argpartition(-scores, SHOWN_ROWS, axis=1)[:, :SHOWN_ROWS]
        items = np.take_along_axis(offered, best, axis=1)
        clicks = (chance[:, 1:] < rates[items]).astype(np.float64)
        shown = Shown(items, clicks, of_stable[items], of_candidate[items], by_candidate)
        every = np.ones(len(items), np.bool_)
        weights = every.astype(np.float64)
        if self._weighted and 0 < share < 1:
            weights = 0.5 / np.where(by_candidate, share, 1 - share)
        self.stable.learn(shown, ~by_candidate if self._apart else every, weights)
        self.candidate.learn(shown, by_candidate if self._apart else every, weights)
        return shown


@dataclass(slots=True)
class Trials:
    """The same requests to shops that learn in different ways: `shared`, `weighted`, and `alone` with all traffic of its own."""

    rng: np.random.Generator
    shops: dict[str, Shop] = field(
        default_factory=lambda: {
            "shared": Shop(),
            "weighted": Shop(weighted=True),
            "apart": Shop(apart=True),
            "stable": Shop(apart=True),
            "candidate": Shop(apart=True),
        }
    )
    rates: F64 = field(init=False)
    blocks: int = 0
    counts: dict[str, F64] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rates = self._rates(ITEM_IDS)

    def block(self, requests: int, share: float) -> Shown:
        """A block of every shop; what the one with shared rows has shown. The shops with one arm give it all requests."""
        rng = self.rng
        offered = rng.integers(0, ITEM_IDS, (requests, OFFERED_IDS))
        chance = rng.random((requests, 1 + SHOWN_ROWS))
        shares = {"stable": 0.0, "candidate": 1.0}
        self.blocks += 0 < share < 1
        shown = {
            name: shop.block(self.rates, offered, chance, shares.get(name, share)) for name, shop in self.shops.items()
        }
        if self.blocks > SETTLED_BLOCKS and 0 < share < 1:
            for name, each in shown.items():
                arms = np.stack([~each.by_candidate, each.by_candidate]).astype(np.float64)
                counted = np.stack([arms.sum(axis=1), arms @ each.clicks.sum(axis=1)])
                self.counts[name] = self.counts.get(name, np.zeros((2, 2))) + counted
        new = np.flatnonzero(rng.random(ITEM_IDS) < REPLACED_FRACTION)
        self.rates[new] = self._rates(len(new))
        for shop in self.shops.values():
            shop.stable.forget(new)
            shop.candidate.forget(new)
        return shown["shared"]

    def effects(self) -> dict[str, float]:
        """The candidate's clicks per request over stable's, minus one, by the way of learning; nothing before there are any."""
        if not self.counts:
            return {}
        alone = {
            arm: self.counts[arm][1, at] / self.counts[arm][0, at] for at, arm in enumerate(("stable", "candidate"))
        }
        found = {"alone": float(alone["candidate"] / alone["stable"] - 1)}
        for name in ("apart", "shared", "weighted"):
            requests, clicks = self.counts[name]
            stable, candidate = clicks / requests
            found[name] = float(candidate / stable - 1)
        return found

    def _rates(self, items: int) -> F64:
        return self.rng.beta(CLICK_FRACTION * PRIOR_ROWS, (1 - CLICK_FRACTION) * PRIOR_ROWS, items)

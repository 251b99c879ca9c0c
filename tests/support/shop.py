"""A shop with known purchase probabilities: pages of its traffic, its thinned log, and the ranker that its team has trained.

Nothing here is Baton's but the hash that the team's buckets come from: the ranker is trained by plain PyTorch on codes of its
own, as teams do it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pipeline.farmhash import farm64

USERS, ITEMS, TAGS, DEVICES = 200, 200, 24, ("phone", "tablet", "desktop")
PER_PAGE = 40
BUCKETS = 1024
KEPT = 0.1
"""Share of the rows without a purchase that the log keeps."""
LEVEL = -3.1
"""Log-odds of a purchase before everything else; about one row in ten is bought."""

Array = np.ndarray[Any, Any]


@dataclass
class Pages:
    """Some pages of items as they were shown. Arrays are `[pages]` (user, device) or `[pages, items of a page]`."""

    user: Array
    device: Array
    item: Array
    price: Array
    age_days: Array
    truth: Array
    bought: Array


class Shop:
    """Users, items, and the probability that one buys the other."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.user_ids = [f"u{n}" for n in rng.choice(10**6, USERS, replace=False)]
        self.buckets = np.array([farm64(name.encode()) % BUCKETS for name in self.user_ids])
        self.item_ids = [f"item-{n}" for n in range(ITEMS)]
        sizes = rng.integers(0, 4, ITEMS)
        self.tags = [sorted(rng.choice(TAGS, size, replace=False).tolist()) for size in sizes]
        self._price = np.exp(3 + 0.6 * rng.standard_normal(ITEMS)).round(2).astype(np.float32)
        self._price[rng.random(ITEMS) < 0.05] = np.nan
        user_taste, item_taste = rng.standard_normal((USERS, 2)), rng.standard_normal((ITEMS, 2))
        tag_worth = 0.6 * rng.standard_normal(TAGS)
        worth = 0.4 * rng.standard_normal(ITEMS) - 0.3 * np.nan_to_num(np.log(self._price) - 3)
        worth += [tag_worth[tags].mean() if tags else 0.0 for tags in self.tags]
        self._logit = 0.5 * rng.standard_normal(USERS)[:, None] + worth + 0.6 * user_taste @ item_taste.T
        self._device = np.array([-0.5, 0.0, 0.5])

    def pages(self, count: int, seed: int, per_page: int = PER_PAGE) -> Pages:
        """Full traffic: every item that was shown, each bought by its own probability. Users come in rounds, each once, so that a
        part of the traffic is like the whole."""
        rng = np.random.default_rng([seed, 1])
        user = np.concatenate([rng.permutation(USERS) for _ in range(-(-count // USERS))])[:count]
        device = (user + np.arange(count) // USERS) % len(DEVICES)
        item = rng.random((count, ITEMS)).argpartition(per_page, 1)[:, :per_page]
        age = rng.exponential(10, item.shape).astype(np.float32).round(1)
        logit = LEVEL + self._logit[user[:, None], item] + self._device[device][:, None] + 0.8 * np.exp(-age / 5)
        truth = 1 / (1 + np.exp(-logit))
        return Pages(user, device, item, self._price[item], age, truth, rng.random(item.shape) < truth)

    def context(self, pages: Pages, at: int) -> dict[str, str]:
        """What the caller knows of a page's user."""
        return {"user_id": self.user_ids[pages.user[at]], "device": DEVICES[pages.device[at]]}

    def candidates(self, pages: Pages, at: int) -> dict[str, list[Any]]:
        """What the caller knows of a page's items."""
        items = pages.item[at].tolist()
        return {
            "item_id": [self.item_ids[item] for item in items],
            "tags": [self._tags(item) for item in items],
            "price": pages.price[at].tolist(),
            "age_days": pages.age_days[at].tolist(),
        }

    def frame(self, pages: Pages, rows: Array | None = None) -> pd.DataFrame:
        """A row per item that was shown, with the columns of the team's log; of all items, or of these."""
        rows = np.arange(pages.item.size) if rows is None else rows
        page, item = rows // pages.item.shape[1], pages.item.ravel()[rows]
        return pd.DataFrame(
            {
                "time_ms": 1_700_000_000_000 + 50 * page,
                "request_id": [f"old-{n}" for n in page],
                "user_id": np.array(self.user_ids)[pages.user[page]],
                "device": np.array(DEVICES)[pages.device[page]],
                "item_id": np.array(self.item_ids)[item],
                "tags": np.array([self._tags(n) for n in range(ITEMS)])[item],
                "price": pages.price.ravel()[rows],
                "age_days": pages.age_days.ravel()[rows],
                "bought": pages.bought.ravel()[rows].astype(np.int64),
            }
        )

    def kept(self, pages: Pages, seed: int) -> Array:
        """Rows that the log of these pages has: all purchases, and a tenth of the rest."""
        bought = pages.bought.ravel()
        return np.flatnonzero(bought | (np.random.default_rng([seed, 2]).random(len(bought)) < KEPT))

    def write_vocabularies(self, folder: Path) -> None:
        """`items.txt` and `tags.txt`; row 0 of both tables is that of everything else."""
        (folder / "items.txt").write_text("".join(f"{item}\n" for item in self.item_ids))
        (folder / "tags.txt").write_text("".join(f"t{tag}\n" for tag in range(TAGS)))

    def codes(self, user: Array, item: Array, price: Array) -> list[torch.Tensor]:
        """What the team's ranker reads of rows: bucket of the user, numbers of item and tags, where each row's tags start, price."""
        bags = [self.tags[n] for n in item.tolist()]
        starts = np.concatenate([[0], np.cumsum([len(bag) for bag in bags])[:-1]])
        tags = torch.tensor([tag + 1 for bag in bags for tag in bag])
        return [
            torch.tensor(self.buckets[user]),
            torch.tensor(item + 1),
            tags,
            torch.tensor(starts),
            torch.tensor(price)[:, None],
        ]

    def train(self, ranker: torch.nn.Module, pages: Pages, kept: Array, epochs: int = 3, batch: int = 256) -> None:
        """As the team did it, on rows of the thinned log: the loss sees log-odds as they are among the rows that were kept."""
        rng = np.random.default_rng(0)
        optimiser = torch.optim.Adam(ranker.parameters(), 4e-3)
        shift, labels = -float(np.log(KEPT)), torch.tensor(pages.bought.ravel().astype(np.float32))
        user, item, price = np.repeat(pages.user, pages.item.shape[1]), pages.item.ravel(), pages.price.ravel()
        for _ in range(epochs):
            order = rng.permutation(kept)
            for start in range(0, len(order), batch):
                some = order[start : start + batch]
                logits = ranker(*self.codes(user[some], item[some], price[some])) + shift
                loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels[some])
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()

    def _tags(self, item: int) -> str:
        return ",".join(f"t{tag}" for tag in self.tags[item])

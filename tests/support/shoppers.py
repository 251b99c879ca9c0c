"""Shoppers: live traffic of the shop by the page's own caller code, and their purchases, days later, as lines of a file.

Threads ask for pages at a steady rate, and less where the server is slower. Each page that was answered is kept with its
answer and the true probabilities of its items, so that what the arms say can be held against the truth.
"""

from __future__ import annotations

import heapq
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from shop import Array, Shop

from pipeline.errors import InvalidInput
from serving.client import RankingClient

__all__ = ["Answered", "Shoppers"]

ROUND_PAGES = 200
"""Pages that are drawn at once: each user one."""


@dataclass(frozen=True)
class Answered:
    """A page that was answered. `asked`, `answered`: `time.monotonic()`; `truth` and `scores`: an entry per item."""

    request_id: str
    asked: float
    answered: float
    arm: str
    version: str
    truth: Array
    scores: Array


class Shoppers:
    """The traffic, while the context lasts or until `end`.

    Args:
        show: the page's function: asks for a page and tells that it was shown.
        purchases: file that gets a line per purchase.
        rate: pages per second. per_page: items of a page.
        latest_s: longest time from a page to a purchase from it; all times up to it are as likely.

    Attributes:
        pages: what was answered so far.
        purchased: lines written so far.
        knows: whether callers send the student's new fields.
    """

    def __init__(
        self,
        shop: Shop,
        show: Callable[..., Any],
        target: str,
        purchases: Path,
        *,
        rate: float,
        per_page: int,
        latest_s: float,
        seed: int,
        threads: int = 2,
    ) -> None:
        self._shop, self._show, self._client = shop, show, RankingClient(target)
        self._file, self._rate, self._latest = purchases, rate, latest_s
        self._pages = self._drawn(per_page, seed)
        self._rng = np.random.default_rng([seed, 3])
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._next_page = time.monotonic()
        self._due: list[tuple[float, str, str]] = []
        self._failures: list[BaseException] = []
        self.pages: list[Answered] = []
        self.purchased = 0
        self.knows = False
        self._asking = [threading.Thread(target=self._ask, name=f"shopper-{n}") for n in range(threads)]
        self._till = threading.Thread(target=self._sell, name="till")

    def __enter__(self) -> Shoppers:
        for thread in (*self._asking, self._till):
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()

    def end(self) -> None:
        """Ask for no more pages, and wait until the last purchase has been written."""
        self._stop.set()
        for thread in (*self._asking, self._till):
            thread.join()
        self._client.close()
        self.check()

    def check(self) -> None:
        """Raise what a thread failed with."""
        if self._failures:
            raise self._failures[0]

    def page_is_answered(self, page: Callable[..., Any]) -> bool:
        """Whether a page with the new fields, made by `page`, is answered: lanes need a moment to hear of another candidate. It is shown
        to nobody."""
        with self._lock:
            request_id, context, candidates, _, _ = next(self._pages)
        try:
            self._client.rank_message(page(request_id, context, candidates))
        except InvalidInput:
            return False
        return True

    def _drawn(
        self, per_page: int, seed: int
    ) -> Iterator[tuple[str, dict[str, str], dict[str, list[Any]], Array, Array]]:
        """Pages without end: request id, context, candidates, true probabilities, what is bought."""
        number = 0
        while True:
            drawn = self._shop.pages(ROUND_PAGES, seed + 1000 * (number + 1), per_page)
            for at in range(ROUND_PAGES):
                name = f"page-{seed}-{ROUND_PAGES * number + at}"
                yield (
                    name,
                    self._shop.context(drawn, at),
                    self._shop.candidates(drawn, at),
                    drawn.truth[at],
                    drawn.bought[at],
                )
            number += 1

    def _ask(self) -> None:
        try:
            while not self._stop.is_set():
                with self._lock:
                    request_id, context, candidates, truth, bought = next(self._pages)
                    # Time that the server did not keep up with is not made good: what is asked stays a steady rate.
                    self._next_page = max(self._next_page + 1 / self._rate, time.monotonic() - 1 / self._rate)
                    pause = self._next_page - time.monotonic()
                if pause > 0:
                    time.sleep(pause)
                if not self.knows:
                    del context["device"], candidates["age_days"]
                asked = time.monotonic()
                answer = self._show(self._client, request_id, context, candidates)
                page = Answered(
                    request_id, asked, time.monotonic(), answer.arm, answer.version, truth, np.asarray(answer.scores)
                )
                with self._lock:
                    self.pages.append(page)
                    for item in np.flatnonzero(bought).tolist():
                        due = time.time() + self._latest * self._rng.random()
                        heapq.heappush(self._due, (due, request_id, candidates["item_id"][item]))
        except BaseException as error:
            self._failures.append(error)
            self._stop.set()

    def _sell(self) -> None:
        """Write purchases when they happen, all of them also after the last page."""
        try:
            with self._file.open("w") as file:
                while True:
                    asking = any(thread.is_alive() for thread in self._asking)
                    with self._lock:
                        now, sold = time.time(), []
                        while self._due and self._due[0][0] <= now:
                            sold.append(heapq.heappop(self._due))
                    for due, request_id, item in sold:
                        line = {"request_id": request_id, "item_id": item, "time": round(1000 * due)}
                        file.write(json.dumps(line) + "\n")
                    file.flush()
                    self.purchased += len(sold)
                    if not asking and not self._due:
                        return
                    time.sleep(0.05)
        except BaseException as error:
            self._failures.append(error)
            self._stop.set()

"""A user's actions in the console: sign in, press buttons, give a reason, read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving.http.console.charts import CANDIDATE

LIMIT_MS = 120_000
"""Of every wait in a browser; they end as soon as what they wait for is there."""
Open = Callable[..., Any]
"""Opens a page: `opened(width=1280, scheme="light")`."""
SHOT: list[Path] = []
"""Screenshots taken in this run."""


def sign_in(page: Any, url: str, token: str, path: str = "/endpoints/ranker") -> None:
    """Go to a page and sign in on the way."""
    page.goto(url + path)
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(url + path)
    settled(page)


def settled(page: Any) -> None:
    """Wait until a page shows figures."""
    page.locator(".title .chip:not(:empty), .cards tbody td").first.wait_for()


def act(page: Any, button: str, reason: str, **fields: str) -> None:
    """Press a button, fill its dialog, confirm it, and wait until it is gone."""
    page.get_by_role("button", name=button, exact=True).click()
    dialog = page.get_by_role("dialog")
    for label, value in fields.items():
        dialog.get_by_label(label.replace("_", " ")).fill(value)
    dialog.get_by_label("Reason").fill(reason)
    dialog.get_by_role("button", name=button, exact=True).click()
    dialog.wait_for(state="hidden")


def phase(page: Any, name: str) -> None:
    """Wait until the rollout is shown in a phase."""
    page.locator(".title .chip", has_text=name).wait_for()


def drawn(page: Any, title: str) -> None:
    """Wait until the candidate's curve is seen in the chart that says this of itself.

    Not the first path of the picture: those are lines of the grid, which have no height and are never called visible.
    """
    curve = f"[role=img][aria-label*='{title}'] svg path[stroke='{CANDIDATE}']"
    page.wait_for_function(
        "curve => [...document.querySelectorAll(curve)].some(path => path.getTotalLength() > 5)", arg=curve
    )


def fits(page: Any) -> bool:
    """Whether nothing makes a page scroll sideways."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


def shoot(page: Any, folder: Path, name: str) -> None:
    """Take a screenshot of a whole page."""
    path = folder / f"{name}.png"
    page.screenshot(path=path, full_page=True)
    SHOT.append(path)

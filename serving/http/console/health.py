"""Health on the landing page: the facts of `baton health`, those that need a person first."""

from __future__ import annotations

from serving.health import Health, Level
from serving.http.console.live import Cell, LiveTable, Text, panel
from serving.http.console.wording import span

__all__ = ["HealthPanel"]

OLD_MS = 30_000
_TONES = {Level.ATTENTION: "bad strong", Level.UNKNOWN: "warn", Level.OK: "muted"}
_WORDS = {
    Level.OK: "All is well.",
    Level.ATTENTION: "Something needs a person.",
    Level.UNKNOWN: "It cannot be told whether all is well.",
}


class HealthPanel:
    """A sentence for the whole, and a table with a line a fact."""

    def __init__(self) -> None:
        with panel("Health"):
            self._whole = Text("Reading for the first time …", "p", "note")
            self._table = LiveTable(("", "what", "how it is", "what to do"), "Facts", "Nothing is known yet.", "cards")

    def tell(self, health: Health, now_ms: int) -> None:
        """Show the facts, and their age where they are old."""
        old = now_ms - health.time_ms
        age = f" This was {span(old / 1000)} ago." if old > OLD_MS else ""
        self._whole.tell(_WORDS[health.level] + age, _TONES[health.level] if health.level is not Level.OK else "")
        self._table.tell(
            [
                [
                    Cell(fact.level, _TONES[fact.level]),
                    Cell(f"{fact.about} {fact.name}".rstrip(), "strong"),
                    Cell(fact.says, "wide"),
                    Cell(fact.do, "wide"),
                ]
                for fact in health.ordered()
            ]
        )

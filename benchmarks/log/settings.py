"""Sizes of the cases: those of the targets, and short ones that show that a case runs."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FULL", "QUICK", "Settings"]


@dataclass(frozen=True, slots=True)
class Settings:
    """Sizes.

    Args:
        seconds: of load on the server, and of writing; rounds: turns of the server.
        table_rows: ids in all tables of the server's model.
        writers, candidates, rate: processes that write, rows of their predictions, and predictions per second of all of them.
        rollouts: fewest and most active ones; labelled: predictions that they read.
        lines: of a table of blocks, before and after.
        days: after which a week is measured; day_blocks: in one of them.
        endpoints: fewest and most, each with a rollout; lanes: that report on them.
        keys: forgotten users.
        predictions: of a log, fewest and most.
        restart, explain: labelled predictions behind a restart, and behind a verdict.
    """

    seconds: float = 1.0
    rounds: int = 1
    table_rows: int = 390
    writers: int = 2
    candidates: int = 100
    rate: float = 200.0
    rollouts: tuple[int, int] = (1, 4)
    labelled: int = 400
    lines: tuple[int, int] = (1_500, 2_500)
    days: tuple[int, ...] = (1, 2)
    day_blocks: int = 150
    endpoints: tuple[int, int] = (4, 16)
    lanes: int = 3
    keys: int = 20
    predictions: tuple[int, int] = (512, 4_096)
    restart: int = 512
    explain: int = 512


QUICK = Settings()
FULL = Settings(
    seconds=30.0,
    rounds=5,
    table_rows=400_000,
    writers=16,
    candidates=300,
    rate=5_000.0,
    rollouts=(1, 50),
    labelled=50_000,
    lines=(150_000, 250_000),
    days=(1, 2, 4, 7),
    day_blocks=2_880,
    endpoints=(20, 200),
    lanes=20,
    keys=100_000,
    predictions=(100_000, 5_000_000),
    restart=5_000_000,
    explain=1_000_000,
)

"""Counts of packed prediction records that were dropped on their way, by reason and by endpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from pipeline.errors import InvalidInput
from pipeline.traffic.record import read_head

__all__ = ["Drops"]


class Drops:
    """Counts of drops. One thread counts at a time; any may read.

    Attributes:
        reasons: by reason; endpoints: by endpoint and reason, where "" is the endpoint of what is no record.
    """

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()
        self.endpoints: Counter[tuple[str, str]] = Counter()

    def add(self, reason: str, records: Iterable[bytes]) -> None:
        """Count records that are dropped for a reason."""
        for record in records:
            self.reasons[reason] += 1
            self.endpoints[_endpoint(record), reason] += 1


def _endpoint(record: bytes) -> str:
    try:
        return read_head(record).endpoint
    except InvalidInput:
        return ""

"""Sample of answers that are recorded: a fraction of requests, or of routing keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.hashing import bucket

__all__ = ["EVERYTHING", "TrafficSample"]

_SALT = "traffic-sample"
_BUCKETS = 10_000


@dataclass(frozen=True, slots=True)
class TrafficSample:
    """Stateless sample: every process decides alike, and a higher rate only adds.

    Args:
        rate: fraction kept, 0 to 1; exact to 1/10,000.
        by: `request` samples predictions one by one; `key` keeps all predictions of a routing key or none, and samples
            those without a key one by one.
    """

    rate: float = 1.0
    by: Literal["request", "key"] = "request"

    @property
    def probability(self) -> float:
        """Share of the answers that is kept."""
        return min(round(_BUCKETS * self.rate) / _BUCKETS, 1.0)

    def keeps(self, prediction_id: str, routing_hash: int = 0) -> bool:
        """Whether a prediction is recorded; `routing_hash` is 0 without a key.

        >>> TrafficSample(1.0).keeps("a"), TrafficSample(0.0).keeps("a")
        (True, False)
        """
        if self.rate >= 1.0:
            return True
        key = str(routing_hash) if routing_hash and self.by == "key" else prediction_id
        return bucket(_SALT, key) < round(_BUCKETS * self.rate)


EVERYTHING = TrafficSample()

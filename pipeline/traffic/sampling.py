"""Which answers are recorded, where not all are: by share of requests, or by share of routing keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.hashing import bucket

__all__ = ["EVERYTHING", "TrafficSample"]

_SALT = "traffic-sample"


@dataclass(frozen=True, slots=True)
class TrafficSample:
    """Decides without state, so every process decides alike; a higher rate only adds.

    Args:
        rate: share kept, 0 to 1; exact to 1/10,000.
        by: `request` draws each prediction by itself; `key` keeps all predictions of a routing key or none of them, and
            draws those without one by themselves.
    """

    rate: float = 1.0
    by: Literal["request", "key"] = "request"

    def keeps(self, prediction_id: str, routing_hash: int = 0) -> bool:
        """Whether a prediction is recorded; `routing_hash` is 0 without a key.

        >>> TrafficSample(1.0).keeps("a"), TrafficSample(0.0).keeps("a")
        (True, False)
        """
        if self.rate >= 1.0:
            return True
        key = str(routing_hash) if routing_hash and self.by == "key" else prediction_id
        return bucket(_SALT, key) < round(10_000 * self.rate)


EVERYTHING = TrafficSample()

"""Metrics of the stores: how much of each disk and Redis is used and free, whether it answers, and what it has refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from serving.runtime.stores import StoreStatus

__all__ = ["StoreFigures"]

_LABELS = ["store", "kind"]


class StoreFigures(Collector):
    """Collected by the control process's `Telemetry`. `read`: what the last look at the stores found."""

    def __init__(self, read: Callable[[], Sequence[StoreStatus]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """All families. A store that does not answer has `baton_store_up` alone, one without a limit no size."""
        up = GaugeMetricFamily("baton_store_up", "1 where a store answers, 0 where it does not", labels=_LABELS)
        size = GaugeMetricFamily("baton_store_size_bytes", "Room of a store that has a limit", labels=_LABELS)
        used = GaugeMetricFamily("baton_store_used_bytes", "Used of a store, by all who share it", labels=_LABELS)
        free = GaugeMetricFamily("baton_store_free_bytes", "Room that Baton may still use of a store", labels=_LABELS)
        refused = CounterMetricFamily(
            "baton_store_refused_writes", "Writes that a Redis has refused since its memory or disk was full", labels=_LABELS
        )  # fmt: skip
        for store in self._read():
            labels = [store.name, store.kind]
            up.add_metric(labels, not store.reason)
            if store.reason:
                continue
            used.add_metric(labels, store.used_bytes)
            if store.size_bytes and not store.evicts:
                size.add_metric(labels, store.size_bytes)
                free.add_metric(labels, store.free_bytes)
            if store.kind == "redis":
                refused.add_metric(labels, store.refused)
        yield from (up, size, used, free, refused)

    def describe(self) -> list[Metric]:
        return []

"""Source of the console's figures: read-only calls of `Admin`, with a viewer's role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.traffic.log import TrafficStats
from serving.admin import requests as r
from serving.admin import verbs as v
from serving.admin.answers import (
    AuditEntry,
    Cache,
    Endpoint,
    Metrics,
    Model,
    Rollout,
    RolloutSummary,
    Worker,
)
from serving.admin.door import Admin
from serving.config.principal import Principal, Role
from serving.runtime.status import Statuses

__all__ = ["AdminSource"]

READER = Principal("console", Role.VIEWER)
PAGE_ENTRIES = 1000


class AdminSource:
    """Source for one installation. For any thread; a call may take as long as the rollout loop holds its lock."""

    def __init__(self, admin: Admin) -> None:
        self._admin = admin

    def endpoints(self) -> list[Endpoint]:
        """All endpoints."""
        found: list[Endpoint] = []
        page = r.EndpointList(page_size=PAGE_ENTRIES)
        while True:
            answer = self._admin.call(v.ENDPOINTS_LIST, page, READER)
            found += answer.endpoints
            if not answer.next_page_token:
                return found
            page = r.EndpointList(page_size=PAGE_ENTRIES, page_token=answer.next_page_token)

    def newest(self, endpoint: str) -> RolloutSummary:
        """The newest rollout of an endpoint, without figures. Raises: NotFound."""
        return self._admin.rollouts.newest(endpoint)

    def rollout(self, name: str) -> tuple[Rollout, Metrics]:
        """A rollout and its metrics of one moment. Raises: NotFound."""
        return self._admin.rollouts.with_metrics(name)

    def statuses(self) -> Statuses:
        """Status of every process."""
        return self._admin.processes.all()

    def traffic(self) -> TrafficStats:
        """State of the traffic log."""
        return self._admin.metrics.traffic()

    def missing(self) -> list[str]:
        """Configured lanes that do not answer."""
        return self._admin.processes.ready()[1]

    def cache(self) -> Cache:
        """Lookups by embedding tier."""
        return self._admin.call(v.CACHE_STATS, r.Nothing(), READER)

    def worker(self) -> Worker:
        """State of the transfer worker, and the versions that the gate refused."""
        return self._admin.call(v.WORKER_STATUS, r.Nothing(), READER)

    def versions(self) -> Mapping[str, Sequence[Model]]:
        """All versions by bundle, newest first."""
        found: dict[str, list[Model]] = {}
        page = r.ModelList(page_size=PAGE_ENTRIES)
        while True:
            answer = self._admin.call(v.MODELS_LIST, page, READER)
            for model in answer.models:
                found.setdefault(model.bundle, []).insert(0, model)
            if not answer.next_page_token:
                return found
            page = r.ModelList(page_size=PAGE_ENTRIES, page_token=answer.next_page_token)

    def audit(self, endpoint: str, least: int) -> list[AuditEntry]:
        """The newest entries of an endpoint, oldest first."""
        page = r.AuditList(endpoint=endpoint, newest_first=True, page_size=least)
        return self._admin.call(v.AUDIT_LIST, page, READER).entries[::-1]

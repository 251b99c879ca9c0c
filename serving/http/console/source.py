"""Lists that the console reads whole, as a viewer, through the admin verbs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from serving.admin import requests as r
from serving.admin import verbs as v
from serving.admin.answers import AuditEntry, Endpoint, Model
from serving.admin.door import Admin
from serving.config.principal import Principal, Role

__all__ = ["READER", "all_endpoints", "all_versions", "newest_audit"]

READER = Principal("console", Role.VIEWER)
PAGE_ENTRIES = 1000


def all_endpoints(admin: Admin) -> list[Endpoint]:
    """All endpoints by name."""
    found: list[Endpoint] = []
    page = r.EndpointList(page_size=PAGE_ENTRIES)
    while True:
        answer = admin.call(v.ENDPOINTS_LIST, page, READER)
        found += answer.endpoints
        if not answer.next_page_token:
            return found
        page = r.EndpointList(page_size=PAGE_ENTRIES, page_token=answer.next_page_token)


def all_versions(admin: Admin) -> Mapping[str, Sequence[Model]]:
    """All versions by bundle, newest first."""
    found: dict[str, list[Model]] = {}
    page = r.ModelList(page_size=PAGE_ENTRIES)
    while True:
        answer = admin.call(v.MODELS_LIST, page, READER)
        for model in answer.models:
            found.setdefault(model.bundle, []).insert(0, model)
        if not answer.next_page_token:
            return found
        page = r.ModelList(page_size=PAGE_ENTRIES, page_token=answer.next_page_token)


def newest_audit(admin: Admin, endpoint: str, entries: int) -> list[AuditEntry]:
    """The newest entries of an endpoint, oldest first."""
    page = r.AuditList(endpoint=endpoint, newest_first=True, page_size=entries)
    return admin.call(v.AUDIT_LIST, page, READER).entries[::-1]

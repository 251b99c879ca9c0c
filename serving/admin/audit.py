"""Audit verbs: who changed what, when, why and on which evidence."""

from __future__ import annotations

from dataclasses import asdict

from serving.admin import answers as a
from serving.admin import requests as r
from serving.admin.pages import read_token, write_token
from serving.admin.service import Service
from serving.config.principal import Principal

__all__ = ["AuditVerbs"]


class AuditVerbs(Service):
    """Verbs of the audit."""

    def list(self, request: r.AuditList, by: Principal) -> a.AuditPage:
        """Entries, oldest or newest first."""
        cursor = read_token(request, int)
        at = None if cursor is None else int(cursor[0])
        wanted = request.page_size + 1  # one more shows whether there is a next page
        if request.newest_first:
            entries = self._store.latest_audit(request.endpoint, at, wanted)
        else:
            entries = self._store.audit(request.endpoint, at or 0, wanted)
        found = entries[: request.page_size]
        more = len(entries) > len(found)
        return a.AuditPage(
            entries=[a.AuditEntry(**asdict(entry)) for entry in found],
            next_page_token=write_token(request, (found[-1].seq,)) if more else "",
        )

    def explain(self, request: r.AuditSeq, by: Principal) -> a.Explanation:
        """Figures of an entry's verdict, as used and computed again from the log. Raises: NotFound.

        It takes as long as reading that part of the log; rollouts go on meanwhile.
        """
        return a.Explanation.model_validate(asdict(self._controller.explain(request.seq)))

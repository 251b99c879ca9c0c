"""Audit verbs: who changed what, when, why and on which evidence."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from serving.admin import answers as a
from serving.admin import requests as r
from serving.admin.pages import read_token, write_token
from serving.admin.service import Service
from serving.config.principal import Principal, Role

__all__ = ["AuditVerbs"]

TOKEN_VERBS = "token-"
"""Begin of the verbs that `baton token` notes."""


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
            entries=[a.AuditEntry(**_shown(asdict(entry), by)) for entry in found],
            next_page_token=write_token(request, (found[-1].seq,)) if more else "",
        )

    def explain(self, request: r.AuditSeq, by: Principal) -> a.Explanation:
        """Figures of an entry's verdict, as used and computed again from its sums, or from rows. Raises: NotFound.

        With rows it takes as long as reading that part of the log; rollouts go on meanwhile.
        """
        found = asdict(self._controller.explain(request.seq, rows=request.rows))
        return a.Explanation.model_validate({**found, "entry": _shown(found["entry"], by)})


def _shown(entry: dict[str, Any], by: Principal) -> dict[str, Any]:
    """An entry as `by` may see it: without ids of tokens for a viewer, who needs their names only."""
    if by.role is Role.OPERATOR or not entry["verb"].startswith(TOKEN_VERBS):
        return entry
    return {**entry, **{part: _nameless(entry[part]) for part in ("before", "after", "evidence")}}


def _nameless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nameless(item) for key, item in value.items() if key != "id"}
    return [_nameless(item) for item in value] if isinstance(value, (list, tuple)) else value

"""Backup verb of the control process: a backup for a caller on another machine."""

from __future__ import annotations

from serving.admin import requests as r
from serving.admin.bulk import BulkAnswer, BulkAnswers
from serving.admin.service import Parts, Service
from serving.config.principal import Principal

__all__ = ["BackupVerbs"]


class BackupVerbs(Service):
    """Verbs of backups."""

    def __init__(self, parts: Parts, bulk: BulkAnswers) -> None:
        super().__init__(parts)
        self._bulk = bulk

    def make(self, request: r.BackupMake, by: Principal) -> BulkAnswer:
        """A backup as a tar archive. It holds the secret key and the tokens' hashes, so the audit has who asked for it, before
        the first byte. Raises: Overloaded: another bulk answer is being made."""
        return self._bulk.begin("backup", by.name, {}, lambda: self._store.note("backup", self._who(by, request), {}))

"""The verb of the transfer worker: what it learns with, what it published, what the gate refused and why."""

from __future__ import annotations

from pipeline.bundle.versions import Repository
from pipeline.errors import BatonError
from serving.admin import answers as a
from serving.admin import requests as r
from serving.admin.processes import ProcessReports
from serving.config.principal import Principal

__all__ = ["WorkerVerbs"]

MAX_REFUSED_VERSIONS = 50
"""Refused versions that are told, the newest of each bundle."""


class WorkerVerbs:
    """See `serving.admin.verbs`; every method is the verb of its name."""

    def __init__(self, processes: ProcessReports, repository: Repository) -> None:
        self._processes = processes
        self._repository = repository

    def status(self, request: r.Nothing, by: Principal) -> a.Worker:
        """What the worker last reported; `running` is false where that is old, or there is none."""
        told = self._processes.all().get("worker", {})
        refused = [
            a.Refused(bundle=bundle, version=version, reasons=self._reasons(bundle, version))
            for bundle, versions in told.get("refused", {}).items()
            for version in versions[-MAX_REFUSED_VERSIONS:]
        ]
        return a.Worker(
            running=bool(told.get("fresh")),
            age_seconds=told.get("age_s"),
            weight=told.get("weight"),
            replay_ratio=told.get("replay_ratio"),
            teacher_every=told.get("teacher_every"),
            versions=told.get("versions", {}),
            refused=refused,
            batches=told.get("batches", 0),
            trained_rows=told.get("trained_rows", 0),
            held_rows=told.get("held_rows", 0),
            loss=told.get("loss"),
            position=told.get("position", 0),
            committed=told.get("committed", 0),
            reports=told.get("reports", {}),
        )

    def _reasons(self, bundle: str, version: str) -> list[str]:
        try:
            gate = self._repository.manifest(bundle, version).gate
        except BatonError:
            return []
        return list(gate.reasons) if gate else []

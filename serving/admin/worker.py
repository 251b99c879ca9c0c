"""Verb of the transfer worker: its weights, the versions it published, those that the gate refused and why."""

from __future__ import annotations

from pipeline.errors import BatonError
from serving.admin import answers as a
from serving.admin import requests as r
from serving.admin.service import Service
from serving.config.principal import Principal

__all__ = ["WorkerVerbs"]

MAX_REFUSED_VERSIONS = 50
"""Refused versions in an answer, the newest of each bundle."""


class WorkerVerbs(Service):
    """Verb of the transfer worker."""

    def status(self, request: r.Nothing, by: Principal) -> a.Worker:
        """The worker's last status; `running` is false where that is old, or there is none."""
        report = self._processes.all().learner
        if report is None:
            return a.Worker(running=False, versions={}, refused=[], reports={})
        worker = report.status
        refused = [
            a.Refused(bundle=bundle, version=version, reasons=self._reasons(bundle, version))
            for bundle, versions in worker.refused.items()
            for version in versions[-MAX_REFUSED_VERSIONS:]
        ]
        return a.Worker(
            running=report.fresh,
            age_seconds=report.age_s,
            weight=worker.weight,
            replay_ratio=worker.replay_ratio,
            teacher_every=worker.teacher_every,
            versions=dict(worker.versions),
            refused=refused,
            batches=worker.batches,
            trained_rows=worker.trained_rows,
            held_rows=worker.held_rows,
            loss=worker.loss,
            teacher=worker.teacher.get("name", ""),
            teacher_kind=worker.teacher.get("kind", ""),
            teacher_reason=worker.teacher.get("reason", ""),
            unguided_rows=worker.unguided_rows,
            featureless=worker.featureless,
            position=worker.position,
            committed=worker.committed,
            reports=worker.reports,
        )

    def _reasons(self, bundle: str, version: str) -> list[str]:
        try:
            gate = self._repository.manifest(bundle, version).gate
        except BatonError:
            return []
        return list(gate.reasons) if gate else []

"""Remote models of one process in its metrics and its status."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pipeline.model.remote import RemoteModel, RemoteReport
from serving.lane.served import Key, Snapshot
from serving.runtime.status import RemoteStatus
from serving.telemetry import Telemetry

__all__ = ["publish_remotes", "remote_status"]

BREAKER = {"closed": 0, "half_open": 1, "open": 2}


def remote_status(snapshot: Snapshot) -> dict[str, RemoteStatus]:
    """What this process has seen of the servers of its remote versions, by bundle/version."""
    return {
        "/".join(key): RemoteStatus(
            address=report.address, model=report.model, breaker=report.breaker, opened=report.opened, calls=report.calls,
            rows=report.rows, failed=report.failed, reason=report.reason, ids=report.ids, unknown=report.unknown,
        )
        for key, report in _reports(snapshot).items()
    }  # fmt: skip


FAILURES = ("RemoteUnavailable", "RemoteTimeout", "RemoteFault")
"""Kinds of failed calls, which are counted from zero on."""


def publish_remotes(telemetry: Telemetry, snapshot: Callable[[], Snapshot]) -> None:
    """Publish calls to other servers by result, the state of their breakers, and values without a code."""

    def calls() -> Mapping[tuple[str, ...], int]:
        found: dict[tuple[str, ...], int] = {}
        for key, report in _reports(snapshot()).items():
            found[(*key, "answered")] = report.calls
            found.update(((*key, kind), 0) for kind in FAILURES)
            found.update({(*key, kind): count for kind, count in report.failed.items()})
        return found

    labels = ("bundle", "version")
    telemetry.tallies(
        "baton_remote_calls", "Calls to the servers of remote versions, by result", (*labels, "result"), calls
    )
    telemetry.gauges(
        "baton_remote_breaker", "Circuit breaker of a remote version: 0 closed, 1 half open, 2 open", labels,
        lambda: {key: BREAKER[report.breaker] for key, report in _reports(snapshot()).items()},
    )  # fmt: skip
    telemetry.tallies(
        "baton_remote_ids", "Values sent to remote versions as codes, by whether they have one", (*labels, "case"),
        lambda: {
            (*key, case): number
            for key, report in _reports(snapshot()).items()
            for case, number in (("known", report.ids - report.unknown), ("unknown", report.unknown))
        },
    )  # fmt: skip


def _reports(snapshot: Snapshot) -> dict[Key, RemoteReport]:
    return {
        key: served.model.report() for key, served in snapshot.models.items() if isinstance(served.model, RemoteModel)
    }

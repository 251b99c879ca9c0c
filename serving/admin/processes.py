"""Process verbs: the processes of this machine, and their restart, which the supervisor carries out."""

from __future__ import annotations

from dataclasses import asdict

from pipeline.errors import Conflict, NotFound, NotReady
from serving.admin import answers as a
from serving.admin import requests as r
from serving.admin.service import Parts, Service
from serving.config.principal import Principal
from serving.rollout.store import Who
from serving.supervisor import orders
from serving.supervisor.orders import EVERYTHING, Order, Progress

__all__ = ["ProcessVerbs"]

VERB = "process-restart"
LOOKED_THROUGH_COUNT = 200
"""Newest audit entries among which that of an order may be."""


class ProcessVerbs(Service):
    """Verbs of processes. Every public method is the verb of its name, but `audit_orders`."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._home = parts.config.home
        self._audited = ""

    def list(self, request: r.Nothing, by: Principal) -> a.ProcessList:
        """State of every process, and the restart that was ordered last."""
        last = orders.progress(self._home)
        return a.ProcessList(
            processes=[a.ProcessState(**asdict(process)) for process in self._processes.roster()],
            restart=None if last is None else _answer(last),
        )

    def restart(self, request: r.ProcessRestart, by: Principal) -> a.Restart:
        """Order the supervisor to start a process again, or all of them; `list` has its progress.

        Raises:
            NotFound: there is no such process. Conflict: a restart is under way, or processes here have no supervisor that
                takes orders. NotReady: the supervisor does not report, or the order cannot be written.
        """
        supervisor = self._processes.all().supervisor
        if supervisor is None or not supervisor.status.takes_orders:
            raise Conflict(
                "no `baton serve` that takes orders keeps the processes of this machine: replicas on a cluster are replaced by "
                "`baton serve --ray`"
            )
        if not supervisor.fresh:
            raise NotReady(
                "the supervisor does not report: it hangs, or has ended; processes go on. End it with kill -9 and start "
                "`baton serve` again"
            )
        names = supervisor.status.children
        if request.process not in (EVERYTHING, *names):
            raise NotFound(
                f"there is no process {request.process!r}; there are {', '.join(sorted(names))}, or {EVERYTHING}"
            )
        last = orders.progress(self._home)
        if last is not None and not last.ended:
            raise Conflict(
                f"a restart of {last.order.process} by {last.order.by} is under way: {last.doing or 'it begins'}"
            )
        order = Order.new(request.process, by.name, request.reason, audited=True)
        self._store.note(VERB, self._who(by, request), {"process": request.process, "order": order.id})
        orders.give(self._home, order)
        return _answer(Progress(order=order, doing="the supervisor begins"))

    def audit_orders(self) -> None:
        """Write the audit entry of an order that was given on the machine, without this process."""
        last = orders.progress(self._home)
        if last is None or last.order.audited or last.order.id == self._audited:
            return
        order = last.order
        newest = self._store.latest_audit(limit=LOOKED_THROUGH_COUNT)
        if not any(entry.verb == VERB and entry.after.get("order") == order.id for entry in newest):
            who = Who(order.by, order.reason, order.time_ms)
            self._store.note(VERB, who, {"process": order.process, "order": order.id, "by": "order on the machine"})
        self._audited = order.id


def _answer(found: Progress) -> a.Restart:
    order = found.order
    return a.Restart(
        id=order.id, process=order.process, by=order.by, reason=order.reason, state=found.state, doing=found.doing, why=found.why,
        seconds=dict(found.seconds),
    )  # fmt: skip

"""Restarts over the admin API: an order for the supervisor, in the audit, refused where nobody could carry it out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from doors import Refused, Rest
from installation import write_status
from operated import Operated, http_port, operated

from serving.supervisor import orders
from serving.supervisor.orders import Order, Progress

CHILDREN = {"lane-0": {"pid": 1}, "control": {"pid": 2}}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Operated]:
    with operated(tmp_path / "home") as made:
        yield made


def supervised(world: Operated, **fields: Any) -> None:
    status = {"pid": 0, "takes_orders": True, "time_ms": world.clock.wall_ms(), "children": CHILDREN, **fields}
    write_status(world.made.config.status, "supervisor", **status)


def audited(world: Operated) -> list[tuple[str, str, str]]:
    entries = [entry for entry in world.made.store.audit() if entry.verb == "process-restart"]
    return [(entry.actor, entry.reason, entry.after["process"]) for entry in entries]


def test_a_restart_is_ordered_once_at_a_time_and_its_progress_told(world: Operated) -> None:
    home = world.made.home
    with http_port(world) as port:
        ann = Rest(port, "ann")
        with pytest.raises(Refused, match="no `baton serve` that takes orders"):
            ann.do("processes.restart", process="lane-0", reason="it leaks")
        supervised(world, takes_orders=False)  # of a replica
        with pytest.raises(Refused, match="replaced by `baton serve --ray`"):
            ann.do("processes.restart", process="lane-0", reason="it leaks")
        supervised(world, time_ms=world.clock.wall_ms() - 60_000)
        with pytest.raises(Refused, match="the supervisor does not report"):
            ann.do("processes.restart", process="lane-0", reason="it leaks")
        supervised(world)
        with pytest.raises(Refused, match="no process 'lane-9'; there are control, lane-0, or all"):
            ann.do("processes.restart", process="lane-9")
        assert ann.do("processes.list")["restart"] is None
        asked = ann.do("processes.restart", process="lane-0", reason="it leaks")
        (order,) = orders.take(home)
        assert (order.id, order.process, order.by, order.reason) == (asked["id"], "lane-0", "ann", "it leaks")
        orders.report(home, Progress(order=order, doing="lane-0 starts"))
        assert ann.do("processes.list")["restart"]["doing"] == "lane-0 starts"
        with pytest.raises(Refused, match="a restart of lane-0 by ann is under way: lane-0 starts"):
            ann.do("processes.restart", process="all")
        orders.report(home, Progress(order=order, state="failed", why="it ended", seconds={"control": 2.5}))
        last = ann.do("processes.list")["restart"]
        assert (last["state"], last["why"], last["seconds"]) == ("failed", "it ended", {"control": 2.5})
        ann.do("processes.restart", process="all", reason="0.3")
        ann.close()
    assert audited(world) == [("ann", "it leaks", "lane-0"), ("ann", "0.3", "all")]


def test_an_order_that_was_given_on_the_machine_is_in_the_audit_once(world: Operated) -> None:
    order = Order.new("all", "root", "upgrade")
    orders.report(world.made.home, Progress(order=order, state="done"))
    for _ in range(2):
        world.admin.processes.audit_orders()
    again = Operated(world.made, world.clock)  # the control process after its own restart
    again.admin.processes.audit_orders()
    again.close()
    orders.report(world.made.home, Progress(order=replace(Order.new("lane-0", "ann", ""), audited=True)))
    world.admin.processes.audit_orders()
    assert audited(world) == [("root", "upgrade", "all")]

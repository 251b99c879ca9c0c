"""Workers of several machines that share one Redis: one learns, the others stand by, and one of them takes over."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from clocks import MillisecondClock
from installation import eventually
from redis_process import RedisProcess

from pipeline.clock import SystemClock
from serving.config import Config
from serving.processes.worker import run_worker
from serving.runtime.roster import process_state, roster
from serving.runtime.status import STANDS_BY, Statuses, WorkerStatus, read
from serving.state.redis.leader import RedisLead
from serving.state.redis.tenure import LastPlace, RedisTenure, lead_of
from serving.wiring.state import node_name, open_tenure

DURABLE = ("--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisProcess]:
    with RedisProcess(tmp_path / "redis", *DURABLE) as started:
        yield started


class Machine:
    """A home with a worker, whose endpoint has no student yet: it needs no models."""

    def __init__(self, home: Path, server: RedisProcess) -> None:
        url = server.address.url
        self.config = Config.model_validate(
            {
                "home": home,
                "state": {"url": url, "lease": 1},
                "traffic": {"url": f"{url}?db=1"},
                "worker": {"endpoint": "ranker"},
                "endpoints": {"ranker": {"stable": {"bundle": "old"}}},
            }
        )
        self.name = f"{node_name(self.config)} pid {os.getpid()}"
        self.checkpoint = home / "worker" / "old+new" / "1"
        self.checkpoint.mkdir(parents=True)

    @contextmanager
    def working(self) -> Iterator[None]:
        stop = threading.Event()
        thread = threading.Thread(target=run_worker, args=(self.config, stop), name="worker")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(60)
            assert not thread.is_alive()

    def reports(self) -> Statuses:
        return read(self.config.status, SystemClock().wall_ms())

    def status(self) -> WorkerStatus:
        report = self.reports().worker
        return WorkerStatus(time_ms=0) if report is None else report.status

    def learns(self) -> bool:
        return "no student" in self.status().waiting

    def stands_by_for(self, name: str) -> bool:
        return (
            self.status().state == STANDS_BY and self.status().waiting == f"the worker of endpoint 'ranker' is {name}"
        )


def test_one_worker_learns_and_another_machine_stands_by_and_takes_over(tmp_path: Path, server: RedisProcess) -> None:
    first, second = Machine(tmp_path / "first", server), Machine(tmp_path / "second", server)
    with ExitStack() as later:
        with first.working():
            eventually(first.learns, "the first learns")
            later.enter_context(second.working())
            eventually(lambda: second.stands_by_for(first.name), "the second says whom it waits for")
            (shown,) = roster(second.reports(), [], SystemClock().wall_ms(), {}, process_state)
            assert shown.doing == f"standing by: the worker of endpoint 'ranker' is {first.name}"
            assert second.checkpoint.exists()
            assert first.learns()
        eventually(second.learns, "the second takes over")
        assert first.checkpoint.exists(), "nobody was before the first"
        assert not second.checkpoint.exists(), "its checkpoints are older than what the first has published"
        with first.working():
            eventually(lambda: first.stands_by_for(second.name), "who comes back stands by")


def test_a_worker_whose_lease_is_lost_stands_by_until_it_is_free(
    tmp_path: Path, server: RedisProcess, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine(tmp_path / "home", server)
    key = f"{lead_of('ranker')}:lead"
    with machine.working(), server.client() as client:
        eventually(machine.learns, "it learns")
        client.set(key, "99:far-1 pid 7:abcd")
        eventually(lambda: machine.stands_by_for("far-1 pid 7"), "it says who has taken it")
        assert "the lease was lost; the worker of endpoint 'ranker' is far-1 pid 7" in caplog.text
        client.delete(key)
        eventually(machine.learns, "it learns again")
        assert machine.checkpoint.exists(), "nobody has published since"
        server.kill()
        eventually(lambda: machine.status().state == STANDS_BY, "without Redis nobody knows who may publish")
        assert "does not say who" in machine.status().waiting
        server.start()
        eventually(machine.learns, "it learns again once Redis is back")


def test_who_lost_the_tenure_neither_holds_nor_notes(server: RedisProcess) -> None:
    clock = MillisecondClock()
    first, second = (
        RedisTenure(RedisLead(server.address, name, clock, 5.0, what=lead_of("ranker")), "ranker", name)
        for name in ("first", "second")
    )
    assert first.last() is None
    assert first.take()
    assert first.holds()
    assert not second.take()
    assert not second.holds()
    assert second.holder() == "first"
    first.published(7)
    with server.client() as client:
        client.delete(f"{lead_of('ranker')}:lead")  # as when the lease lapses
    assert second.take()
    assert second.last() == LastPlace("first", 7)
    second.published(8)
    first.published(9)
    assert not first.holds()
    assert second.last() == LastPlace("second", 8)
    second.release()
    assert not first.holds(), "another one has worked since"
    assert first.take()
    assert first.holds()
    first.release()


def test_only_where_a_state_is_shared_a_lease_is_needed(tmp_path: Path) -> None:
    assert open_tenure(Config.model_validate({"home": tmp_path}), "ranker", SystemClock()) is None

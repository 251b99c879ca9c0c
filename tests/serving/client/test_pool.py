"""The pool: connections that failed or say nothing are passed by, and used again once they answer."""

from __future__ import annotations

from clocks import HandClock

from serving.client.options import Options
from serving.client.pool import LONGEST_REST_S, Connection, Pool


def pool_of(connections: int) -> tuple[Pool, HandClock]:
    clock = HandClock(100.0)
    return Pool(["a:1"], Options(connections=connections), lambda _: None, lambda _: None, clock), clock


def taken(pool: Pool, times: int) -> set[int]:
    """Places of the connections that so many calls, one after another, take."""
    found = set()
    for _ in range(times):
        connection = pool.take()
        found.add(pool.connections.index(connection))
        pool.give_back(connection)
    return found


def test_a_connection_without_answers_is_passed_by_until_it_answers() -> None:
    pool, clock = pool_of(3)
    stuck = pool.take()
    place = pool.connections.index(stuck)
    clock.now += 0.5
    for _ in range(4):
        pool.connections[(place + 1) % 3].calls += 1
        pool.connections[(place + 2) % 3].calls += 1
    assert pool.take() is stuck  # it has the fewest calls, and nothing is wrong yet
    for connection in pool.connections:
        connection.calls = 1 if connection is stuck else 0
    clock.now += 1.0
    assert place not in taken(pool, 9)
    pool.give_back(stuck)
    assert taken(pool, 9) == {0, 1, 2}


def test_rests_double_while_it_fails_and_calls_that_fail_together_count_once() -> None:
    pool, clock = pool_of(2)
    bad = pool.connections[0]

    def fail(calls: int = 1) -> float:
        bad.calls += calls
        for _ in range(calls):
            pool.give_back(bad, failed=True)
        return bad.rests_until - clock.now

    rests = []
    for _ in range(7):
        rests.append(fail(calls=5))
        assert taken(pool, 4) == {1}
        clock.now = bad.rests_until
    assert rests == [1, 2, 4, 8, 16, LONGEST_REST_S, LONGEST_REST_S]
    assert taken(pool, 4) == {0, 1}
    assert fail() == 1


def test_where_all_are_passed_by_a_call_is_sent_all_the_same() -> None:
    pool, _ = pool_of(2)
    for connection in pool.connections:
        connection.calls += 1
        pool.give_back(connection, failed=True)
    assert isinstance(pool.take(), Connection)

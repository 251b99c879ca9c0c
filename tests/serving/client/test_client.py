"""Both clients against a server with set faults: retries, and errors that callers see."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
from handmade import SCHEMA, random_rows
from installation import Installation, RunningLane, free_port

from pipeline import errors
from pipeline.errors import BatonError, DeadlineExceeded, InvalidInput, NotReady, Overloaded
from pipeline.features import Features
from pipeline.traffic.log import Exposure, FeedbackEntry, Outcome
from protos.baton.ranking.v1 import ranking_pb2 as pb
from serving.client import AsyncRankingClient, Options, RankingClient, Retry, Tls
from serving.client.testing import FakeServer
from serving.wire.errors import ERRORS

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
QUICK = Retry(first_pause=0.001, longest_pause=0.002)
PATIENT = 30.0


def request(candidates: int = 3, **more: Any) -> pb.RankRequest:
    made = pb.RankRequest(endpoint="ranker", **more)
    made.candidates.columns.add(field="item").integers.values.extend(range(candidates))
    return made


class Awaited:
    """An `AsyncRankingClient` called as the other one is."""

    def __init__(self, target: str | Sequence[str], options: Options | None = None) -> None:
        self._loop = asyncio.new_event_loop()

        async def make() -> AsyncRankingClient:
            return AsyncRankingClient(target, options)

        self._client = self._loop.run_until_complete(make())

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)
        return lambda *args, **more: self._loop.run_until_complete(method(*args, **more))

    def close(self) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.close()


@pytest.fixture(params=[RankingClient, Awaited], ids=["sync", "async"])
def client(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Makes a client of one of the two kinds."""
    made: list[Any] = []

    def make(target: str | Sequence[str], **options: Any) -> Any:
        made.append(request.param(target, Options(**{"timeout": PATIENT, "retry": QUICK, **options})))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(lambda request: [0.1, 0.9, 0.4]) as made:
        yield made


def test_scores_labels_token_and_trace_travel(client: Any, server: FakeServer) -> None:
    calling = client(server.target, token=lambda: "baton_k_s")
    calling.ready(PATIENT)
    answer = calling.rank_message(request(routing_key="u"), traceparent=TRACE)
    np.testing.assert_allclose(answer.scores, [0.1, 0.9, 0.4])
    assert (answer.arm, answer.bundle, answer.version, answer.prediction_id) == ("stable", "fake", "1", "fake-1")
    assert calling.rank_message(request(top_k=2)).indices.tolist() == [1, 2]
    label = FeedbackEntry(answer.prediction_id, [Exposure(1)], [Outcome(1, 1.0)])
    assert [(r.exposed, r.outcomes) for r in calling.feedback([label])] == [(("accepted",), ("accepted",))]
    assert [entry.outcomes[0].label for entry in server.labels] == [1.0]
    assert {m["authorization"] for m in server.metadata} == {"Bearer baton_k_s"}
    assert [m.get("traceparent") for m in server.metadata] == [TRACE, None, None]


@pytest.mark.parametrize("kind", [*ERRORS, errors.BatonError])
def test_errors_come_back_as_they_were_raised(client: Any, server: FakeServer, kind: type[BatonError]) -> None:
    error = InvalidInput("field 'age' is infinite", "age") if kind is InvalidInput else kind("as it is")
    calling = client(server.target, retry=Retry(attempts=1))
    if kind is BatonError:
        server._scores = lambda request: 1 / 0  # type: ignore[assignment, return-value]
        with pytest.raises(BatonError):
            calling.rank_message(request())
        return
    server.fail(error)
    with pytest.raises(kind) as raised:
        calling.rank_message(request())
    assert type(raised.value) is kind
    assert str(raised.value) == str(error)
    assert getattr(raised.value, "field", "") == getattr(error, "field", "")
    assert getattr(raised.value, "retry_after", 0) == getattr(error, "retry_after", 0)


def test_what_a_server_refuses_is_sent_again(client: Any, server: FakeServer) -> None:
    calling = client(server.target)
    server.fail(NotReady("draining"))
    server.fail(Overloaded("full", 0.01))
    assert calling.rank_message(request()).prediction_id == "fake-3"
    server.fail(NotReady("draining"), times=3)
    with pytest.raises(NotReady, match="draining"):
        calling.rank_message(request())
    assert len(server.requests) == 6
    server.fail(InvalidInput("no", "x"))
    with pytest.raises(InvalidInput):
        calling.rank_message(request())
    assert len(server.requests) == 7


def test_a_pause_that_the_deadline_does_not_leave_is_not_waited_for(client: Any, server: FakeServer) -> None:
    calling = client(server.target)
    server.fail(Overloaded("full", retry_after=3600))
    with pytest.raises(Overloaded) as raised:
        calling.rank_message(request())
    assert raised.value.retry_after == 3600


def test_a_rank_that_was_perhaps_taken_is_not_repeated_unless_asked_for(client: Any, server: FakeServer) -> None:
    server.lose()
    with pytest.raises(NotReady):
        client(server.target).rank_message(request())
    assert len(server.requests) == 1
    server.lose()
    assert client(server.target, retry=Retry(lost=True)).rank_message(request()).prediction_id == "fake-3"


def test_feedback_is_repeated_and_counts_once(client: Any, server: FakeServer) -> None:
    calling = client(server.target)
    answer = calling.rank_message(request())
    server.lose(method="Feedback")
    (reply,) = calling.feedback([FeedbackEntry(answer.prediction_id, [Exposure(0)], [Outcome(0, 1.0)])])
    assert (reply.exposed, reply.outcomes) == (("duplicate",), ("duplicate",))
    assert len(server.labels) == 1
    (unknown,) = calling.feedback([FeedbackEntry("fake-99", [], [Outcome(0, 1.0)])])
    assert (unknown.outcomes, bool(unknown.reason)) == (("invalid",), True)


def test_repetitions_cannot_multiply_the_load(client: Any, server: FakeServer) -> None:
    calling = client(server.target, retry=Retry(first_pause=0.0, longest_pause=0.0, ratio=0.1, burst=5))
    server.fail(NotReady("down"), times=1000)
    for _ in range(100):
        with pytest.raises(NotReady):
            calling.rank_message(request())
    assert 100 < len(server.requests) <= 100 + 5 + 10


def test_calls_spread_over_connections_and_targets(client: Any, server: FakeServer) -> None:
    with FakeServer() as other:
        calling = client([server.target, other.target], connections=3)
        for _ in range(24):
            calling.rank_message(request())
        assert (len(server.peers), len(other.peers)) == (3, 3)
        assert (len(server.requests), len(other.requests)) == (12, 12)


def test_a_target_that_is_gone_costs_no_call(client: Any, server: FakeServer) -> None:
    calling = client([f"127.0.0.1:{free_port()}", server.target], connections=1)
    for _ in range(5):
        assert len(calling.rank_message(request()).scores) == 3
    nobody = client(f"127.0.0.1:{free_port()}", connections=1)
    with pytest.raises(NotReady, match="connect"):
        nobody.rank_message(request())
    with pytest.raises(NotReady, match="reached"):
        nobody.ready(0.05)


def test_a_message_that_is_too_large_is_not_sent_again(client: Any, server: FakeServer) -> None:
    calling = client(server.target, max_message=1000)
    with pytest.raises(Overloaded, match="larger"):
        calling.rank_message(request(candidates=500))
    assert server.requests == []


def test_a_slow_answer_is_overtaken_where_hedging_is_on(client: Any, server: FakeServer) -> None:
    server.delay(PATIENT)
    answer = client(server.target, hedge_after=0.05).rank_message(request())
    assert answer.prediction_id == "fake-2"
    server.delay(0.2)
    assert client(server.target).rank_message(request()).prediction_id  # off unless asked for
    assert len(server.requests) == 3


def test_a_hedged_call_that_fails_at_once_says_why(client: Any, server: FakeServer) -> None:
    server.fail(InvalidInput("no", "x"))
    with pytest.raises(InvalidInput):
        client(server.target, hedge_after=5.0).rank_message(request())
    assert len(server.requests) == 1


def test_the_deadline_ends_a_call(client: Any, server: FakeServer) -> None:
    server.delay(PATIENT)
    with pytest.raises(DeadlineExceeded):
        client(server.target).rank_message(request(), timeout=0.1)


def test_tls_both_ways(client: Any, tmp_path: Path) -> None:
    import grpc

    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    theirs, ours = authority.issue_cert("localhost"), authority.issue_cert("caller@example")
    ours.private_key_pem.write_to_path(tmp_path / "key.pem")
    ours.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    credentials = grpc.ssl_server_credentials(
        [(theirs.private_key_pem.bytes(), theirs.cert_chain_pems[0].bytes())], authority.cert_pem.bytes(), True
    )
    with FakeServer(credentials=credentials) as server:
        mutual = Tls(tmp_path / "ca.pem", tmp_path / "cert.pem", tmp_path / "key.pem", server_name="localhost")
        assert client(server.target, tls=mutual, token="t").rank_message(request()).version == "1"
        nameless = Tls(tmp_path / "ca.pem", server_name="localhost")
        with pytest.raises(NotReady):
            client(server.target, tls=nameless, connections=1, retry=Retry(attempts=1)).rank_message(request())


@pytest.mark.parametrize(
    ("target", "options", "field"),
    [
        ([], {}, "target"),
        ("ranker.example:8001", {"token": "t"}, "token"),
        ("10.1.2.3:8001", {"token": "t"}, "token"),
        ("127.0.0.1:1", {"connections": 0}, "connections"),
        ("127.0.0.1:1", {"hedge_after": 0}, "hedge_after"),
        ("127.0.0.1:1", {"tls": Tls(ca=Path("no-such-file"))}, "tls"),
        ("127.0.0.1:1", {"tls": Tls(certificate=Path("x"))}, "tls"),
    ],
)
def test_wrong_options_are_told_by_name(client: Any, target: Any, options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        client(target, **options)
    assert raised.value.field == field


def test_a_real_lane_takes_the_same_call_twice(client: Any, served: tuple[Installation, RunningLane]) -> None:
    made, lane = served
    features = Features.from_context(SCHEMA, random_rows(np.random.default_rng(5), 4, made.tables))
    calling = client(lane.target)
    first, again = (calling.rank("ranker", SCHEMA, features, routing_key="u", request_id="r") for _ in range(2))
    np.testing.assert_array_equal(first.scores, again.scores)
    assert first.prediction_id != again.prediction_id  # of which only the one that is shown makes rows
    label = FeedbackEntry(again.prediction_id, [Exposure(0)], [Outcome(0, 1.0)])
    assert [calling.feedback([label])[0].outcomes for _ in range(2)] == [("accepted",), ("duplicate",)]


def test_importing_the_client_loads_no_framework() -> None:
    code = (
        "import sys, serving.client; print(sorted({'torch', 'numba', 'onnxruntime', 'onnx', 'pyarrow', 'fastapi',"
        "'duckdb', 'opentelemetry', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"

"""Fake server for tests of callers: real gRPC in this process, with answers and faults set by the test.

    with FakeServer() as server, RankingClient(server.target) as client:
        server.fail(Overloaded("busy", 0.01))
        ...
        assert server.labels == [...]

It uses the wire format and reports errors as a lane does, but scores by the test's own function, checks no schema and
stores nothing.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal, get_args

import grpc
import numpy as np

from pipeline.errors import BatonError
from pipeline.traffic.log import ACCEPTED, DUPLICATE, INVALID, FeedbackEntry, FeedbackReply
from protos.baton.ranking.v1 import ranking_pb2 as pb
from protos.baton.ranking.v1 import ranking_pb2_grpc
from serving.wire.errors import failure_of
from serving.wire.feedback import entries_of, response_of

__all__ = ["FakeServer"]

Method = Literal["Rank", "Feedback", "Observe", "Assign"]
Scores = Callable[[pb.RankRequest], Sequence[float]]


@dataclass(frozen=True, slots=True)
class _Fault:
    error: BatonError | None
    delay: float


class FakeServer:
    """Server of Rank, RankStream, Feedback, FeedbackStream, Observe and Assign on a free port of 127.0.0.1, within a `with` block.

    Args:
        scores: of a request's candidates, in their order; 0.5 each by default.
        arm, bundle, version: in the answers.
        degraded: reasons for reduced answers.
        credentials: of TLS; None: unencrypted.

    Attributes:
        target: `127.0.0.1:port`.
        requests: Rank requests in order, also those that failed.
        metadata: of every call, in order.
        labels: feedback entries that were accepted. observed: predictions told that were accepted.
        arm_of: arm of a routing key in the answers of Assign; a test may set it.
        peers: addresses of the connections of all calls.
    """

    def __init__(
        self,
        scores: Scores | None = None,
        *,
        arm: str = "stable",
        bundle: str = "fake",
        version: str = "1",
        degraded: Sequence[str] = (),
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        self._scores = scores or (lambda request: [0.5] * candidates_of(request))
        self._template = pb.RankResponse(arm=arm, bundle=bundle, version=version, degraded=degraded)
        self._lock = threading.Lock()
        self._faults: dict[str, deque[_Fault]] = {method: deque() for method in get_args(Method)}
        self._answered: dict[str, int] = {}
        self._told: dict[tuple[str, str], str] = {}
        self._seen: set[tuple[Any, ...]] = set()
        self.requests: list[pb.RankRequest] = []
        self.metadata: list[dict[str, str]] = []
        self.labels: list[FeedbackEntry] = []
        self.observed: list[pb.ObservedPrediction] = []
        self.arm_of: Callable[[str], str] = lambda _: arm
        self.peers: set[str] = set()
        self._server = grpc.server(ThreadPoolExecutor(16, thread_name_prefix="fake-baton"))
        methods = SimpleNamespace(
            Rank=self._rank,
            RankStream=partial(_each, self._rank),
            Feedback=self._feedback,
            FeedbackStream=partial(_each, self._feedback),
            Observe=self._observe,
            Assign=self._assign,
        )
        ranking_pb2_grpc.add_RankingServiceServicer_to_server(methods, self._server)  # type: ignore[no-untyped-call]
        if credentials is None:
            port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self.target = f"127.0.0.1:{port}"

    def __enter__(self) -> FakeServer:
        self._server.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Close all connections and stop listening."""
        self._server.stop(0).wait()

    def fail(self, error: BatonError, times: int = 1, method: Method = "Rank") -> None:
        """Let the next calls fail with an error, reported as a lane reports it."""
        self._faults[method].extend([_Fault(error, 0.0)] * times)

    def lose(self, times: int = 1, method: Method = "Rank") -> None:
        """Let the next calls be processed, and then end as if their connection broke before the answer."""
        self._faults[method].extend([_Fault(None, 0.0)] * times)

    def delay(self, seconds: float, times: int = 1, method: Method = "Rank") -> None:
        """Delay the next answers."""
        self._faults[method].extend([_Fault(None, seconds)] * times)

    def _rank(self, request: pb.RankRequest, context: Any) -> pb.RankResponse:
        with self._lock:
            self.requests.append(request)
            number = len(self.requests)
        lost = self._meet(context, "Rank")
        scores = np.asarray(self._scores(request), np.float32)
        prediction_id = f"fake-{number}"
        with self._lock:
            self._answered[prediction_id] = len(scores)
            if request.request_id:
                self._told[request.endpoint, request.request_id] = prediction_id
        if lost:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        response = pb.RankResponse(prediction_id=prediction_id, request_id=request.request_id)
        response.MergeFrom(self._template)
        if not request.top_k:
            response.scores.extend(scores.tolist())
            return response
        best = np.argsort(-scores, kind="stable")[: request.top_k].tolist()
        response.ranking.indices.extend(best)
        response.ranking.scores.extend(float(scores[i]) for i in best)
        response.ranking.candidate_ids.extend(request.candidate_ids[i] for i in best if request.candidate_ids)
        return response

    def _feedback(self, request: pb.FeedbackRequest, context: Any) -> pb.FeedbackResponse:
        lost = self._meet(context, "Feedback")
        try:
            replies = [self._judge(entry) for entry in entries_of(request)]
        except BatonError as error:
            _abort(context, error)
        if lost:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        return response_of(request, replies)

    def _observe(self, request: pb.ObserveRequest, context: Any) -> pb.ObserveResponse:
        lost = self._meet(context, "Observe")
        response = pb.ObserveResponse(request_id=request.request_id)
        for told in request.predictions:
            with self._lock:
                known = self._told.get((request.endpoint, told.request_id))
                status = pb.ACCEPTED
                if known is None and told.HasField("answered"):
                    known = self._told[request.endpoint, told.request_id] = f"observed-{len(self._told) + 1}"
                    self._answered[known] = len(told.answered.scores)
                elif told.HasField("answered"):
                    status = pb.DUPLICATE
                elif known is None:
                    status = pb.INVALID
                if status == pb.ACCEPTED:
                    self.observed.append(told)
            response.results.add(request_id=told.request_id, prediction_id=known or "", status=status)
        if lost:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        return response

    def _assign(self, request: pb.AssignRequest, context: Any) -> pb.AssignResponse:
        if self._meet(context, "Assign"):
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        return pb.AssignResponse(arms=[self.arm_of(key) for key in request.routing_keys], resource_version=1)

    def _judge(self, entry: FeedbackEntry) -> FeedbackReply:
        with self._lock:
            if entry.request_id and not entry.prediction_id:
                entry = replace(entry, prediction_id=self._told.get((entry.endpoint, entry.request_id), ""))
            rows = self._answered.get(entry.prediction_id)
            if rows is None:
                unknown = (INVALID,) * len(entry.exposed), (INVALID,) * len(entry.outcomes)
                return FeedbackReply(*unknown, f"prediction {entry.prediction_id!r} is not one of this server's")
            exposed = tuple(self._status(entry, "exposed", part, rows) for part in entry.exposed)
            outcomes = tuple(self._status(entry, "outcome", part, rows) for part in entry.outcomes)
            everything = entry.exposed_all and (entry.prediction_id, "all") not in self._seen
            if everything:
                self._seen.add((entry.prediction_id, "all"))
            if everything or ACCEPTED in (*exposed, *outcomes):
                self.labels.append(entry)
            return FeedbackReply(exposed, outcomes, "no such candidate" if INVALID in (*exposed, *outcomes) else "")

    def _status(self, entry: FeedbackEntry, kind: str, part: Any, rows: int) -> str:
        if part.index is not None and part.index >= rows:
            return INVALID
        key = (entry.prediction_id, kind, part.index, part.candidate_id, getattr(part, "label", None))
        if key in self._seen:
            return DUPLICATE
        self._seen.add(key)
        return ACCEPTED

    def _meet(self, context: Any, method: Method) -> bool:
        """Note a call and apply the fault set for it; whether its answer must be lost."""
        with self._lock:
            self.metadata.append({key: value for key, value in context.invocation_metadata() if isinstance(value, str)})
            self.peers.add(context.peer())
            fault = self._faults[method].popleft() if self._faults[method] else None
        if fault is None:
            return False
        if fault.error is not None:
            _abort(context, fault.error)
        if fault.delay:
            over = threading.Event()
            context.add_callback(over.set)  # otherwise a caller that is gone would hold the thread
            over.wait(fault.delay)
            return False
        return True


def _each(method: Callable[[Any, Any], Any], requests: Iterator[Any], context: Any) -> Iterator[Any]:
    """Answers of a method to a stream of requests."""
    return (method(request, context) for request in requests)


def candidates_of(request: pb.RankRequest) -> int:
    """Number of candidates of a request, in any of its forms."""
    rows = request.candidates
    if request.candidate_ids:
        return len(request.candidate_ids)
    for matrix in (rows.ids, rows.numbers):
        if matrix.fields:
            return len(matrix.values) // len(matrix.fields)
    for column in rows.columns:
        kind = column.WhichOneof("values")
        if kind == "bags":
            return len(column.bags.offsets) - 1
        if kind is not None:
            return len(getattr(column, kind).values)
    return 0


def _abort(context: Any, error: BatonError) -> None:
    failure = failure_of(error, "fake")
    context.set_trailing_metadata(failure.metadata)
    context.abort(failure.code, failure.message)

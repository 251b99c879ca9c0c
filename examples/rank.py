"""Rank three candidates and send a click back, with raw values and nothing but the generated stubs.

The fields are those of the `dataset.yaml` in the README; the server hashes the values by the one rule that training used.
Start a server with such a model first (`baton serve`), then: python examples/rank.py 127.0.0.1:8001 ranker
"""

from __future__ import annotations

import sys

import grpc

from protos.baton.ranking.v1 import ranking_pb2 as pb
from protos.baton.ranking.v1 import ranking_pb2_grpc


def request(endpoint: str) -> pb.RankRequest:
    """One user's context, once, and three candidates."""
    message = pb.RankRequest(endpoint=endpoint, routing_key="user:42")
    context, candidates = message.context.columns, message.candidates.columns
    context.add(field="user_id", integers=pb.Integers(values=[42]))
    context.add(field="hour", integers=pb.Integers(values=[17]))
    candidates.add(field="item_id", integers=pb.Integers(values=[7, 8, 9]))
    candidates.add(field="tags", strings=pb.Strings(values=["news,local", "sport", ""]))
    candidates.add(field="price", numbers=pb.Numbers(values=[9.99, 4.50, float("nan")]))  # NaN: missing
    return message


def main(target: str, endpoint: str) -> None:
    """Rank, show all, report a click on the best."""
    # A proxy that the environment names is not for this machine.
    direct = [("grpc.enable_http_proxy", 0)] if target.startswith(("127.0.0.1:", "localhost:")) else []
    with grpc.insecure_channel(target, options=direct) as channel:
        baton = ranking_pb2_grpc.RankingServiceStub(channel)
        answer = baton.Rank(request(endpoint), timeout=1.0)
        print(f"{answer.arm} {answer.bundle} {answer.version}: {list(answer.scores)}")
        best = max(range(len(answer.scores)), key=answer.scores.__getitem__)
        said = pb.PredictionFeedback(prediction_id=answer.prediction_id, exposed_all=True)
        said.outcomes.add(index=best, label=1.0, final=True)
        reply = baton.Feedback(pb.FeedbackRequest(predictions=[said]), timeout=1.0)
        print([pb.Status.Name(status) for status in reply.results[0].outcomes])  # ACCEPTED: it is on disk


if __name__ == "__main__":
    main(*sys.argv[1:3])

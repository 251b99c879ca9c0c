"""Python client of Baton: ranks candidates and sends labels, with features and typed errors.

`AsyncRankingClient` and `RankingClient` differ only in `await`. Both spread calls over several connections, repeat calls
that no server has taken, within a budget, and raise the exceptions of `pipeline.errors`. Ids are hashed by the caller
(`pipeline.hashing`), so requests are a few packed arrays. A label is on disk once `feedback` has returned.

`serving.client.testing` has a server for tests of callers. How to use the client: docs/client.md.
"""

from serving.client.aio import AsyncRankingClient
from serving.client.elsewhere import Assignment, ObservedAnswer, ObservedResult
from serving.client.failures import error_of
from serving.client.messages import RankResult, feedback_request, rank_request
from serving.client.options import Options, Retry, Tls
from serving.client.sync import RankingClient

__all__ = [
    "Assignment",
    "AsyncRankingClient",
    "ObservedAnswer",
    "ObservedResult",
    "Options",
    "RankResult",
    "RankingClient",
    "Retry",
    "Tls",
    "error_of",
    "feedback_request",
    "rank_request",
]

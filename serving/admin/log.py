"""Traffic log verbs of the control process: forgetting a user."""

from __future__ import annotations

from pipeline.errors import Conflict, NotFound
from pipeline.traffic.record import unpack
from serving.admin import answers as a
from serving.admin import requests as r
from serving.admin.service import Service
from serving.config.principal import Principal
from serving.rollout.routing_key import RoutingHash

__all__ = ["LogVerbs"]


class LogVerbs(Service):
    """Verbs of the traffic log."""

    def forget(self, request: r.LogForget, by: Principal) -> a.Forgotten:
        """Delete all records of a user, named by routing key or by one of the user's predictions.

        The audit has the caller, the reason and the number of records, not the user: that would be a record of the user.

        Raises:
            NotFound: the log has no such prediction. Conflict: it has no routing key, so the user's other predictions are
                unknown.
        """
        if request.routing_key:
            hashed = RoutingHash(self._secret)(request.routing_key)
        else:
            hashed = self._user_of(request.prediction_id)
        deleted = self._traffic.forget(hashed, self._clock.wall_ms())
        named = "routing_key" if request.routing_key else "prediction_id"
        self._store.note("log-forget", self._who(by, request), {"named_by": named, "predictions": deleted})
        return a.Forgotten(predictions=deleted)

    def _user_of(self, prediction_id: str) -> int:
        found = self._traffic.records([prediction_id.lower()])
        if not found:
            raise NotFound("the traffic log has no such prediction; it may have gone by retention already")
        hashed = unpack(next(iter(found.values()))).routing_hash
        if not hashed:
            raise Conflict(
                "that prediction was made without a routing key, so the user's other predictions are unknown; it goes with "
                "traffic.retention"
            )
        return hashed

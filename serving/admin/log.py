"""Traffic log verbs of the control process: forgetting a user."""

from __future__ import annotations

from pipeline.clock import Clock
from pipeline.errors import Conflict, NotFound
from pipeline.traffic.log import TrafficLog
from pipeline.traffic.record import unpack
from serving.admin import answers as a
from serving.admin import requests as r
from serving.config import Config
from serving.config.principal import Principal
from serving.rollout.routing_key import RoutingHash
from serving.rollout.store import ControlStore, Who
from serving.wiring.state import installation_secret

__all__ = ["LogVerbs"]


class LogVerbs:
    """See `serving.admin.verbs`; every method is the verb of its name."""

    def __init__(self, config: Config, store: ControlStore, traffic: TrafficLog, clock: Clock) -> None:
        self._config = config
        self._store = store
        self._traffic = traffic
        self._clock = clock

    def forget(self, request: r.LogForget, by: Principal) -> a.Forgotten:
        """Delete all records of a user, named by routing key or by one of the user's predictions.

        The audit has the caller, the reason and the number of records, not the user: that would be a record of the user.

        Raises:
            NotFound: the log has no such prediction. Conflict: it has no routing key, so the user's other predictions are
                unknown.
        """
        if request.routing_key:
            hashed = RoutingHash(installation_secret(self._config))(request.routing_key)
        else:
            hashed = self._user_of(request.prediction_id)
        deleted = self._traffic.forget(hashed, self._clock.wall_ms())
        named = "routing_key" if request.routing_key else "prediction_id"
        who = Who(by.name, request.reason, self._clock.wall_ms())
        self._store.note("log-forget", who, {"named_by": named, "predictions": deleted})
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

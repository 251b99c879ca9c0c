"""Traffic log verbs of the control process: forgetting a user, holding a user's records, exporting rows."""

from __future__ import annotations

from pipeline.errors import Conflict, InvalidInput, NotFound
from pipeline.traffic.record import unpack
from serving.admin import answers as a
from serving.admin import requests as r
from serving.admin.bulk import BulkAnswer, BulkAnswers
from serving.admin.service import Parts, Service
from serving.config.principal import Principal
from serving.rollout.routing_key import RoutingHash
from serving.rollout.status.holds import HOLDS, Hold, holds_of, key_name

__all__ = ["LogVerbs"]


class LogVerbs(Service):
    """Verbs of the traffic log."""

    def __init__(self, parts: Parts, bulk: BulkAnswers) -> None:
        super().__init__(parts)
        self._bulk = bulk

    def forget(self, request: r.LogForget, by: Principal) -> a.Forgotten:
        """Delete all records of a user, named by routing key or by one of the user's predictions.

        The audit has the caller, the reason and the number of records, not the user: that would be a record of the user.

        Raises:
            NotFound: the log has no such prediction. Conflict: it has no routing key, so the user's other predictions are
                unknown; or the records are held.
        """
        hashed = self._hashed(request.routing_key, request.prediction_id)
        if held := holds_of(self._store).get(hashed):
            raise Conflict(
                f"the records of key {key_name(hashed)} are {held}; nothing was deleted. `baton log release --key "
                f"{key_name(hashed)}` ends the hold"
            )
        deleted = self._traffic.forget(hashed, self._clock.wall_ms())
        named = "routing_key" if request.routing_key else "prediction_id"
        self._store.note("log-forget", self._who(by, request), {"named_by": named, "predictions": deleted})
        return a.Forgotten(predictions=deleted)

    def hold(self, request: r.LogHold, by: Principal) -> a.Hold:
        """Keep all records of a user, present and future, from retention and from being forgotten. The key is kept as its
        hash alone.

        Raises:
            Conflict: they are held already. See also `forget`.
        """
        hashed = self._hashed(request.routing_key, request.prediction_id)
        with self._lock:
            holds = dict(holds_of(self._store))
            if held := holds.get(hashed):
                raise Conflict(f"key {key_name(hashed)} is already {held}")
            made = holds[hashed] = Hold(by.name, request.reason, self._clock.wall_ms())
            self._put(holds, "log-hold", by, request)
        return _answer(hashed, made)

    def holds(self, request: r.Nothing, by: Principal) -> a.HoldList:
        """All holds, oldest first."""
        found = sorted(holds_of(self._store).items(), key=lambda entry: (entry[1].since_ms, entry[0]))
        return a.HoldList(holds=[_answer(*entry) for entry in found])

    def release(self, request: r.LogRelease, by: Principal) -> a.Hold:
        """End a hold; retention removes what it has kept at its next pass. Raises: NotFound: there is no such hold."""
        hashed = int(request.key, 16) if request.key else self._hashed(request.routing_key, request.prediction_id)
        with self._lock:
            holds = dict(holds_of(self._store))
            if hashed not in holds:
                raise NotFound(f"key {key_name(hashed)} is not held; `baton log holds` lists those that are")
            ended = holds.pop(hashed)
            self._put(holds, "log-release", by, request)
        return _answer(hashed, ended)

    def export(self, request: r.LogExport, by: Principal) -> BulkAnswer:
        """Labelled rows as a Parquet file. The audit has who asked for which rows, before the first byte.

        Raises:
            NotFound: no such endpoint. InvalidInput: the times are in the wrong order. Overloaded: another one is being made.
        """
        if request.endpoint:
            self._store.endpoint(request.endpoint)
        if request.since_ms is not None and request.until_ms is not None and request.since_ms >= request.until_ms:
            raise InvalidInput("until_ms: must be after since_ms", "until_ms")
        fields = request.model_dump(exclude={"reason"})
        told = {name: value for name, value in fields.items() if value not in (None, "", [])}
        return self._bulk.begin(
            "export", by.name, fields, lambda: self._store.note("log-export", self._who(by, request), told)
        )

    def _hashed(self, routing_key: str, prediction_id: str) -> int:
        return RoutingHash(self._secret)(routing_key) if routing_key else self._user_of(prediction_id)

    def _put(self, holds: dict[int, Hold], verb: str, by: Principal, request: r.Mutation) -> None:
        setting = HOLDS, {key_name(hashed): hold.to_json() for hashed, hold in holds.items()}
        self._store.note(verb, self._who(by, request), {"holds": len(holds)}, setting=setting)

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


def _answer(hashed: int, hold: Hold) -> a.Hold:
    return a.Hold(key=key_name(hashed), **hold.to_json())

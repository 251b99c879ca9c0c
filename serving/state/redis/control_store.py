"""Control store in a Redis that several machines share, which must evict nothing and keep an append-only file.

    control:format       of what is stored, 1
    control:identity     of this state, which every home that shares it knows (`serving.rollout.identity`)
    control:version      number of changes; each watches it, so of two at once one is repeated
    control:fence        the highest token of a lead (`serving.state.leader`)
    control:endpoints    name -> endpoint; control:active: endpoint -> its active rollout
    control:rollouts     id -> rollout without status; control:order: ids as they were started; control:status: id -> status
    control:sums         id -> packed sums of its evidence; control:audit-basis: number -> those that a verdict rests on
    control:settings     name -> setting of the installation
    control:audit        a stream; its ids, which only grow, are the numbers of the entries
    control:audit:NAME   the numbers of the entries about one endpoint

A change is read, checked and queued in this process, and takes effect in one MULTI/EXEC. So a process that dies at any
point has written all of it or nothing. Every read and every change looks at the identity, so that none is of a Redis that was
emptied or replaced since.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from dataclasses import replace as replaced
from typing import Any, TypeVar

import redis
from pydantic import TypeAdapter
from redis.client import Pipeline

from pipeline.errors import Conflict, InvalidInput, NotReady
from pipeline.redis.address import RedisAddress
from pipeline.redis.connections import asking
from pipeline.redis.durable import require_durable
from pipeline.redis.foreign import load_json, parsing, whole_number
from serving.rollout.document import StateDocument
from serving.rollout.identity import HomeIdentity, new_identity, shown_identity
from serving.rollout.routing import OBSERVED, Endpoint
from serving.rollout.spec import Rollout
from serving.rollout.state import RolloutState
from serving.rollout.store import AuditEntry, ControlStore, LeadLost, StoredRollout, Transaction, Who
from serving.state.redis.leader import FENCE
from serving.state.redis.owner import IDENTITY
from serving.state.redis.tenure import place_of

__all__ = ["RedisControlStore"]

T = TypeVar("T")

FORMAT_VERSION = 1
_TRIES = 100
_MOST_AUDITED_ENTRIES = 1 << 62
_INTEGER_MASK = (1 << 63) - 1  # the largest of 64 bits
_MOST_NAME_LETTERS = 80
_MOST_SKIPPED_COUNT = 1000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_STATE = TypeAdapter(RolloutState)
_AUDITED = TypeAdapter(AuditEntry)
_PREFIX = "control:"
_FORMAT, _VERSION, _ENDPOINTS, _ACTIVE, _ROLLOUTS, _ORDER, _STATUS, _AUDIT, _SUMS = (
    _PREFIX + name
    for name in ("format", "version", "endpoints", "active", "rollouts", "order", "status", "audit", "sums")
)
_BASIS = _PREFIX + "audit-basis"
_ONCE, _SECRET, _LEAD = (_PREFIX + name for name in ("once:*", "secret", "lead"))
_RESTORE_CHANGES, _RESTORE_TOKENS = 1 << 20, 1 << 20
"""Added to the last known number when a store is filled: nobody has seen a higher one."""
_SETTINGS = _PREFIX + "settings"

log = logging.getLogger(__name__)


class RedisControlStore(ControlStore):
    """Endpoints, rollouts and audit of all machines that name the same Redis.

    Args:
        timeout: seconds without an answer after which a call fails.
        identity: that the home knows; None: whatever is there is the state.

    Raises:
        InvalidInput: this Redis may lose data, or a newer Baton wrote its content.
        NotReady: it cannot be reached now; all methods raise it.
    """

    _identity: HomeIdentity | None = None

    def __init__(self, address: RedisAddress, timeout: float = 5.0, identity: HomeIdentity | None = None) -> None:
        super().__init__()
        self.url = address.url
        self._identity = identity
        self._client = address.client(timeout)
        self._skipped: set[Any] = set()
        try:
            require_durable(self._client, self._what, "rollouts and their audit")
            with asking(self._what):
                found = _number(_FORMAT, self._client.get(_FORMAT), FORMAT_VERSION)
            if found > FORMAT_VERSION:
                raise InvalidInput(
                    f"state {self.url} was written by a newer Baton (format {found}; this one knows {FORMAT_VERSION}): upgrade "
                    "this installation, or name an empty database",
                    "state.url",
                )
            if identity is None or not identity.known:
                with asking(self._what):
                    self._client.set(_FORMAT, FORMAT_VERSION, nx=True)
                if identity is not None:
                    identity.adopt(self.identify())
        except BaseException:
            self._client.close()
            raise

    @property
    def _what(self) -> str:
        return f"state {self.url}"

    def identify(self) -> str:
        """The identity of the Redis, given to it now where it has none."""
        with asking(self._what):
            found: Any = self._client.get(IDENTITY)
            if found is None:
                self._client.set(IDENTITY, new_identity(), nx=True)
                found = self._client.get(IDENTITY)
        return bytes(found or b"").decode(errors="replace")

    def close(self) -> None:
        self._client.close()

    def _ask(self, *commands: Sequence[Any]) -> list[Any]:
        """Answers of the Redis that the home knows: it has its identity before and after them.

        Not in a transaction, in which a Redis without memory refuses even reads.

        Raises:
            StateLost: it is not that Redis. NotReady: it cannot be reached.
        """
        with asking(self._what), self._client.pipeline(transaction=False) as pipe:
            for command in (("GET", IDENTITY), *commands, ("GET", IDENTITY)):
                pipe.execute_command(*command)  # type: ignore[no-untyped-call]
            first, *found, last = pipe.execute()
        if self._identity is not None:
            for identity in (first, last):
                self._identity.check(identity, self._what)
        return found

    def data_version(self) -> int:
        (found,) = self._ask(("GET", _VERSION))
        return _number(_VERSION, found)

    def endpoints(self) -> dict[str, Endpoint]:
        (found,) = self._ask(("HGETALL", _ENDPOINTS))
        return _endpoints(found)

    def find_endpoint(self, name: str) -> Endpoint | None:
        (found,) = self._ask(("HGET", _ENDPOINTS, name))
        return _endpoint(name.encode(), found)

    def rollouts(self, *, active: bool = False, endpoint: str = "") -> list[StoredRollout]:
        (ids,) = self._ask(("HVALS", _ACTIVE) if active else ("LRANGE", _ORDER, 0, -1))
        found = self._read(ids, skip=True)
        found.sort(key=lambda stored: stored.created_ms)  # stable: else as they were started
        return [s for s in found if (s.state.active or not active) and endpoint in ("", s.spec.endpoint)]

    def find_rollout(self, name: str) -> StoredRollout | None:
        (owner,) = self._ask(("HGET", _ACTIVE, name))
        direct = self._read([name]) or self._read([] if owner is None else [owner])
        if direct:
            return direct[0]
        of_endpoint = self.rollouts(endpoint=name)
        return next((s for s in of_endpoint if s.state.active), of_endpoint[-1] if of_endpoint else None)

    def audit(self, endpoint: str = "", after: int = 0, limit: int = 1000) -> list[AuditEntry]:
        start = f"({after}-0" if after > 0 else "-"
        return self._audit(endpoint, lambda stream: ("XRANGE", stream, start, "+", "COUNT", limit))

    def latest_audit(self, endpoint: str = "", before: int | None = None, limit: int = 1000) -> list[AuditEntry]:
        end = "+" if before is None else f"({before}-0"
        return self._audit(endpoint, lambda stream: ("XREVRANGE", stream, end, "-", "COUNT", limit))

    def _audit(self, endpoint: str, command: Callable[[str], Sequence[Any]]) -> list[AuditEntry]:
        """Entries of a range of the audit; those of one endpoint through its own stream."""
        if not endpoint:
            return [_entry(entry) for entry in self._ask(command(_AUDIT))[0]]
        (numbers,) = self._ask(command(f"{_AUDIT}:{endpoint}"))
        entries = self._ask(*(("XRANGE", _AUDIT, number, number) for number, _ in numbers))
        return [_entry(found[0]) for found in entries if found]

    def sums(self, rollout: str) -> bytes | None:
        return _bytes(self._ask(("HGET", _SUMS, rollout))[0])

    def audit_basis(self, seq: int) -> bytes | None:
        return _bytes(self._ask(("HGET", _BASIS, str(seq)))[0])

    def setting(self, name: str) -> dict[str, Any]:
        (raw,) = self._ask(("HGET", _SETTINGS, name))
        return _setting(name, raw)

    def document(self, *, whole: bool = False) -> StateDocument:
        version, endpoints, settings, fence, last = self._ask(
            ("GET", _VERSION),
            ("HGETALL", _ENDPOINTS),
            ("HGETALL", _SETTINGS),
            ("GET", FENCE),
            ("XREVRANGE", _AUDIT, "+", "-", "COUNT", 1),
        )
        known = _endpoints(endpoints)
        (identity, *places) = self._ask(("GET", IDENTITY), *(("GET", place_of(name)) for name in known))
        made = StateDocument(
            identity=bytes(identity or b"").decode(errors="replace"),
            version=_number(_VERSION, version),
            endpoints=known,
            rollouts=[replaced(stored, status={}) for stored in self.rollouts(active=not whole)],
            settings={name.decode(errors="replace"): _setting(str(name), raw) for name, raw in settings.items()},
            fence=_number(FENCE, fence),
            audit_seq=_entry(last[0]).seq if last else 0,
            places={
                name: place.decode(errors="replace")
                for name, place in zip(known, places, strict=True)
                if isinstance(place, bytes)
            },
        )
        if not whole:
            return made
        audit, after = [], 0
        while page := self.audit(after=after):
            audit += page
            after = page[-1].seq
        sums, bases = self._ask(("HGETALL", _SUMS), ("HGETALL", _BASIS))
        return replaced(
            made,
            audit=audit,
            sums={name.decode(errors="replace"): packed for name, packed in sums.items()},
            bases={int(seq): packed for seq, packed in bases.items()},
        )

    def fill(self, document: StateDocument, who: Who, evidence: Mapping[str, Any], *, replace: bool = False) -> None:
        entry = self.restored_entry(document, who, evidence)
        with asking(self._what), self._client.pipeline() as pipe:
            pipe.watch(IDENTITY, _VERSION)  # type: ignore[no-untyped-call]
            found = bytes(pipe.get(IDENTITY) or b"").decode(errors="replace")  # type: ignore[arg-type]
            if found == document.identity:
                raise Conflict(f"{self._what} is there and is this home's: there is nothing to restore")
            if found and not replace:
                raise Conflict(
                    f"{self._what} is another's, {shown_identity(found)}: --replace removes what it holds, `baton state adopt` "
                    "follows it"
                )
            of_endpoints = [key for pattern in (f"{_AUDIT}:*", _ONCE) for key in pipe.scan_iter(pattern)]
            tx = _Transaction(pipe)
            for endpoint in document.endpoints.values():
                tx.put_endpoint(endpoint)
            for stored in document.rollouts:
                tx.insert_rollout(stored)
            for name, body in document.settings.items():
                tx.put_setting(name, body)
            for name, packed in document.sums.items():
                tx.put_sums(name, packed)
            for kept in (*document.audit, entry):
                tx.append_audit(kept, document.bases.get(kept.seq), seq=kept.seq)
            pipe.multi()
            pipe.delete(
                *(_FORMAT, _VERSION, _ENDPOINTS, _ACTIVE, _ROLLOUTS, _ORDER, _STATUS, _AUDIT, _SUMS, _BASIS, _SETTINGS),
                *(_SECRET, _LEAD, FENCE, *of_endpoints),
            )
            for command in tx.commands:
                pipe.execute_command(*command)  # type: ignore[no-untyped-call]
            for name, place in document.places.items():
                pipe.set(place_of(name), place)
            pipe.set(_FORMAT, FORMAT_VERSION)
            pipe.set(FENCE, document.fence + _RESTORE_TOKENS)
            pipe.set(_VERSION, document.version + _RESTORE_CHANGES)
            pipe.set(IDENTITY, document.identity)
            try:
                pipe.execute()
            except redis.WatchError:
                raise NotReady(f"{self._what} was changed by another process meanwhile: look, and try again") from None

    def transact(self, change: Callable[[Transaction], T]) -> T:
        token = getattr(self._fence, "token", None)
        for _ in range(_TRIES):
            with asking(self._what), self._client.pipeline() as pipe:
                pipe.watch(_VERSION, FENCE, IDENTITY)  # type: ignore[no-untyped-call]
                if self._identity is not None:
                    self._identity.check(pipe.get(IDENTITY), self._what)
                if token is not None and token != _number(FENCE, pipe.get(FENCE)):
                    raise LeadLost("another control process has the lead by now; nothing was written")
                tx = _Transaction(pipe)
                result = change(tx)
                pipe.multi()
                for command in tx.commands:
                    pipe.execute_command(*command)  # type: ignore[no-untyped-call]
                pipe.incr(_VERSION)
                try:
                    pipe.execute()
                except redis.WatchError:
                    continue  # another process was faster: read again
                return result
        raise NotReady(f"state {self.url} changes faster than this process can write to it")

    def _read(self, ids: Sequence[Any], *, skip: bool = False) -> list[StoredRollout]:
        """Rollouts by id. `skip`: pass over those that Baton did not write, so that the others go on."""
        if not ids:
            return []
        bodies, statuses = self._ask(("HMGET", _ROLLOUTS, *ids), ("HMGET", _STATUS, *ids))
        found = []
        with parsing(_ROLLOUTS):
            stored = list(zip(ids, bodies, statuses, strict=True))
        for name, body, status in stored:
            try:
                found += [] if body is None else [_rollout(name, body, status)]
            except NotReady as error:
                if not skip:
                    raise
                if name not in self._skipped and len(self._skipped) < _MOST_SKIPPED_COUNT:
                    self._skipped.add(name)
                    log.error("a rollout is passed over: %s", error)
        return found


class _Transaction:
    """Reads at once, under the watch; collects writes in `commands`."""

    def __init__(self, pipe: Pipeline) -> None:
        self._pipe = pipe
        self.commands: list[tuple[Any, ...]] = []

    def endpoint(self, name: str) -> Endpoint | None:
        return _endpoint(name.encode(), self._pipe.hget(_ENDPOINTS, name))

    def owner(self, endpoint: str) -> str | None:
        found: Any = self._pipe.hget(_ACTIVE, endpoint)
        with parsing(f"{_ACTIVE}, endpoint {endpoint},"):
            return None if found is None else str(found.decode())

    def rollout_version(self, rollout: str) -> int | None:
        found: Any = self._pipe.hget(_ROLLOUTS, rollout)
        return None if found is None else _rollout(rollout, found, None).resource_version

    def put_endpoint(self, endpoint: Endpoint) -> None:
        self.commands.append(("HSET", _ENDPOINTS, endpoint.name, endpoint.model_dump_json()))

    def insert_rollout(self, made: StoredRollout) -> None:
        self.commands.append(("RPUSH", _ORDER, made.id))
        self.update_rollout(made)

    def update_rollout(self, saved: StoredRollout) -> None:
        body = {
            "id": saved.id,
            "spec": saved.spec.model_dump_json(),
            "state": saved.state.to_json(),
            "created_ms": saved.created_ms,
            "resource_version": saved.resource_version,
        }
        self.commands.append(("HSET", _ROLLOUTS, saved.id, json.dumps(body)))
        if saved.state.active:
            self.commands.append(("HSET", _ACTIVE, saved.spec.endpoint, saved.id))
        elif self.owner(saved.spec.endpoint) == saved.id:
            self.commands.append(("HDEL", _ACTIVE, saved.spec.endpoint))

    def put_status(self, rollout: str, status: Mapping[str, Any]) -> None:
        self.commands.append(("HSET", _STATUS, rollout, json.dumps(status)))

    def put_sums(self, rollout: str, packed: bytes) -> None:
        self.commands.append(("HSET", _SUMS, rollout, packed))

    def put_setting(self, name: str, body: Mapping[str, Any]) -> None:
        self.commands.append(("HSET", _SETTINGS, name, json.dumps(body)))

    def append_audit(self, entry: AuditEntry, basis: bytes | None = None, *, seq: int | None = None) -> None:
        """`seq`: its number, where it is not the next one."""
        seq = self._next_seq() if seq is None else seq
        body = {key: value for key, value in asdict(entry).items() if key != "seq"}
        self.commands.append(("XADD", _AUDIT, f"{seq}-0", "entry", json.dumps(body)))
        if entry.endpoint:
            self.commands.append(("XADD", f"{_AUDIT}:{entry.endpoint}", f"{seq}-0", "at", ""))
        if basis is not None:
            self.commands.append(("HSET", _BASIS, str(seq), basis))

    def _next_seq(self) -> int:
        last: Any = self._pipe.xrevrange(_AUDIT, count=1)
        before = int(bytes(last[0][0]).partition(b"-")[0]) if last else 0
        if before >= _MOST_AUDITED_ENTRIES:  # the entry would be refused where the rest of the change is written
            raise NotReady(f"{_AUDIT} holds what Baton did not write (an entry {before}); remove it")
        return before + 1 + sum(1 for command in self.commands if command[:2] == ("XADD", _AUDIT))


def _bytes(raw: Any) -> bytes | None:
    return raw if isinstance(raw, bytes) else None


def _number(key: str, raw: Any, default: int = 0) -> int:
    with parsing(key):
        return whole_number(raw, default)


def _setting(name: str, raw: Any) -> dict[str, Any]:
    with parsing(f"{_SETTINGS}, {name[:_MOST_NAME_LETTERS]},"):
        return dict(load_json(raw)) if raw else {}


def _endpoints(found: Any) -> dict[str, Endpoint]:
    with parsing(_ENDPOINTS):
        endpoints = (_endpoint(name, found[name]) for name in sorted(found))
        return {endpoint.name: endpoint for endpoint in endpoints if endpoint is not None}


def _endpoint(name: bytes, body: Any) -> Endpoint | None:
    """An endpoint: lanes look for files by its name and load bundles by theirs, so all are plain names."""
    if body is None:
        return None
    with parsing(f"{_ENDPOINTS}, endpoint {name[:_MOST_NAME_LETTERS]!r},"):
        endpoint = Endpoint.model_validate_json(body)
        arms = [arm.bundle.removeprefix(OBSERVED) for arm in (endpoint.stable, endpoint.candidate) if arm is not None]
        if endpoint.name.encode() != name or not all(map(_NAME.fullmatch, (endpoint.name, *arms))):
            raise ValueError("a name in it is none of an endpoint or a bundle")
        whole_number(str(endpoint.resource_version))
        return endpoint


def _rollout(name: Any, body: Any, status: Any) -> StoredRollout:
    named = name.encode() if isinstance(name, str) else bytes(name)
    with parsing(f"{_ROLLOUTS}, rollout {named[:_MOST_NAME_LETTERS]!r},"):
        found = load_json(body)
        made = StoredRollout(
            id=found["id"],
            spec=Rollout.model_validate_json(found["spec"]),
            state=_STATE.validate_python(found["state"]),
            created_ms=found["created_ms"],
            resource_version=found["resource_version"],
        )
        spec, state = made.spec, made.state
        if made.id.encode() != named or not _NAME.fullmatch(spec.endpoint):
            raise ValueError("it has another name")
        if not (0 <= state.step < len(spec.steps) and 0 <= state.weight <= 100):
            raise ValueError("its step or its weight is none")
        if type(made.created_ms) is not int or type(made.resource_version) is not int:
            raise TypeError("its time or its version is no number")
    return replaced(made, status=_status(status))


def _status(raw: Any) -> dict[str, Any]:
    """Why a rollout waits; it is for display, so of another form it is nothing."""
    with suppress(NotReady), parsing(_STATUS):
        found = load_json(raw) if raw else {}
        return found if isinstance(found, dict) else {}
    return {}


def _entry(entry: Any) -> AuditEntry:
    """An entry of the audit; what Baton did not write is shown as that, in its place."""
    number, fields = entry
    seq = min(int(bytes(number).partition(b"-")[0]), _INTEGER_MASK)
    try:
        with parsing(f"{_AUDIT}, entry {seq},"):
            return _AUDITED.validate_python({**load_json(fields[b"entry"]), "seq": seq})
    except NotReady as error:
        return AuditEntry(seq, 0, "", "", "unknown", str(error), "unreadable", {}, {}, {})

"""Control store: endpoints, rollouts and the audit. This is the part that all its backends share.

The control process writes it, the lanes poll it (`data_version` is one cheap call). A change and its audit entry are one
transaction. A writer names the resource version that it read; if the stored one is another, the change is refused. Read
next: `sqlite_store` (a file), `serving.state.redis.control_store` (shared by machines).
"""

from __future__ import annotations

import secrets
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from pipeline.errors import Conflict, NotFound, NotReady, StaleVersion
from serving.rollout.document import AuditEntry, StateDocument, StoredRollout
from serving.rollout.routing import Endpoint
from serving.rollout.spec import Rollout
from serving.rollout.state import Abort, Cause, Complete, Pause, Phase, RolloutState, SetWeight, StepBack, Undo

__all__ = ["AuditEntry", "ControlStore", "LeadLost", "StoredRollout", "Transaction", "Who", "brief", "check_version"]

T = TypeVar("T")

_CAUSE_ENTRIES = 1000
_CAUSING = {
    Phase.PAUSED: (Pause.verb, SetWeight.verb, StepBack.verb),
    Phase.DEGRADED: (StepBack.verb,),
    Phase.COMPLETED: (Complete.verb,),
    Phase.ABORTED: (Abort.verb,),
    Phase.UNDONE: (Undo.verb,),
}
"""Verbs that bring a rollout into a phase."""


class LeadLost(NotReady):
    """A write by a process that is no longer the leader."""


@dataclass(frozen=True, slots=True)
class Who:
    """Author of a change, the reason and the time (Unix milliseconds)."""

    actor: str
    reason: str
    time_ms: int


class Transaction(Protocol):
    """Reads and writes that take effect together or not at all. It checks nothing; `ControlStore` does."""

    def endpoint(self, name: str) -> Endpoint | None:
        """An endpoint as stored."""

    def owner(self, endpoint: str) -> str | None:
        """Id of the active rollout of an endpoint."""

    def rollout_version(self, rollout: str) -> int | None:
        """Resource version of a rollout."""

    def put_endpoint(self, endpoint: Endpoint) -> None:
        """Create or replace."""

    def insert_rollout(self, made: StoredRollout) -> None:
        """A new, active one."""

    def update_rollout(self, saved: StoredRollout) -> None:
        """Replace state and resource version."""

    def put_status(self, rollout: str, status: Mapping[str, Any]) -> None:
        """Replace what a rollout waits for."""

    def put_sums(self, rollout: str, packed: bytes) -> None:
        """Replace the sums of a rollout's evidence."""

    def put_setting(self, name: str, body: Mapping[str, Any]) -> None:
        """Replace a setting of the installation; an empty one is none."""

    def append_audit(self, entry: AuditEntry, basis: bytes | None = None) -> None:
        """Append an entry under the next number; the number in `entry` is ignored. `basis`: sums that it rests on."""


class ControlStore(ABC):
    """Store of endpoints, rollouts and the audit. Safe for several threads and processes.

    All methods raise NotReady where the store cannot be reached, and StateLost, which is one, where it is not the state that
    its home knows (`serving.rollout.identity`).
    """

    def __init__(self) -> None:
        self._fence = threading.local()

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""

    @abstractmethod
    def data_version(self) -> int:
        """Number that changes with every write by any process; cheap to read."""

    @abstractmethod
    def endpoints(self) -> dict[str, Endpoint]:
        """All endpoints by name."""

    @abstractmethod
    def find_endpoint(self, name: str) -> Endpoint | None:
        """Endpoint by name, or None."""

    @abstractmethod
    def rollouts(self, *, active: bool = False, endpoint: str = "") -> list[StoredRollout]:
        """Rollouts in the order of their start; only `active` ones, only those of one `endpoint`."""

    @abstractmethod
    def find_rollout(self, name: str) -> StoredRollout | None:
        """A rollout by id, or an endpoint's: the active one, else the newest."""

    @abstractmethod
    def audit(self, endpoint: str = "", after: int = 0, limit: int = 1000) -> list[AuditEntry]:
        """Entries with seq > after, oldest first."""

    @abstractmethod
    def latest_audit(self, endpoint: str = "", before: int | None = None, limit: int = 1000) -> list[AuditEntry]:
        """Entries with seq < before (None: all), newest first."""

    @abstractmethod
    def sums(self, rollout: str) -> bytes | None:
        """Packed sums of a rollout's evidence as they were stored last, None without."""

    @abstractmethod
    def audit_basis(self, seq: int) -> bytes | None:
        """Packed sums that the verdict of an audit entry rests on, None without."""

    @abstractmethod
    def setting(self, name: str) -> dict[str, Any]:
        """A setting of the installation; empty without one."""

    @abstractmethod
    def document(self, *, whole: bool = False) -> StateDocument:
        """What the store holds: endpoints, active rollouts, settings. `whole`: with ended rollouts, audit and sums."""

    @abstractmethod
    def fill(self, document: StateDocument, who: Who, evidence: Mapping[str, Any], *, replace: bool = False) -> None:
        """Make a document the content of a store that is lost, with its identity and an audit entry.

        Args:
            evidence: of the audit entry, its verb is `restore_state`. replace: also where the store is another's.

        Raises:
            Conflict: the store has the document's identity, so it is not lost; or it is another's and `replace` is not set.
        """

    @abstractmethod
    def transact(self, change: Callable[[Transaction], T]) -> T:
        """Run a change in a transaction. It may run again where another process was faster, so it must keep no state.

        Raises:
            LeadLost: see `fenced`.
        """

    @contextmanager
    def fenced(self, token: int | None) -> Iterator[None]:
        """Context in which a write of this thread raises LeadLost, and writes nothing, once another process is leader.

        Args:
            token: fencing token of this process, see `serving.state.leader.Lead`.
        """
        self._fence.token = token
        try:
            yield
        finally:
            self._fence.token = None

    # Endpoints

    def endpoint(self, name: str) -> Endpoint:
        """One endpoint.

        Raises:
            NotFound: there is none of that name.
        """
        found = self.find_endpoint(name)
        if found is None:
            raise NotFound(f"endpoint {name!r} is not known")
        return found

    def put_endpoint(
        self,
        endpoint: Endpoint,
        who: Who,
        expected: int | None = None,
        verb: str = "set_endpoint",
        *,
        owned: bool = False,
    ) -> Endpoint:
        """Create or replace an endpoint; returns the stored one, with its new resource version.

        Args:
            expected: resource version that the writer read, 0: it must not exist, None: any.
            owned: also where a rollout owns the endpoint.

        Raises:
            StaleVersion: the stored resource version is another.
            Conflict: a rollout owns the endpoint, and the change touches its arms or weight.
        """

        def change(tx: Transaction) -> Endpoint:
            stored = tx.endpoint(endpoint.name)
            version = stored.resource_version if stored else 0
            check_version(f"endpoint {endpoint.name!r}", version, expected)
            if stored is not None and not owned and tx.owner(endpoint.name) and _routes(stored) != _routes(endpoint):
                raise Conflict(
                    f"a rollout owns the arms and the weight of {endpoint.name!r}; use its verbs or abort it"
                )
            saved = _put(tx, endpoint, version)
            before = stored.model_dump() if stored else {}
            tx.append_audit(_entry(saved.name, "", who, verb, {"endpoint": before}, {"endpoint": saved.model_dump()}))
            return saved

        return self.transact(change)

    # Rollouts

    def rollout(self, name: str) -> StoredRollout:
        """A rollout by id, or the active, else the newest one of the endpoint of that name.

        Raises:
            NotFound: there is none.
        """
        found = self.find_rollout(name)
        if found is None:
            raise NotFound(f"no rollout and no endpoint with a rollout is called {name!r}")
        return found

    def start_rollout(self, spec: Rollout, state: RolloutState, endpoint: Endpoint, who: Who) -> StoredRollout:
        """Store a new rollout and the endpoint that goes with it.

        Raises:
            Conflict: the endpoint has an active rollout.
            StaleVersion: the endpoint changed since it was read.
        """
        made = StoredRollout(f"{spec.endpoint}-{secrets.token_hex(4)}", spec, state, who.time_ms, 1)

        def change(tx: Transaction) -> StoredRollout:
            if tx.owner(spec.endpoint):
                raise Conflict(f"endpoint {spec.endpoint!r} has an active rollout; abort it or wait for its end")
            before = _fresh(tx, endpoint)
            tx.insert_rollout(made)
            saved = _put(tx, endpoint, endpoint.resource_version)
            after = {"endpoint": saved.model_dump(), "state": brief(state), "spec": spec.model_dump(mode="json")}
            tx.append_audit(_entry(spec.endpoint, made.id, who, "start", {"endpoint": before.model_dump()}, after))
            return made

        return self.transact(change)

    def save_rollout(
        self,
        stored: StoredRollout,
        state: RolloutState,
        endpoint: Endpoint,
        who: Who,
        verb: str,
        evidence: Mapping[str, Any] | None = None,
        sums: bytes | None = None,
        basis: bytes | None = None,
    ) -> StoredRollout:
        """Store a rollout's next state, its endpoint and the audit entry, all or nothing.

        Args:
            stored: as it was read; its resource version must still be the stored one.
            endpoint: with the resource version that was read.
            sums: of its evidence from now on; basis: those that `evidence` was computed from.

        Raises:
            StaleVersion: one of the two changed since it was read.
        """
        saved = replace(stored, state=state, resource_version=stored.resource_version + 1)

        def change(tx: Transaction) -> StoredRollout:
            before = _fresh(tx, endpoint)
            if tx.rollout_version(stored.id) != stored.resource_version:
                raise StaleVersion(
                    f"rollout {stored.id!r} is not at resource version {stored.resource_version} any more"
                )
            tx.update_rollout(saved)
            after = endpoint
            if _body(before) != _body(endpoint):
                after = _put(tx, endpoint, endpoint.resource_version)
            tx.append_audit(
                _entry(
                    endpoint.name,
                    stored.id,
                    who,
                    verb,
                    {"endpoint": before.model_dump(), "state": brief(stored.state)},
                    {"endpoint": after.model_dump(), "state": brief(state)},
                    evidence,
                ),
                basis,
            )
            if sums is not None:
                tx.put_sums(stored.id, sums)
            return saved

        return self.transact(change)

    def put_status(self, rollout: str, status: Mapping[str, Any]) -> None:
        """Store why a rollout waits and when it looks next."""
        self.transact(lambda tx: tx.put_status(rollout, status))

    def put_sums(self, rollout: str, packed: bytes) -> None:
        """Store the sums of a rollout's evidence."""
        self.transact(lambda tx: tx.put_sums(rollout, packed))

    def put_setting(self, name: str, body: Mapping[str, Any], who: Who, verb: str) -> None:
        """Store a setting of the installation and its audit entry; an empty one is none."""
        before = self.setting(name)

        def change(tx: Transaction) -> None:
            tx.put_setting(name, body)
            tx.append_audit(_entry("", "", who, verb, {name: before}, {name: dict(body)}))

        self.transact(change)

    def keep_setting(self, name: str, body: Mapping[str, Any]) -> None:
        """Store a setting that is a process's own note and none of an operator's: it has no audit entry."""
        self.transact(lambda tx: tx.put_setting(name, body))

    # Audit

    def note(
        self,
        verb: str,
        who: Who,
        after: Mapping[str, Any],
        endpoint: str = "",
        rollout: str = "",
        setting: tuple[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Append an entry about something that changes no endpoint and no rollout, for example a token.

        Args:
            setting: name and content of a setting that is stored with it.
        """

        def change(tx: Transaction) -> None:
            if setting is not None:
                tx.put_setting(*setting)
            tx.append_audit(_entry(endpoint, rollout, who, verb, {}, dict(after)))

        self.transact(change)

    def with_cause(self, stored: StoredRollout) -> StoredRollout:
        """A rollout whose state names who brought it into its phase; a state that an older version wrote gets it from the
        audit, where that still has it."""
        if stored.state.cause is not None or stored.state.phase == Phase.PROGRESSING:
            return stored
        for entry in self.latest_audit(stored.spec.endpoint, limit=_CAUSE_ENTRIES):
            if entry.rollout == stored.id and entry.verb in _CAUSING.get(stored.state.phase, ()):
                cause = Cause(entry.verb, entry.actor, entry.reason, entry.time_ms)
                return replace(stored, state=replace(stored.state, cause=cause))
        return stored

    def restored_entry(self, document: StateDocument, who: Who, evidence: Mapping[str, Any]) -> AuditEntry:
        """Audit entry of `fill`, with the number after the last one that the document knows."""
        after = {"endpoints": {name: endpoint.model_dump() for name, endpoint in document.endpoints.items()}}
        entry = _entry("", "", who, "restore_state", {}, after, evidence)
        last = max((kept.seq for kept in document.audit), default=0)
        return replace(entry, seq=max(last, document.audit_seq) + 1)

    def audit_entry(self, seq: int) -> AuditEntry:
        """One entry.

        Raises:
            NotFound: there is none of that number.
        """
        found = self.audit(after=seq - 1, limit=1)
        if not found or found[0].seq != seq:
            raise NotFound(f"the audit has no entry {seq}")
        return found[0]


def check_version(what: str, version: int, expected: int | None) -> None:
    """Check that a resource has the version that the caller read; None: any. Raises: StaleVersion."""
    if expected is not None and expected != version:
        raise StaleVersion(f"{what} is at resource version {version}, not {expected}; read it again")


def brief(state: RolloutState) -> dict[str, Any]:
    """A state without its history."""
    data = state.to_json()
    del data["marks"]
    return data


def _fresh(tx: Transaction, endpoint: Endpoint) -> Endpoint:
    stored = tx.endpoint(endpoint.name)
    if stored is None:
        raise NotFound(f"endpoint {endpoint.name!r} is not known")
    check_version(f"endpoint {endpoint.name!r}", stored.resource_version, endpoint.resource_version)
    return stored


def _put(tx: Transaction, endpoint: Endpoint, version: int) -> Endpoint:
    # Validated again: model_copy(update=...) of a caller checks nothing.
    saved = Endpoint.model_validate({**endpoint.model_dump(), "resource_version": version + 1})
    tx.put_endpoint(saved)
    return saved


def _entry(
    endpoint: str,
    rollout: str,
    who: Who,
    verb: str,
    before: dict[str, Any],
    after: dict[str, Any],
    evidence: Mapping[str, Any] | None = None,
) -> AuditEntry:
    return AuditEntry(
        0, who.time_ms, endpoint, rollout, who.actor, who.reason, verb, before, after, dict(evidence or {})
    )


def _routes(endpoint: Endpoint) -> tuple[Any, ...]:
    return endpoint.stable, endpoint.candidate, endpoint.weight, endpoint.salt, endpoint.holdout


def _body(endpoint: Endpoint) -> dict[str, Any]:
    return endpoint.model_dump(exclude={"resource_version"})

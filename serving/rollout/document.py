"""Entries of a control store, and the document of all of them, which a file can keep and another store be filled with."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from serving.rollout.routing import Endpoint
from serving.rollout.spec import Rollout
from serving.rollout.state import Phase, RolloutState

__all__ = ["AuditEntry", "StateDocument", "StoredRollout"]


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One change: `before` and `after` are the endpoint's and the rollout's state around it."""

    seq: int
    time_ms: int
    endpoint: str
    rollout: str
    actor: str
    reason: str
    verb: str
    before: dict[str, Any]
    after: dict[str, Any]
    evidence: dict[str, Any]


@dataclass(frozen=True, slots=True)
class StoredRollout:
    """A rollout as stored. `status` has the reason why it waits; it is for display, not state, and not audited."""

    id: str
    spec: Rollout
    state: RolloutState
    created_ms: int
    resource_version: int
    status: dict[str, Any] = field(default_factory=dict)

    @property
    def waiting(self) -> str:
        """What it waits for, as its last look said; who paused it and why, as soon as that is so; why it ended, once it has."""
        state = self.state
        if not state.active:
            return f"{state.phase} {state.cause}" if state.cause else f"{state.phase}; the audit says why"
        said = str(self.status.get("reason") or "the first look is still to come")
        if state.phase != Phase.PAUSED:
            return said
        paused = f"paused {state.cause}" if state.cause else "paused; the audit says by whom"
        return said if paused in said else paused


@dataclass(frozen=True, slots=True)
class StateDocument:
    """Content of a control store at one moment.

    Args:
        identity: of the store; "": it has none. version: number of its changes, as `ControlStore.data_version`.
        rollouts: the active ones; all of a whole document. settings: by name.
        fence: highest token of a lead. audit_seq: number of the last audit entry.
        places: by endpoint, what the last worker of a shared state noted of its place.
        audit, sums, bases: of a whole document alone; packed sums by rollout, and by the audit entry that rests on them.
    """

    identity: str = ""
    version: int = 0
    endpoints: Mapping[str, Endpoint] = field(default_factory=dict)
    rollouts: Sequence[StoredRollout] = ()
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    fence: int = 0
    audit_seq: int = 0
    places: Mapping[str, str] = field(default_factory=dict)
    audit: Sequence[AuditEntry] = ()
    sums: Mapping[str, bytes] = field(default_factory=dict)
    bases: Mapping[int, bytes] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "identity": self.identity,
            "version": self.version,
            "endpoints": [endpoint.model_dump(mode="json") for endpoint in self.endpoints.values()],
            "rollouts": [
                {
                    "id": stored.id,
                    "spec": stored.spec.model_dump_json(),
                    "state": stored.state.to_json(),
                    "created_ms": stored.created_ms,
                    "resource_version": stored.resource_version,
                }
                for stored in self.rollouts
            ],
            "settings": {name: dict(body) for name, body in self.settings.items()},
            "fence": self.fence,
            "audit_seq": self.audit_seq,
            "places": dict(self.places),
            "audit": [asdict(entry) for entry in self.audit],
            "sums": {name: base64.b64encode(packed).decode() for name, packed in self.sums.items()},
            "bases": {str(seq): base64.b64encode(packed).decode() for seq, packed in self.bases.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StateDocument:
        """The inverse of `to_json`. Raises: ValueError: it is of another form."""
        try:
            endpoints = [Endpoint.model_validate(body) for body in data["endpoints"]]
            return cls(
                identity=str(data["identity"]),
                version=int(data["version"]),
                endpoints={endpoint.name: endpoint for endpoint in endpoints},
                rollouts=tuple(_rollout(body) for body in data["rollouts"]),
                settings={str(name): dict(body) for name, body in data["settings"].items()},
                fence=int(data["fence"]),
                audit_seq=int(data["audit_seq"]),
                places={str(name): str(text) for name, text in data["places"].items()},
                audit=tuple(_AUDITED.validate_python(entry) for entry in data["audit"]),
                sums={str(name): base64.b64decode(text) for name, text in data["sums"].items()},
                bases={int(seq): base64.b64decode(text) for seq, text in data["bases"].items()},
            )
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it lacks or spoils a part: {error}") from None


_STATE = TypeAdapter(RolloutState)
_AUDITED = TypeAdapter(AuditEntry)


def _rollout(body: Mapping[str, Any]) -> StoredRollout:
    return StoredRollout(
        id=str(body["id"]),
        spec=Rollout.model_validate_json(body["spec"]),
        state=_STATE.validate_python(body["state"]),
        created_ms=int(body["created_ms"]),
        resource_version=int(body["resource_version"]),
    )

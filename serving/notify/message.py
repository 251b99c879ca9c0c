"""A notification: made of an audit entry alone, so it tells the state after that change and never an older one.

The signature is HMAC-SHA256 over `TIME.BODY` with the receiver's secret, in `Baton-Signature: t=TIME,v1=HEX`; a receiver refuses
an old time and a wrong signature. `Baton-Delivery` is the number of the entry, the same at each try.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence

from serving.config.notify import HELD, Trigger
from serving.rollout.store import AuditEntry

__all__ = ["VERBS", "body_of", "headers_of", "wanted"]

VERBS: Mapping[str, str] = {
    "step_back": "stepped_back",
    "return_version": "version_returned",
    "ask_approval": "waits_for_approval",
    "complete": "completed",
    "abort": "aborted",
    "worker_down": "worker_down",
    "held_long": HELD,
}
"""Event by verb of the audit."""


def wanted(entry: AuditEntry, triggers: Sequence[Trigger]) -> str:
    """The event of an entry that a receiver wants to be told of; empty: none."""
    event = VERBS.get(entry.verb, "")
    for trigger in triggers:
        if trigger.event == event and (event != HELD or entry.after.get("longer_than_s") == trigger.seconds):
            return event
    return ""


def body_of(entry: AuditEntry, event: str) -> bytes:
    """JSON of a notification."""
    endpoint = entry.after.get("endpoint") or {}
    return json.dumps(
        {
            "event": event,
            "id": entry.seq,
            "time_ms": entry.time_ms,
            "endpoint": entry.endpoint,
            "rollout": entry.rollout,
            "actor": entry.actor,
            "reason": entry.reason,
            "weight": endpoint.get("weight"),
            "state": entry.after.get("state") or entry.after,
        },
        separators=(",", ":"),
    ).encode()


def headers_of(entry: AuditEntry, body: bytes, secret: bytes, now_ms: int) -> dict[str, str]:
    """Headers with the signature."""
    time_s = str(now_ms // 1000)
    signature = hmac.new(secret, time_s.encode() + b"." + body, hashlib.sha256).hexdigest()
    return {
        "content-type": "application/json",
        "baton-delivery": str(entry.seq),
        "baton-signature": f"t={time_s},v1={signature}",
    }

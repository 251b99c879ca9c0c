"""Section `notify`: who is told what of the rollouts."""

from __future__ import annotations

import re
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, field_validator

from serving.config.section import Section, parse_duration

__all__ = ["EVENTS", "HELD", "NotifyConfig", "Trigger"]

HELD = "held_longer_than"
EVENTS = ("stepped_back", "version_returned", "waits_for_approval", "completed", "aborted", "worker_down", HELD)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Trigger(Section):
    """What is told of: an event, for `held_longer_than` with its time."""

    event: str
    seconds: float = 0.0


def _trigger(value: Any) -> Any:
    if isinstance(value, str) and value in EVENTS and value != HELD:
        return {"event": value}
    if isinstance(value, dict) and set(value) == {HELD}:
        seconds = parse_duration(value[HELD])
        if seconds <= 0:
            raise ValueError(f"{HELD} must be above 0, for example 2h")
        return {"event": HELD, "seconds": seconds}
    if isinstance(value, dict) and set(value) <= {"event", "seconds"} and value.get("event") in EVENTS:
        return value
    raise ValueError(f"{value!r} is none of {', '.join(EVENTS[:-1])}, or {HELD}: 2h")


class NotifyConfig(Section):
    """A receiver of notifications."""

    url: str
    """https:// (or http://), without user and password; gets a POST with JSON, signed."""
    on: tuple[Annotated[Trigger, BeforeValidator(_trigger)], ...] = Field(min_length=1, max_length=16)
    """What it is told of: stepped_back, version_returned, waits_for_approval, completed, aborted, worker_down,
    `held_longer_than: 2h`."""
    secret_env: str
    """Environment variable of the control process that holds the secret for the signature."""
    private: bool = False
    """Whether the address may be one of this machine or of a private network."""

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be http:// or https:// with a host")
        if parts.username or parts.password:
            raise ValueError("must not hold a user or a password; the signature says who sends")
        return url

    @field_validator("secret_env")
    @classmethod
    def _is_variable(cls, name: str) -> str:
        if not _VARIABLE.fullmatch(name):
            raise ValueError("must be the name of an environment variable, not the secret itself")
        return name

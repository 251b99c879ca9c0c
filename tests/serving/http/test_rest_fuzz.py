"""Every REST route, given bodies, headers, queries and names that no document describes: no 5xx, no traceback, no memory."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from doors import ROUTES
from fastapi.testclient import TestClient
from fuzzing import MOST_GROWTH, REQUESTS, resident, tracebacks
from operated import operated, rollout_file

from serving.admin import requests as r
from serving.admin.verbs import ROLLOUTS_START
from serving.config.principal import Principal, Role

NAMES = (
    "ranker",
    "teacher",
    "student",
    "1",
    "-1",
    "..",
    "%00",
    "\x1b]0;x\x07",
    "ä\u202e",
    "x" * 5000,
    "a/b",
    "[/nope]",
    "%2e%2e",
)
WORDS: tuple[Any, ...] = (
    None, True, -1, 0, 1, 10**400, 1e308, "", "ranker", "x" * 70_000, "\x00", "\ud800", "\u202e", [], {}, [[]], {"": {}},
    {"bundle": "teacher"}, {"bundle": "../../etc", "version": "x" * 300}, "{" * 1000, "NaN", "Infinity",
)  # fmt: skip
FIELDS = (
    "name", "file", "reason", "weight", "stable", "candidate", "bundle", "version", "limit", "after", "before", "force",
    "expected", "routing_key", "overrides", "endpoint", "__proto__", "x" * 300, "",
)  # fmt: skip
TYPES = (
    "application/json",
    "application/json; charset=utf-16",
    "text/plain",
    "multipart/form-data; boundary=x",
    "",
    "a/b",
)
DEEP = (
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b'{"file": "' + b"[" * 90_000 + b'"}',
    b'{"file": "' + b"- " * 40_000 + b'"}',
)


class Fuzz:
    """Odd requests to the routes of one client."""

    def __init__(self, client: TestClient) -> None:
        self._client = client
        self.codes: Counter[int] = Counter()

    def run(self, requests: int, seed: int) -> list[str]:
        """What was answered with a status of 500 or more."""
        rng = random.Random(seed)
        bad = []
        routes = [route for name, route in ROUTES.items() if name != "rollouts.watch"]  # its answer has no end
        for number in range(requests):
            method, path = routes[number % len(routes)]
            body = self._body(rng)
            answer = self._client.request(
                rng.choice((method, method, method, "PUT", "DELETE", "PATCH")),
                self._path(path, rng),
                content=body,
                params={rng.choice(FIELDS): str(rng.choice(WORDS)).encode(errors="replace")[:9000]}
                if rng.random() < 0.3
                else {},
                headers=self._headers(rng),
            )
            self.codes[answer.status_code] += 1
            if answer.status_code >= 500:
                bad.append(f"{method} {path} {body[:80]!r}: {answer.status_code} {answer.text[:200]}")
            assert len(answer.content) < 1 << 20
        return bad

    def _path(self, path: str, rng: random.Random) -> str:
        for name in ("{name}", "{bundle}", "{endpoint}", "{seq}"):
            path = path.replace(name, quote(rng.choice(NAMES), safe="%"))
        return f"/api/v1{path}"

    def _body(self, rng: random.Random) -> bytes:
        shape = rng.randrange(6)
        if shape == 0:
            return rng.randbytes(rng.randint(0, 300))
        if shape == 1:
            return rng.choice(DEEP)
        if shape == 2:
            return json.dumps(rng.choice(WORDS)).encode()
        fields = {rng.choice(FIELDS): rng.choice(WORDS) for _ in range(rng.randint(0, 4))}
        if shape == 3:
            fields["file"] = self._rollout(rng)
        raw = json.dumps(fields).encode()
        if shape == 4 and raw:
            at = rng.randrange(len(raw))
            raw = raw[:at] + rng.randbytes(1) + raw[at + 1 :]
        return raw

    def _rollout(self, rng: random.Random) -> str:
        lines = rollout_file().splitlines()
        at = rng.randrange(len(lines))
        lines[at] = lines[at] + rng.choice(
            ("", ": [", "x" * 1000, "\t- &a *a", " {", "!!python/object:os.system x", "\x00")
        )
        return "\n".join(lines)

    def _headers(self, rng: random.Random) -> dict[str, bytes]:
        headers = {"content-type": rng.choice(TYPES).encode()}
        for name in ("if-match", "idempotency-key", "x-baton-actor", "accept", "content-encoding"):
            if rng.random() < 0.15:
                value = str(rng.choice(WORDS)).encode(errors="replace")[:9000]
                headers[name] = bytes(c for c in value if c >= 32 and c != 127)
        return headers


@contextmanager
def port(home: Path) -> Iterator[Fuzz]:
    with operated(home) as world:
        world.admin.call(ROLLOUTS_START, r.RolloutFile(file=rollout_file()), Principal("ann", Role.OPERATOR))
        token = world.token(Role.OPERATOR)
        with TestClient(
            world.app(), raise_server_exceptions=False, headers={"authorization": f"Bearer {token}"}
        ) as client:
            yield Fuzz(client)


def test_no_body_is_our_fault(tmp_path: Path) -> None:
    with port(tmp_path / "home") as fuzz, tracebacks() as seen:
        assert not fuzz.run(400, seed=1)
        assert {400, 404} <= fuzz.codes.keys()
    assert not seen


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_no_body_is_our_fault_nor_stays_in_memory(tmp_path: Path) -> None:
    with port(tmp_path / "home") as fuzz, tracebacks() as seen:
        assert not fuzz.run(1000, seed=2)
        before = resident()
        assert not fuzz.run(REQUESTS, seed=3)
        grown = resident() - before
        print(f"{fuzz.codes.total()} requests, {grown >> 20} MiB more, {dict(fuzz.codes)}")
        assert grown < MOST_GROWTH
    assert not seen

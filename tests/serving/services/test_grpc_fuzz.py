"""Every gRPC method of both ports, given random bytes and random valid messages: no crash, nothing INTERNAL, no memory
that grows.

Methods come from the descriptors, so a new one is covered by itself.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fuzzing import MOST_GROWTH, REQUESTS, resident, tracebacks
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from installation import Installation, eventually, running
from operated import Operated, admin_port, rollout_file

from protos import inference
from protos.baton.ranking.v1 import ranking_pb2
from serving.admin import requests as r
from serving.admin.verbs import ROLLOUTS_START
from serving.security.tokens import LOCAL
from serving.services.admin import SERVICES

WORDS = ("ranker", "teacher", "student", "user", "item", "score", "stable", "1", "", "\x00", "ä" * 50, "../..", "a/b")
NUMBERS = (0, 1, -1, 2, 7, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63))
FLOATS = (0.0, 1.0, -1.0, 0.5, 1e308, float("inf"), float("nan"))
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
REFLECTION = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
RANKING = ranking_pb2.DESCRIPTOR.services_by_name["RankingService"]

Send = Callable[[str, bytes, bool], str]


def message(kind: Any, rng: random.Random, depth: int = 0) -> Any:
    """A random message that is valid: some fields set, values likely to be something or just at an edge."""
    made = GetMessageClass(kind)() if not isinstance(kind, type) else kind()
    for field in made.DESCRIPTOR.fields:
        if rng.random() < 0.4 or (field.message_type is not None and depth > 3):
            continue
        entry = field.message_type is not None and field.message_type.GetOptions().map_entry
        times = rng.randint(0, 4) if field.is_repeated else 1
        for _ in range(times):
            if entry:
                _put(made, field, message(field.message_type, rng, depth + 1))
            elif field.message_type is not None:
                part = message(field.message_type, rng, depth + 1)
                target = getattr(made, field.name)
                (target.add() if field.is_repeated else target).MergeFromString(part.SerializeToString())
            elif field.is_repeated:
                getattr(made, field.name).append(_value(field, rng))
            else:
                setattr(made, field.name, _value(field, rng))
    return made


def _put(made: Any, field: Any, entry: Any) -> None:
    target = getattr(made, field.name)
    if field.message_type.fields_by_name["value"].message_type is None:
        target[entry.key] = entry.value
    else:
        target[entry.key].CopyFrom(entry.value)


def _value(field: Any, rng: random.Random) -> Any:
    kind = field.cpp_type
    if kind == field.CPPTYPE_STRING:
        word = rng.choice(WORDS)
        return word.encode() if field.type == field.TYPE_BYTES else word
    if kind in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        wide = rng.choice(FLOATS)
        return wide if kind == field.CPPTYPE_DOUBLE or wide < 1e38 else 3.0
    if kind == field.CPPTYPE_BOOL:
        return rng.random() < 0.5
    if kind == field.CPPTYPE_ENUM:
        return rng.choice(field.enum_type.values).number
    low, high = {
        field.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
        field.CPPTYPE_UINT32: (0, 2**32 - 1),
        field.CPPTYPE_UINT64: (0, 2**64 - 1),
    }.get(kind, (-(2**63), 2**63 - 1))
    return min(max(rng.choice(NUMBERS), low), high)


class Fuzz:
    """All methods behind a port."""

    def __init__(self, port: int, services: list[tuple[str, list[tuple[str, Any, bool, bool]]]]) -> None:
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self._services = services
        self.codes: Counter[str] = Counter()

    def run(self, rounds: int, seed: int) -> list[str]:
        """What was INTERNAL, or no answer of ours at all."""
        rng = random.Random(seed)
        bad = []
        for _ in range(rounds):
            for service, methods in self._services:
                for name, kind, *streams in methods:
                    sent = self._payload(kind, rng)
                    code, told = self.call(f"/{service}/{name}", sent, *streams)
                    self.codes[code] += 1
                    # Health and reflection are gRPC's own, and UNKNOWN is how it says that it cannot read a request.
                    if code == "INTERNAL" or (code == "UNKNOWN" and not service.startswith("grpc.")):
                        bad.append(f"{name}({sent[:80]!r}): {code} {told}")
        return bad

    def _payload(self, kind: Any, rng: random.Random) -> bytes:
        whole: bytes = message(kind, rng).SerializeToString()
        shape = rng.randrange(4)
        if shape == 0:
            return rng.randbytes(rng.randint(0, 200))
        if shape == 1 and whole:  # one byte of a good one is another
            at = rng.randrange(len(whole))
            return whole[:at] + rng.randbytes(1) + whole[at + 1 :]
        return whole

    def call(self, path: str, sent: bytes, ask_stream: bool = False, answer_stream: bool = False) -> tuple[str, str]:
        try:
            if ask_stream and answer_stream:
                _answers(self._channel.stream_stream(path)(iter([sent, sent]), timeout=20), 2)
            elif answer_stream:
                _answers(self._channel.unary_stream(path)(sent, timeout=20), 1)  # it watches, and may say nothing more
            else:
                self._channel.unary_unary(path)(sent, timeout=20)
        except grpc.RpcError as error:
            return error.code().name, error.details()
        return "OK", ""

    def close(self) -> None:
        self._channel.close()


def _answers(stream: Any, most: int) -> None:
    """The first answers of a stream that may not end."""
    for _ in itertools.islice(stream, most):
        pass
    stream.cancel()


def _described(service: Any) -> tuple[str, list[tuple[str, Any, bool, bool]]]:
    return service.full_name, [(m.name, m.input_type, m.client_streaming, m.server_streaming) for m in service.methods]


@contextlib.contextmanager
def admin(home: Path) -> Iterator[Fuzz]:
    made = Installation(home)
    world = Operated(made)
    world.admin.call(ROLLOUTS_START, r.RolloutFile(file=rollout_file()), LOCAL)
    with admin_port(world) as port:
        fuzz = Fuzz(port, [*map(_described, SERVICES.values()), _described(HEALTH), _described(REFLECTION)])
        yield fuzz
        fuzz.close()
    world.close()
    made.store.close()


@contextlib.contextmanager
def data_plane(home: Path) -> Iterator[Fuzz]:
    made = Installation(home)
    with running(made.config) as lane:
        oip = [(name, request, False, False) for name, (request, _) in inference.methods().items()]
        services = [(inference.SERVICE, oip), _described(RANKING), _described(HEALTH)]
        fuzz = Fuzz(int(lane.target.rpartition(":")[2]), services)
        yield fuzz
        fuzz.close()
    made.store.close()


PORTS = {"admin": admin, "data plane": data_plane}


@pytest.mark.parametrize("port", PORTS)
def test_no_bytes_are_our_fault(port: str, tmp_path: Path) -> None:
    with PORTS[port](tmp_path / "home") as fuzz:
        assert not fuzz.run(6, seed=1)
        assert fuzz.codes["OK"]
        assert fuzz.codes["INVALID_ARGUMENT"]


@pytest.mark.parametrize("port", PORTS)
def test_no_call_waits_for_the_garbage_collector(port: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call keeps a stream of its connection until it is freed, and a connection has only so many."""
    # pytest keeps what gRPC logs of messages that cannot be parsed, with the traceback that holds their call.
    monkeypatch.setattr(logging.getLogger("grpc._cython.cygrpc"), "disabled", True)
    with PORTS[port](tmp_path / "home") as fuzz:
        fuzz.run(1, seed=3)
        gc.collect()
        gc.disable()
        try:
            before = _calls()
            assert not fuzz.run(3, seed=4)
            eventually(lambda: _calls() <= before + 2, "the calls are freed")  # the last ones may be ending
        finally:
            gc.enable()


def _calls() -> int:
    return sum(type(one).__name__ == "_ServicerContext" for one in gc.get_objects())


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("port", PORTS)
def test_no_bytes_are_our_fault_nor_stay_in_memory(port: str, tmp_path: Path) -> None:
    with PORTS[port](tmp_path / "home") as fuzz, tracebacks() as seen:
        assert not fuzz.run(100, seed=2)
        warm, before = fuzz.codes.total(), resident()
        assert not fuzz.run(1 + REQUESTS // (warm // 100), seed=3)
        grown = resident() - before
        print(f"{port}: {fuzz.codes.total()} calls, {grown >> 20} MiB more, {dict(fuzz.codes)}")
        assert fuzz.codes.total() - warm >= REQUESTS
        assert fuzz.codes["UNAVAILABLE"] == 0  # a connection that takes no more calls would look like an answer
        assert grown < MOST_GROWTH, f"{grown >> 20} MiB more after {fuzz.codes.total()} calls"
        assert not seen

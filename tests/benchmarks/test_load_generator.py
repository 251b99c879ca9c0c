"""The load generator against a real grpc.aio server: the same answers as gRPC's own client, every error by its code."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest

from benchmarks.load import hpack
from benchmarks.load.generator import UNANSWERED, Spec, write_bodies
from benchmarks.load.run import run
from pipeline.errors import BatonError

SERVICE = "test.Echo"


class EchoServer:
    """Unary: the request reversed; its first byte, where it is below 17, is the code to fail with. `deadlines` are the
    seconds that calls had left."""

    def __init__(self) -> None:
        self.deadlines: list[float | None] = []
        self.metadata: list[dict[str, str]] = []
        self.limit = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="echo-server", daemon=True)
        self._thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)

    async def _start(self) -> int:
        self._server = grpc.aio.server(options=[("grpc.max_receive_message_length", 8 << 20)])
        handlers = {
            "Unary": grpc.unary_unary_rpc_method_handler(self._unary),
            "Stream": grpc.stream_stream_rpc_method_handler(self._stream),
            "Hang": grpc.unary_unary_rpc_method_handler(self._hang),
        }
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return int(port)

    async def _unary(self, data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        self.deadlines.append(context.time_remaining())
        self.metadata.append({str(k): str(v) for k, v in context.invocation_metadata() or ()})
        if data and 0 < data[0] < 17:
            code = next(c for c in grpc.StatusCode if c.value[0] == data[0])
            await context.abort(code, "as you wish, é", (("detail-bin", bytes(range(200))),))
        return data[::-1]

    async def _stream(self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        async for data in requests:
            yield data[::-1]

    async def _hang(self, data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        await asyncio.sleep(60)
        return b""

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._server.stop(0), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@pytest.fixture(scope="module")
def server() -> Iterator[EchoServer]:
    made = EchoServer()
    yield made
    made.stop()


def spec(server: EchoServer, tmp_path: Path, bodies: list[bytes], method: str = "Unary", **settings: object) -> Spec:
    path = tmp_path / "bodies"
    write_bodies(path, bodies)
    basis = Spec(port=server.port, path=f"/{SERVICE}/{method}", bodies=str(path), keep=True)
    return replace(basis, **settings)  # type: ignore[arg-type]


def body(seed: int, size: int) -> bytes:
    return b"\xff" + np.random.default_rng(seed).bytes(size)


@pytest.mark.parametrize("method", ["Unary", "Stream"])
def test_closed_loop_gets_the_answers_that_grpc_gets(server: EchoServer, tmp_path: Path, method: str) -> None:
    bodies = [body(i, size) for i, size in enumerate([0, 10, 31_000, 20_000])]
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = channel.unary_unary(f"/{SERVICE}/Unary")
        expected = {call(b) for b in bodies}
    found = run(
        spec(server, tmp_path, bodies, method, inflight=8, connections=8, seconds=0.5, several=method == "Stream")
    )
    assert not found.errors
    assert len(found.answers) == len(found.latency) > 20
    assert set(found.answers) == expected
    assert found.throughput > 0
    assert (found.latency > 0).all()
    assert found.cpu_seconds > 0


def test_bodies_larger_than_every_window_pass_whole(server: EchoServer, tmp_path: Path) -> None:
    bodies = [body(i, 1 << 20) for i in range(3)]
    for connections in (1, 4):
        found = run(spec(server, tmp_path, bodies, inflight=4, connections=connections, seconds=0.5))
        assert not found.errors
        assert set(found.answers) == {b[::-1] for b in bodies}


def test_open_loop_sends_all_that_are_due_and_keeps_their_rate(server: EchoServer, tmp_path: Path) -> None:
    phases = [(0.5, 100.0), (0.5, 400.0)]
    found = run(spec(server, tmp_path, [body(0, 100)], phases=phases, connections=3, warmup=0.2))
    assert not found.errors
    again = run(spec(server, tmp_path, [body(0, 100)], phases=phases, connections=3, warmup=0.2))
    # The arrivals follow from the seed alone; they are told in the order of their answers.
    first, repeated = (np.sort(outcome.intended - outcome.started) for outcome in (found, again))
    np.testing.assert_allclose(first, repeated, atol=1e-6)
    second = found.intended - found.started > 0.5
    assert 25 < (~second).sum() < 85
    assert 140 < second.sum() < 260
    assert len(found.late) == len(found.latency) == len(found.intended)


def test_errors_are_counted_by_code(server: EchoServer, tmp_path: Path) -> None:
    codes = [3, 4, 8, 14]
    found = run(spec(server, tmp_path, [bytes([code, 1]) for code in codes], inflight=2, seconds=0.3))
    assert set(found.errors) == set(codes)
    assert found.failed == len(found.status) == sum(found.errors.values())
    assert found.throughput == 0
    assert np.isnan(found.quantile_ms(0.5))
    unknown = run(spec(server, tmp_path, [b""], "Absent", inflight=1, seconds=0.1))
    assert set(unknown.errors) == {12}


def test_deadline_reaches_the_server_and_ends_the_call(server: EchoServer, tmp_path: Path) -> None:
    server.deadlines.clear()
    run(spec(server, tmp_path, [b"\xff"], inflight=1, seconds=0.1, deadline=2.5, metadata={"x-routing-key": "u1"}))
    assert all(left is not None and 1.5 < left <= 2.5 for left in server.deadlines)
    assert server.metadata[-1]["x-routing-key"] == "u1"
    found = run(spec(server, tmp_path, [b"\xff"], "Hang", inflight=2, seconds=0.3, deadline=0.1, drain=5.0))
    assert set(found.errors) <= {1, 4}
    assert found.errors


def test_calls_never_answered_are_told_apart(server: EchoServer, tmp_path: Path) -> None:
    found = run(spec(server, tmp_path, [b"\xff"], "Hang", phases=[(0.2, 50.0)], drain=0.2))
    assert set(found.errors) == {UNANSWERED}


def test_several_processes_share_the_load(server: EchoServer, tmp_path: Path) -> None:
    found = run(spec(server, tmp_path, [body(0, 10)], phases=[(0.5, 200.0)], connections=4), processes=2)
    assert not found.errors
    assert 60 < len(found.intended) < 150


def test_a_server_that_ends_counts_as_unavailable(tmp_path: Path) -> None:
    made = EchoServer()
    wanted = spec(made, tmp_path, [b"\xff"], inflight=2, seconds=1.0)
    made.stop()
    with pytest.raises(BatonError, match="refused"):
        run(wanted)


def test_headers_are_read_without_a_dynamic_table() -> None:
    headers = [("grpc-status", "8"), ("grpc-message", "x" * 300)]
    assert hpack.decode(hpack.encode(headers)) == {b"grpc-status": b"8", b"grpc-message": b"x" * 300}
    assert hpack.decode(b"\x20\x88") == {b":status": b"200"}
    for broken in (b"\xff\x00", hpack.encode(headers)[:-1], b"\x00"):
        with pytest.raises(hpack.HeaderError):
            hpack.decode(broken)

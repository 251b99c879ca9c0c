"""A listener that is closed where another one shares its port: no connection is refused or reset."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from serving.runtime.listeners import ask_to_leave, let_in_no_more


def listener(port: int = 0) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind(("127.0.0.1", port))
    made.listen(64)
    return made


def test_connections_that_began_are_accepted_and_later_ones_go_to_the_other_listener() -> None:
    first = listener()
    port = first.getsockname()[1]
    early = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
    accepted: list[socket.socket] = []

    async def close() -> None:
        ending = asyncio.create_task(let_in_no_more(port))
        await asyncio.sleep(0.05)
        assert not ending.done()  # three wait to be accepted
        accepted.extend(first.accept()[0] for _ in early)
        await ending

    asyncio.run(close())
    second = listener(port)
    first.settimeout(0)
    with ThreadPoolExecutor(20) as threads:
        connecting = [threads.submit(socket.create_connection, ("127.0.0.1", port), 10) for _ in range(20)]
        for _ in connecting:  # all of them, also those whose first packet the first one got
            if len(accepted) == len(early) + 10:
                first.close()
            second.settimeout(10)
            accepted.append(second.accept()[0])
        late = [made.result() for made in connecting]
    for one in (*early, *late, *accepted):
        one.close()
    first.close()
    second.close()


async def test_no_call_fails_while_one_server_follows_another() -> None:
    async def answer(_: bytes, __: Any) -> bytes:
        await asyncio.sleep(0.003)
        return b"x" * 2000

    def server() -> grpc.aio.Server:
        made = grpc.aio.server(options=[("grpc.so_reuseport", 1)])
        method = grpc.unary_unary_rpc_method_handler(answer)
        made.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", {"C": method}),))
        return made

    now = server()
    port = now.add_insecure_port("127.0.0.1:0")
    await now.start()
    own = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    channels = [grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=own) for _ in range(8)]
    answered, ended = Counter[str](), False

    async def call(channel: grpc.aio.Channel) -> None:
        while not ended:
            try:
                await channel.unary_unary("/a.B/C")(b"q" * 500, timeout=10)
                answered["ok"] += 1
            except grpc.aio.AioRpcError as error:
                answered[error.code().name] += 1

    calls = [asyncio.create_task(call(channel)) for channel in channels for _ in range(4)]
    for _ in range(2):
        await asyncio.sleep(0.3)
        before, now = now, server()
        await let_in_no_more(port)
        now.add_insecure_port(f"127.0.0.1:{port}")
        await now.start()
        await asyncio.to_thread(ask_to_leave, port)
        await asyncio.sleep(0.3)
        await before.stop(5)
    ended = True
    await asyncio.gather(*calls)
    for channel in channels:
        await channel.close()
    await now.stop(0)
    assert list(answered) == ["ok"], answered
    assert answered["ok"] > 500

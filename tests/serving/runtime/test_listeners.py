"""A listener that is closed where another one shares its port: no connection is refused or reset."""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor

from serving.runtime.listeners import let_in_no_more


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

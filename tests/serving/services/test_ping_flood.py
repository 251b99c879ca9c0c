"""Pings of a stranger who reads no answers: the memory of a gRPC port stays bounded."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

PING = b"\x00\x00\x08\x06\x00\x00\x00\x00\x00" + b"12345678"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
SECONDS = 4.0
MAX_GROWTH_MIB = 150
SERVER = """
import asyncio, grpc
from serving.services.rpc import CONNECTION_OPTIONS
async def main():
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), *CONNECTION_OPTIONS])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


def resident_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_pings_that_nobody_reads_answers_of_fill_no_memory() -> None:
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            before, most, end = resident_mib(server.pid), 0.0, time.monotonic() + SECONDS
            clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
            sent, pings = dict.fromkeys(clients, 0), PING * 2000
            for client in clients:
                client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SETTINGS)
                client.settimeout(0.2)
            while time.monotonic() < end:
                for client in clients:
                    with suppress(TimeoutError):  # what was not taken goes on in the midst of a ping
                        sent[client] = (sent[client] + client.send(pings[sent[client] :])) % len(pings)
                most = max(most, resident_mib(server.pid))
            for client in clients:
                client.close()
            assert most - before < MAX_GROWTH_MIB
        finally:
            server.kill()

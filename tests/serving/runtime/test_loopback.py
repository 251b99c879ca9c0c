"""Proxies of the environment and loopback: calls to this machine never go through one, those to others may."""

from __future__ import annotations

import pytest

from protos.baton.ranking.v1 import ranking_pb2 as pb
from serving.client import RankingClient
from serving.client.testing import FakeServer
from serving.runtime.loopback import channel_arguments, is_loopback, spare_from_proxies

PROXY = "http://127.0.0.1:9"
"""Nothing answers there."""


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1:8001", "127.8.9.10:1", "localhost:8001", "LOCALHOST:1", "localhost.:1", "[::1]:8001", "::1",
        "dns:localhost:1", "dns:///127.0.0.1:1", "dns://8.8.8.8/localhost:1", "ipv4:127.0.0.1:1,127.0.0.2:1",
        "ipv6:[::1]:1", "ipv6:%5B::1%5D:1", "unix:/run/baton.sock", "unix-abstract:baton",
    ],
)  # fmt: skip
def test_targets_on_this_machine(target: str) -> None:
    assert is_loopback(target)
    assert channel_arguments(target) == [("grpc.enable_http_proxy", 0)]


@pytest.mark.parametrize("target", ["baton.example:1", "10.0.0.1:1", "dns:///ranker:1", "ipv4:127.0.0.1:1,10.0.0.1:1", "localhost.example:1"])  # fmt: skip
def test_targets_elsewhere_may_use_a_proxy(target: str) -> None:
    assert not is_loopback(target)
    assert channel_arguments(target) == []


def test_exceptions_that_are_set_stay() -> None:
    environment = {"NO_PROXY": "internal.example", "no_grpc_proxy": "other.example", "http_proxy": PROXY}
    spare_from_proxies(environment)
    spare_from_proxies(environment)
    assert environment["no_proxy"] == environment["NO_PROXY"] == "internal.example,localhost,127.0.0.1,::1,127.0.0.0/8"
    assert environment["no_grpc_proxy"].startswith("other.example,localhost,")
    assert environment["http_proxy"] == PROXY


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy", "all_proxy", "HTTP_PROXY"])
def test_the_client_reaches_this_machine(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, PROXY)
    with FakeServer() as server:
        for host in ("127.0.0.1", "localhost"):
            with RankingClient(f"{host}:{server.target.rpartition(':')[2]}") as client:
                assert client.rank_message(pb.RankRequest(endpoint="ranker")).prediction_id

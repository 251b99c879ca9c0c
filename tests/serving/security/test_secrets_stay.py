"""Search for secrets in everything that a running installation writes."""

from __future__ import annotations

from pathlib import Path

import grpc
import httpx
import pytest
from installation import Installation, Process, eventually, free_port, status

from pipeline.clock import SystemClock
from pipeline.traffic.prediction import load_secret
from protos import inference
from serving.config.principal import Role
from serving.security.session import CSRF_HEADER
from serving.security.tokens import TokenStore

LOGGED = "from serving.runtime.logs import write_logs; write_logs({!r}, 'debug'); "


@pytest.mark.long
def test_no_secret_is_in_any_log_status_metric_or_audit_entry(tmp_path: Path) -> None:
    ports = {name: free_port() for name in ("grpc_port", "http_port", "admin_port")}
    made = Installation(tmp_path / "home", listen={**ports, "feedback": "identified"})
    operator = TokenStore(made.config.tokens).create("ann", Role.OPERATOR, SystemClock().wall_ms())[1]
    wrong = f"{operator[:20]}{'w' * 36}"
    lane = Process(made, LOGGED.format("lane-0") + "from serving.processes.lane import run_lane; run_lane(config, 0)")
    control = Process(
        made, LOGGED.format("control") + "from serving.processes.control import run_control; run_control(config)"
    )
    base = f"http://127.0.0.1:{ports['http_port']}"
    with lane, control, httpx.Client(base_url=base, trust_env=False, timeout=30) as http:
        eventually(lambda: status(made, "lane-0").get("state") == "ready", "the lane is ready", 120)
        eventually(lambda: _answers(http), "control answers", 120)
        for token in (operator, wrong):
            authorization = {"authorization": f"Bearer {token}"}
            http.get("/api/v1/endpoints", headers=authorization)
            http.get(f"/api/v1/no-such-path?token={token[-8:]}", headers=authorization)
            body = {"reason": "test"}
            http.post("/api/v1/endpoints/ranker/kill", json=body, headers=authorization)
            http.post("/api/v1/endpoints/ranker/release", content=b"{", headers=authorization)
            http.get("/", headers={"cookie": f"baton_session={token}", CSRF_HEADER: token})
            metadata = tuple(authorization.items())
            for port, path in (
                ("grpc_port", f"/{inference.SERVICE}/RepositoryModelLoad"),
                ("grpc_port", "/baton.ranking.v1.RankingService/Feedback"),
                ("admin_port", "/baton.admin.v1.Endpoints/List"),
                ("admin_port", "/baton.admin.v1.Endpoints/Kill"),
            ):
                with grpc.insecure_channel(f"127.0.0.1:{ports[port]}") as channel:
                    for request in (b"", b"\xff\xff"):
                        assert token not in _texts(channel, path, request, metadata)
        entries = http.get("/api/v1/audit", headers={"authorization": f"Bearer {operator}"}).text
        assert '"ann"' in entries  # what was done is there, by its name
    made.store.close()
    secrets = {"token": operator.split("_", 2)[2], "wrong token": wrong.split("_", 2)[2]}
    key = load_secret(made.config.secret)
    found = [path for path in made.home.rglob("*") if path.is_file() and path != made.config.secret]
    assert {"control.db", "tokens.json"} <= {path.name for path in found}
    assert lane.errors in found
    for path in found:
        content = path.read_bytes()
        for name, secret in secrets.items():
            assert secret.encode() not in content, f"the {name} is in {path.name}"
        assert key not in content, f"the installation's key is in {path.name}"
    assert b"control answers" in control.errors.read_bytes()  # the logs that were searched have something in them


def _texts(channel: grpc.Channel, path: str, request: bytes, metadata: tuple[tuple[str, str], ...]) -> str:
    """All texts that a call returns."""
    call = channel.unary_unary(path)
    try:
        return str(call(request, timeout=30, metadata=metadata))
    except grpc.RpcError as error:
        return str(error)


def _answers(http: httpx.Client) -> bool:
    try:
        return http.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False

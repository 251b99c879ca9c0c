"""docs/access.md: what each caller gets at each door, measured on real processes. The file is what the measurement says.

    ACCESS_TABLE=write pytest tests/serving/security/test_access_table.py

writes it anew.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from console_socket import Page, Socket, connected, opened_page, sign_in
from doors import Grpc, Refused, Rest
from installation import Installation, Process, eventually, free_port, running
from operated import rollout_file

from pipeline.clock import SystemClock
from protos import inference
from serving.admin import VERBS
from serving.config.principal import Role
from serving.security.tokens import TokenStore

FILE = Path(__file__).parents[3] / "docs" / "access.md"
CALLERS = ("no token", "wrong token", "expired token", "viewer", "operator")
HEAD = """# Who may do what, by every door

Measured by `tests/serving/security/test_access_table.py` on an installation with tokens, and held by it. `yes`: the caller is
let in; whether the state allows the verb is another matter. Where there are no tokens, everyone on this machine is an operator.
"""
SHOP = {"name": "shop", "stable": {"bundle": "teacher"}, "reason": "a test"}
# In an order in which the operator's do not stand in each other's way; names that do not exist keep the rollout as it is.
ADMIN: dict[str, dict[str, Any]] = {
    "endpoints.list": {},
    "endpoints.get": {"name": "ranker"},
    "endpoints.set": SHOP,
    "models.list": {},
    "models.load": {"bundle": "student"},
    "models.warm": {"bundle": "nobody"},
    "models.unload": {"bundle": "student"},
    "models.retire": {"bundle": "student", "version": "1", "restore": True, "reason": "a test"},
    "rollouts.start": {"file": rollout_file()},
    "rollouts.list": {},
    "rollouts.get": {"name": "ranker"},
    "rollouts.watch": {"name": "ranker"},
    "rollouts.pause": {"name": "ranker", "reason": "a test"},
    "rollouts.resume": {"name": "ranker", "reason": "a test"},
    "rollouts.promote": {"name": "ranker", "force": True, "reason": "a test"},
    "rollouts.set_weight": {"name": "ranker", "weight": 5, "reason": "a test"},
    "rollouts.freeze": {"until_ms": SystemClock().wall_ms() + 3_600_000, "reason": "a test"},
    "rollouts.lift": {"reason": "a test"},
    "metrics.get": {"endpoint": "ranker"},
    "metrics.processes": {},
    "metrics.health": {},
    "processes.list": {},
    "processes.restart": {"process": "lane-0", "reason": "a test"},
    "rollouts.approve": {"name": "ranker", "reason": "a test"},
    "rollouts.abort": {"name": "ranker", "reason": "a test"},
    "rollouts.undo": {"name": "ranker", "reason": "a test"},
    "endpoints.pin": {"name": "ranker", "stable": {"bundle": "teacher"}, "reason": "a test"},
    "endpoints.kill": {"name": "ranker"},
    "endpoints.release": {"name": "ranker"},
    "audit.list": {},
    "audit.explain": {"seq": 1},
    "cache.stats": {},
    "cache.warm": {"name": "ranker"},
    "log.hold": {"routing_key": "u2", "reason": "a test"},
    "log.holds": {},
    "log.release": {"routing_key": "u2"},
    "log.export": {},
    "backups.make": {},
    "log.forget": {"routing_key": "u1"},
    "worker.status": {},
}
# Buttons of the console in an order in which each can be pressed, with what the dialog asks for beside the reason.
BUTTONS = (
    ("rollouts.start", "Start rollout", {"Rollout file, as text": rollout_file()}),
    ("rollouts.pause", "Pause", {}),
    ("rollouts.resume", "Resume", {}),
    ("rollouts.promote", "Promote one step", {}),
    ("rollouts.set_weight", "Set weight", {}),
    ("rollouts.abort", "Abort", {}),
    ("endpoints.kill", "Kill", {}),
    ("endpoints.release", "Release", {}),
)
BY_THE_STATE = ("Conflict", "NotFound")
"""Kinds of errors of callers that were let in."""


@dataclass
class Doors:
    made: Installation
    url: str
    target: str
    tokens: dict[str, str]

    def verbs(self) -> list[str]:
        """The verbs in the audit of the endpoint and of the installation, oldest first."""
        return [entry.verb for entry in self.made.store.audit()]


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    http = free_port()
    listen = {"grpc_port": 0, "http_port": http, "admin_port": free_port(), "limits": {"wrong_tokens_burst": 1000}}
    made = Installation(tmp_path_factory.mktemp("access-table") / "home", listen=listen)
    store, now = TokenStore(made.config.tokens), SystemClock().wall_ms()
    tokens = {"no token": "", "wrong token": "baton_00000000_wrong"}
    tokens["expired token"] = store.create("was", Role.OPERATOR, now - 2, now - 1)[1]
    tokens |= {role: store.create(f"the-{role}", Role(role), now)[1] for role in ("viewer", "operator")}
    url = f"http://127.0.0.1:{http}"

    def answers() -> bool:
        try:
            return httpx.get(f"{url}/healthz", trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    control = Process(made, "from serving.processes.control import run_control; run_control(config)")
    with control, running(made.config) as lane:
        eventually(answers, "the control process answers", 120)
        yield Doors(made, url, lane.target, tokens)
    made.store.close()


def test_the_table_is_what_the_doors_do(doors: Doors) -> None:
    assert set(ADMIN) == set(VERBS)
    tables = {
        "Admin gRPC": _admin(doors, lambda token: Grpc(doors.made.config.listen.admin_port, token=token)),
        "REST": _admin(doors, lambda token: Rest(doors.made.config.listen.http_port, token=token)),
        "Open Inference": _inference(doors),
        "The console's WebSocket": _console(doors),
    }
    text = "\n".join([HEAD, *(_drawn(name, rows) for name, rows in tables.items())])
    if os.environ.get("ACCESS_TABLE") == "write":
        FILE.write_text(text)
    assert FILE.read_text() == text
    for name in ("Admin gRPC", "REST"):
        for verb, cells in tables[name].items():
            may = "PermissionDenied" if VERBS[verb].role is Role.OPERATOR else "yes"
            assert cells == ["Unauthenticated"] * 3 + [may, "yes"], f"{name}: {verb}"


def _admin(doors: Doors, door: Callable[[str], Any]) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {verb: [] for verb in ADMIN}
    for caller in CALLERS:
        way, before = door(doors.tokens[caller]), doors.verbs()
        for verb, fields in ADMIN.items():
            try:
                way.do(verb, **fields)
                rows[verb].append("yes")
            except Refused as refused:
                rows[verb].append("yes" if refused.kind in BY_THE_STATE else refused.kind)
        way.close()
        assert (doors.verbs() == before) is (caller != "operator")  # what is refused leaves no trace of a change
    return rows


def _inference(doors: Doors) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {}
    with grpc.insecure_channel(doors.target) as channel:
        for name, (request, _) in inference.methods().items():
            message = request()
            for field in ("name", "model_name"):
                if field in request.DESCRIPTOR.fields_by_name:
                    setattr(message, field, "student")
            for caller in CALLERS:
                rows.setdefault(name, []).append(_called(channel, name, message, doors.tokens[caller]))
    return rows


def _called(channel: grpc.Channel, name: str, message: Any, token: str) -> str:
    shut = {grpc.StatusCode.UNAUTHENTICATED: "Unauthenticated", grpc.StatusCode.PERMISSION_DENIED: "PermissionDenied"}
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    call: Any = channel.unary_unary(f"/{inference.SERVICE}/{name}")
    try:
        call(message.SerializeToString(), timeout=20, metadata=metadata)
    except grpc.RpcError as error:
        return shut.get(error.code(), "yes")  # type: ignore[attr-defined]
    return "yes"


def _console(doors: Doors) -> dict[str, list[str]]:
    """By each caller's own page, and by messages forged for the operator's."""
    cookies = {caller: sign_in(doors.url, token) if token else {} for caller, token in doors.tokens.items()}
    whole = opened_page(doors.url, "/endpoints/ranker", cookies["operator"])
    assert whole is not None
    rows: dict[str, list[str]] = {"open a page": [], "open a socket": [], **{verb: [] for verb, *_ in BUTTONS}}
    with connected(doors.url, whole, cookies["operator"]) as of_operator:
        assert of_operator is not None
        for caller in CALLERS[:-1]:
            own = opened_page(doors.url, "/endpoints/ranker", cookies[caller])
            rows["open a page"].append("Unauthenticated" if own is None else "yes")
            with connected(doors.url, own or whole, cookies[caller]) as socket:
                rows["open a socket"].append("Unauthenticated" if socket is None else "yes")
                for verb, label, _ in BUTTONS:
                    rows[verb].append("Unauthenticated" if socket is None else _forged(doors, socket, whole, label))
        rows["open a page"].append("yes")
        rows["open a socket"].append("yes")
        for verb, label, fields in BUTTONS:
            rows[verb].append(_pressed(doors, of_operator, verb, label, fields))
    return rows


def _forged(doors: Doors, socket: Socket, whole: Page, label: str) -> str:
    """Press a button that is not on the own page, by messages that name the operator's."""
    with pytest.raises(LookupError):
        socket.page.number(label=label)
    before = doors.verbs()
    socket.send(whole.number(label=label), "click", page=whole)
    socket.send(whole.number(label="Reason, for the audit"), "update:value", "forged", page=whole)
    socket.send(whole.number(tag="form"), "submit", page=whole)
    assert "forged" not in [entry.reason for entry in doors.made.store.audit()]
    return "PermissionDenied" if doors.verbs() == before else "yes"


def _pressed(doors: Doors, socket: Socket, verb: str, label: str, fields: dict[str, str]) -> str:
    """Press a button as soon as the page shows it, give a reason, confirm, and see it in the audit."""
    page, reason = socket.page, f"by the console: {verb}"
    button = page.number(label=label)
    eventually(
        lambda: "hidden" not in str(socket.told.get(button, {"class": "hidden"}).get("class")), f"{label} is shown", 30
    )
    socket.send(button, "click")
    for name, value in {**fields, "Reason, for the audit": reason}.items():
        socket.send(page.number(label=name), "update:value", value)

    def done() -> bool:
        """Confirm, again where the page says that it changed meanwhile."""
        if not any(entry.reason == reason for entry in doors.made.store.audit()):
            socket.send(page.number(tag="form"), "submit")
            time.sleep(0.5)
        return any(entry.reason == reason for entry in doors.made.store.audit())

    eventually(done, f"{verb} is in the audit", 30)
    return "yes"


def _drawn(name: str, rows: dict[str, list[str]]) -> str:
    lines = [f"## {name}", "", f"| | {' | '.join(CALLERS)} |", "|---" * (len(CALLERS) + 1) + "|"]
    lines += [f"| {row} | {' | '.join(cells)} |" for row, cells in rows.items()]
    return "\n".join([*lines, ""])

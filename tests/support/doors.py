"""Clients of an installation's `Admin`, one class per interface, so that one test can go through all of them.

A door does a verb with the fields of its request and gives the answer as JSON, or raises `Refused`. Another door is
another class with `do`; `doors` opens those that the scenario goes through.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol

import grpc
import httpx
from google.protobuf import json_format
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2
from typer.testing import CliRunner

from serving.cli.main import app
from serving.services.admin import SERVICES, verb_of
from serving.wire.errors import DETAILS_KEY

__all__ = ["METHODS", "ROUTES", "CommandLine", "Door", "Grpc", "Refused", "Rest"]

ROUTES = {
    "endpoints.list": ("GET", "/endpoints"),
    "endpoints.get": ("GET", "/endpoints/{name}"),
    "endpoints.set": ("PUT", "/endpoints/{name}"),
    "endpoints.pin": ("POST", "/endpoints/{name}/pin"),
    "endpoints.kill": ("POST", "/endpoints/{name}/kill"),
    "endpoints.release": ("POST", "/endpoints/{name}/release"),
    "models.list": ("GET", "/models"),
    "models.load": ("POST", "/models/{bundle}/load"),
    "models.unload": ("POST", "/models/{bundle}/unload"),
    "models.retire": ("POST", "/models/{bundle}/retire"),
    "models.warm": ("POST", "/models/{bundle}/warm"),
    "rollouts.start": ("POST", "/rollouts"),
    "rollouts.list": ("GET", "/rollouts"),
    "rollouts.get": ("GET", "/rollouts/{name}"),
    "rollouts.watch": ("GET", "/rollouts/{name}/watch"),
    "rollouts.pause": ("POST", "/rollouts/{name}/pause"),
    "rollouts.resume": ("POST", "/rollouts/{name}/resume"),
    "rollouts.promote": ("POST", "/rollouts/{name}/promote"),
    "rollouts.approve": ("POST", "/rollouts/{name}/approve"),
    "rollouts.abort": ("POST", "/rollouts/{name}/abort"),
    "rollouts.undo": ("POST", "/rollouts/{name}/undo"),
    "rollouts.set_weight": ("POST", "/rollouts/{name}/set-weight"),
    "rollouts.freeze": ("POST", "/freeze"),
    "rollouts.lift": ("POST", "/freeze/lift"),
    "processes.list": ("GET", "/processes"),
    "processes.restart": ("POST", "/processes/{process}/restart"),
    "metrics.get": ("GET", "/metrics/{endpoint}"),
    "metrics.processes": ("GET", "/status"),
    "metrics.health": ("GET", "/health"),
    "audit.list": ("GET", "/audit"),
    "audit.explain": ("GET", "/audit/{seq}/explain"),
    "cache.stats": ("GET", "/cache"),
    "cache.warm": ("POST", "/cache/{name}/warm"),
    "log.forget": ("POST", "/log/forget"),
    "log.hold": ("POST", "/log/hold"),
    "log.holds": ("GET", "/log/holds"),
    "log.release": ("POST", "/log/release"),
    "log.export": ("POST", "/log/export"),
    "backups.make": ("POST", "/backup"),
    "worker.status": ("GET", "/worker"),
}
"""Where REST has each verb, below `/api/v1`."""
METHODS = {
    verb_of(service.name, method.name).name: (name, method)
    for name, service in SERVICES.items()
    for method in service.methods
}
"""Full name of the gRPC service and method's descriptor of each verb."""


class Refused(Exception):
    """A verb was refused. `kind`: class of the error, "" where the interface does not return it."""

    def __init__(self, kind: str, message: str, field: str = "") -> None:
        super().__init__(f"{kind}: {message}")
        self.kind, self.message, self.field = kind, message, field


class Door(Protocol):
    """Client of one interface."""

    def do(self, verb: str, **fields: Any) -> dict[str, Any]:
        """Answer of a verb; of a stream the first one. Raises: Refused."""


class Rest:
    """`/api/v1` over a socket."""

    def __init__(self, port: int, actor: str = "", token: str = "", key: str = "") -> None:
        headers = {"x-baton-actor": actor, "authorization": f"Bearer {token}" if token else "", "idempotency-key": key}
        self._http = httpx.Client(
            base_url=f"http://127.0.0.1:{port}/api/v1", headers={k: v for k, v in headers.items() if v}, timeout=60
        )

    def do(self, verb: str, **fields: Any) -> dict[str, Any]:
        method, path = ROUTES[verb]
        places = re.findall(r"{(\w+)}", path)
        path = path.format(**{name: fields.pop(name) for name in places})
        sent = {"params": fields} if method == "GET" else {"json": fields}
        with self._http.stream(method, path, **sent) as answer:  # type: ignore[arg-type]
            if answer.is_error:
                error = json.loads(answer.read())["error"]
                raise Refused(error["kind"], error["message"], error["field"])
            if "json" not in answer.headers["content-type"]:
                return {"bytes": sum(len(part) for part in answer.iter_bytes())}
            result: dict[str, Any] = json.loads(next(answer.iter_lines()))
            return result

    def close(self) -> None:
        self._http.close()


class Grpc:
    """`baton.admin.v1`."""

    def __init__(self, port: int, actor: str = "", token: str = "", key: str = "") -> None:
        metadata = {"x-baton-actor": actor, "authorization": f"Bearer {token}" if token else "", "idempotency-key": key}
        self._metadata = tuple((k, v) for k, v in metadata.items() if v)
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")

    def do(self, verb: str, **fields: Any) -> dict[str, Any]:
        service, method = METHODS[verb]
        request = json_format.ParseDict(fields, GetMessageClass(method.input_type)())
        kind = self._channel.unary_stream if method.server_streaming else self._channel.unary_unary
        call = kind(
            f"/{service}/{method.name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        try:
            found = call(request, metadata=self._metadata, timeout=60)
            if method.server_streaming:
                stream, found = found, next(iter(found))
                stream.cancel()
        except grpc.RpcError as error:
            raise _refused(error) from None
        result: dict[str, Any] = json_format.MessageToDict(
            found, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        return result

    def close(self) -> None:
        self._channel.close()


class CommandLine:
    """`baton`, in this process, against a server's URL. It knows the commands that the scenario needs."""

    def __init__(self, port: int, actor: str, monkeypatch: Callable[[str, str], None]) -> None:
        self._server = f"http://127.0.0.1:{port}"
        monkeypatch("BATON_ACTOR", actor)

    def do(self, verb: str, **fields: Any) -> dict[str, Any]:
        service, _, method = verb.partition(".")
        options = [part for name, value in fields.items() for part in self._option(verb, name, value)]
        command = {"endpoints": "endpoint", "rollouts": "rollout", "models": "model"}.get(service, service)
        words = {
            "endpoints.release": ["kill", "--release"],
            "rollouts.freeze": [],
            "rollouts.lift": ["--lift"],
            "rollouts.set_weight": ["set-weight"],
            "audit.list": [],
            "metrics.get": [],
            "worker.status": [],
        }.get(verb, [method])
        if verb == "worker.status":
            command = "status"
        if verb in ("rollouts.freeze", "rollouts.lift"):
            command = "freeze"
        if verb == "models.retire":
            bundle, version = fields.pop("bundle"), fields.pop("version")
            more = (part for key, value in fields.items() for part in self._option(verb, key, value))
            options = [f"{bundle}:{version}", *more]
        if "until_ms" in fields:
            end = datetime.fromtimestamp(fields["until_ms"] / 1000, UTC).isoformat(timespec="milliseconds")
            options = ["--until", end, "--reason", fields["reason"]]
        done = CliRunner().invoke(app, [command, *words, *options, "--server", self._server, "-o", "json"])
        if done.exit_code:
            raise Refused("", " ".join(done.stderr.split()))
        if method == "watch":
            first: dict[str, Any] = json.loads(done.stdout.splitlines()[0])
            return first
        result = json.loads(done.stdout)
        lists = {"audit": "entries"}
        answer: dict[str, Any] = {lists.get(service, service): result} if isinstance(result, list) else result
        return answer["worker"] if verb == "worker.status" else answer

    def close(self) -> None:
        pass

    @staticmethod
    def _option(verb: str, name: str, value: Any) -> list[str]:
        plain = (name == "name" and verb != "rollouts.start") or (name == "weight" and verb == "rollouts.set_weight")
        if plain or (name, verb) in (("endpoint", "metrics.get"), ("file", "rollouts.start"), ("seq", "audit.explain")):
            return [str(value)]
        if isinstance(value, dict):  # an arm
            value = ":".join(filter(None, (value["bundle"], value.get("version", ""))))
        if value is True:
            return [f"--{name}"]
        return [f"--{name.replace('_', '-')}", str(value)]


def _refused(error: Any) -> Refused:
    status = status_pb2.Status.FromString(dict(error.trailing_metadata() or ()).get(DETAILS_KEY, b""))
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(info) or detail.Unpack(bad)
    field = bad.field_violations[0].field if bad.field_violations else ""
    return Refused(info.reason or error.code().name, error.details(), field)

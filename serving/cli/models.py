"""`baton model`: model versions, and loading a bundle under its own name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from pipeline.errors import InvalidInput
from serving.cli.api import DEFAULT_SERVER, AdminClient, lane_options
from serving.cli.options import Bundle, Format, Reason, Server, Token, Why
from serving.cli.output import Output, emit, say

__all__ = ["app"]

app = typer.Typer(help="Model versions: list, load, unload, retire.", no_args_is_help=True)

Wait = Annotated[float, typer.Option(min=0, max=120, help="Seconds to wait for the lanes; 0: not at all")]
Target = Annotated[
    str, typer.Option(help="host:port of a lane's data plane: call it by Open Inference instead of the server")
]
ANSWER_WITHIN_S = 10.0


@app.command("list")
def list_models(server: Server = DEFAULT_SERVER, token: Token = "", output: Format = Output.table) -> None:
    """Show every version in the repository: the gate's verdict, the arms that use it, the lanes that have it loaded.

    Example: baton model list
    """
    found = AdminClient(server, token=token).list("/models", "models")
    rows = [
        (
            m["bundle"],
            int(m["version"]),
            m["architecture"],
            f"delta on {m['base']}" if m["base"] else "base",
            _verdict(m),
            ", ".join(m["arms"]),
            ", ".join(m["lanes"]),
        )
        for m in found
    ]
    columns = ("bundle", "version", "architecture", "kind", "gate", "answers for", "loaded by")
    emit(output, found, "", columns, rows)


@app.command("load")
def load(
    bundle: Bundle,
    wait: Wait = 60.0,
    reason: Reason = "",
    target: Target = "",
    server: Server = DEFAULT_SERVER,
    token: Token = "",
    output: Format = Output.table,
) -> None:
    """Load a bundle's newest version in all lanes, so that it answers under its own name; exit code 1 if a lane cannot.

    Example: baton model load ranker-dcnv2 --reason 'compare by hand'
    """
    _change("load", bundle, wait, reason, target, server, token, output)


@app.command("unload")
def unload(
    bundle: Bundle,
    wait: Wait = 10.0,
    reason: Reason = "",
    target: Target = "",
    server: Server = DEFAULT_SERVER,
    token: Token = "",
    output: Format = Output.table,
) -> None:
    """Undo a `load`; versions that an endpoint's arm needs stay.

    Example: baton model unload ranker-dcnv2
    """
    _change("unload", bundle, wait, reason, target, server, token, output)


@app.command("warm")
def warm(
    bundle: Bundle,
    wait: Wait = 60.0,
    reason: Reason = "",
    target: Target = "",
    server: Server = DEFAULT_SERVER,
    token: Token = "",
    output: Format = Output.table,
) -> None:
    """Load a bundle and run its warm-up requests; the same as `load`, which always runs them.

    Example: baton model warm ranker-dcnv2
    """
    _change("warm", bundle, wait, reason, target, server, token, output)


@app.command("retire")
def retire(
    model: Annotated[str, typer.Argument(help="BUNDLE:VERSION")],
    restore: Annotated[bool, typer.Option("--restore", help="Take it back")] = False,
    reason: Why = "",
    server: Server = DEFAULT_SERVER,
    token: Token = "",
    output: Format = Output.table,
) -> None:
    """Keep a version from every arm that follows the newest, and from new rollouts.

    Example: baton model retire ranker-dcnv2:81 --reason 'wrong features'
    """
    bundle, _, version = model.partition(":")
    if not version:
        raise InvalidInput(f"{model!r} names no version; write BUNDLE:VERSION", "model")
    body = {"version": version, "restore": restore, "reason": reason}
    answer = AdminClient(server, token=token).post(f"/models/{bundle}/retire", body)
    emit(output, answer, "", ("model", "retired"), [(model, answer["retired"])])


def _verdict(model: Mapping[str, Any]) -> str:
    if model["fault"]:
        return f"cannot be loaded: {model['fault']}"
    return "may serve" if model["servable"] else "refused: " + "; ".join(model["reasons"])


def _change(
    verb: str, bundle: str, wait: float, reason: str, target: str, server: str, token: str, output: Output
) -> None:
    """Let all lanes load or unload a bundle, by the server; with a target, call that lane instead."""
    if target:
        _call_lane("RepositoryModelUnload" if verb == "unload" else "RepositoryModelLoad", bundle, target, token)
        return
    body = {"wait_seconds": wait, "reason": reason}
    answer = AdminClient(server, token=token).post(f"/models/{bundle}/{verb}", body, timeout=wait + ANSWER_WITHIN_S)
    name = f"{bundle}:{answer['version']}" if answer["version"] else bundle
    emit(output, answer, "", ("lane", name), sorted(answer["lanes"].items()))
    if not answer["lanes"]:
        say("no lane runs; those that start will see it")
    if not answer["done"]:
        raise typer.Exit(1)


def _call_lane(method: str, bundle: str, target: str, token: str) -> None:
    import grpc

    from protos import inference
    from serving.client import error_of
    from serving.client.pool import check_targets
    from serving.runtime.loopback import channel_arguments

    options = lane_options(token)
    check_targets(target, options)
    request, response = inference.methods()[method]
    metadata = tuple(options.authorization())
    arguments = channel_arguments(target)
    with (
        grpc.insecure_channel(target, options=arguments)
        if options.tls is None
        else grpc.secure_channel(target, options.tls.credentials(), options=arguments)
    ) as channel:
        call = channel.unary_unary(
            f"/{inference.SERVICE}/{method}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        try:
            call(request(model_name=bundle), timeout=120, metadata=metadata)
        except grpc.RpcError as error:
            raise error_of(error) from None
    say(f"{bundle}: done")

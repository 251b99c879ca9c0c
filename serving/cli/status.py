"""`baton status`: every process of a machine, and the progress of the transfer worker."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.bundle.teachers import in_words
from pipeline.errors import BatonError, NotReady
from serving.cli.api import DEFAULT_SERVER, AdminClient
from serving.cli.options import Format, Server, Token
from serving.cli.output import Output, emit, line, say, show_table
from serving.config import Config
from serving.runtime import status as files
from serving.runtime.roster import roster_of
from serving.runtime.status import lane_of
from serving.tiers.unknown import unusual
from serving.wiring.stores import look_at_stores
from serving.wiring.traffic import now_ms_of

__all__ = ["status"]

COLUMNS = ("process", "", "doing", "seconds ago", "restarts", "last exit", "why")
STORE_COLUMNS = ("store", "where", "used MiB", "free MiB", "of MiB", "refused writes", "state")
REMOTE_COLUMNS = ("version", "process", "server", "breaker", "calls", "rows", "failed", "last failure")


def status(
    server: Server = DEFAULT_SERVER,
    token: Token = "",
    config: Annotated[
        Path,
        typer.Option("--config", help="Configuration of this machine, for its files where the server does not answer"),
    ] = Path("baton.yaml"),
    output: Format = Output.table,
) -> None:
    """Show the state of every process, with restarts and last exit, and the worker: its weights, its last versions, those
    that the gate refused and why. Where the server does not answer, the processes' files are read; then exit code 1.

    Example: baton status
    """
    client = AdminClient(server, token=token)
    try:
        client.check_alive()
        processes, worker = client.get("/status"), client.get("/worker")
    except NotReady as error:
        _from_files(config, error, output)
        raise typer.Exit(1) from None
    _show(processes, {"processes": processes, "worker": worker}, output)
    if output is Output.table and worker["versions"]:
        _show_worker(worker)


def _from_files(path: Path, error: NotReady, output: Output) -> None:
    """Show what the processes wrote into the home, since no server tells."""
    if not path.exists():
        raise error
    try:
        config = Config.load(path)
    except BatonError:
        raise error from None
    now_ms = now_ms_of(config)
    say(f"{error}; this is from the files in {config.home}")
    found = files.read(config.status, now_ms)
    processes = {
        "processes": [asdict(process) for process in roster_of(config, now_ms)],
        "damaged": [asdict(damaged) for damaged in found.damaged],
        "control": None if found.control is None else found.control.to_json(),
        "stores": [{**asdict(store), "full": store.full} for store in look_at_stores(config)],
    }
    _show(processes, {"server": str(error), "processes": processes}, output)


def _show(processes: dict[str, Any], data: dict[str, Any], output: Output) -> None:
    rows = [
        (p["name"], p["state"], p["doing"] or "-", p["age_s"], p["restarts"], p["last_exit"] or "-", p["why"] or "-")
        for p in processes["processes"]
    ]
    emit(output, data, "", COLUMNS, rows)
    if output is Output.table:
        if freeze := processes.get("freeze"):
            end = datetime.fromtimestamp(freeze["until_ms"] / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            line(f"rollouts are frozen until {end} by {freeze['actor']}: {freeze['reason']}")
        for fault in processes.get("faults", ()):
            line(fault)
        for damaged in processes.get("damaged", ()):
            line(f"{damaged['file']} is damaged: {damaged['reason']}")
        if stores := processes.get("stores"):
            show_table("stores", STORE_COLUMNS, [_store_row(store) for store in stores])
        lanes = processes.get("lanes", {})
        for warning in unusual({name: lane_of(lane) for name, lane in lanes.items() if lane.get("fresh")}):
            line(warning)
        shadows = processes.get("shadow")
        remotes = [*lanes.items(), *([("shadow", shadows)] if shadows else [])]
        if rows := [
            _remote_row(name, key, remote) for name, lane in remotes for key, remote in lane.get("remotes", {}).items()
        ]:
            show_table("models on other servers", REMOTE_COLUMNS, rows)
        faults = {key: why for lane in lanes.values() for key, why in lane.get("faults", {}).items()}
        faults |= (processes.get("control") or {}).get("damaged", {})
        if faults:
            show_table("versions that cannot be loaded", ("version", "why"), sorted(faults.items()))


def _store_row(store: dict[str, Any]) -> tuple[Any, ...]:
    limited = bool(store["size_bytes"]) and not store["reason"]
    used, size, free = (store[name] / (1 << 20) for name in ("used_bytes", "size_bytes", "free_bytes"))
    state = store["reason"] or ("nearly full" if store["full"] else "answers")
    return (
        f"{store['name']} ({store['kind']})", store["where"], "-" if store["reason"] else f"{used:,.0f}",
        f"{free:,.0f}" if limited else "-", f"{size:,.0f}" if limited else "no limit", store["refused"], state,
    )  # fmt: skip


def _remote_row(process: str, key: str, remote: dict[str, Any]) -> tuple[Any, ...]:
    failed = ", ".join(f"{kind} {count:,}" for kind, count in remote["failed"].items())
    return (key, process, f"{remote['address']} {remote['model']}", remote["breaker"], remote["calls"], remote["rows"],
            failed or "-", remote["reason"] or "-")  # fmt: skip


def _show_worker(worker: dict[str, Any]) -> None:
    facts = [
        ("teacher", _teacher(worker)),
        ("a, weight of the teacher in the loss", worker["weight"]),
        ("r, retained rows per fresh row", worker["replay_ratio"]),
        ("K, batches between two updates of the teacher", worker["teacher_every"]),
        ("last versions", ", ".join(f"{bundle}:{version}" for bundle, version in worker["versions"].items())),
        ("batches", worker["batches"]),
        ("rows trained on", worker["trained_rows"]),
        ("of these from labels alone, without a score of the teacher", worker.get("unguided_rows", 0)),
        ("labelled rows without recorded features, left out", worker.get("featureless", 0)),
        ("loss of the last batch", worker["loss"]),
    ]
    show_table("worker", ("what", "value"), [(name, _text(value)) for name, value in facts])
    if worker["refused"]:
        refused = [(r["bundle"], r["version"], "; ".join(r["reasons"])) for r in worker["refused"]]
        show_table("refused by the gate", ("bundle", "version", "why"), refused)


def _teacher(worker: dict[str, Any]) -> str:
    if not worker.get("teacher"):
        return "-"
    return in_words(worker["teacher"], worker.get("teacher_kind", ""), worker.get("teacher_reason", ""))


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)

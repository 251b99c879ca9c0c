"""`baton status`: every process of a machine, and the progress of the transfer worker."""

from __future__ import annotations

from typing import Any

import typer

from serving.cli.api import DEFAULT_SERVER, AdminClient
from serving.cli.options import Format, Server, Token
from serving.cli.output import Output, emit, show_table

__all__ = ["status"]


def status(server: Server = DEFAULT_SERVER, token: Token = "", output: Format = Output.table) -> None:
    """Show which processes report, and the worker: its weights, its last versions, those that the gate refused and why.

    Example: baton status
    """
    client = AdminClient(server, token=token)
    processes, worker = client.get("/status"), client.get("/worker")
    reports = {
        **processes["lanes"],
        **{name: processes[name] for name in ("shadow", "worker") if processes[name]},
    }
    rows = [
        (name, "lives" if report.get("fresh") else "does not report", report.get("age_s"), report.get("state", "-"))
        for name, report in reports.items()
    ]
    # The supervisor writes when something changes, so its status has no age.
    children = (processes["supervisor"] or {}).get("children", {}).values()
    if children:
        restarts = sum(child["restarts"] for child in children)
        rows.append(("supervisor", f"{len(children)} processes", None, f"{restarts} restarts"))
    emit(output, {"processes": processes, "worker": worker}, "", ("process", "", "seconds ago", "state"), rows)
    if output is Output.table:
        for damaged in processes.get("damaged", ()):
            typer.echo(f"{damaged['file']} is damaged: {damaged['reason']}")
    if output is Output.table and worker["versions"]:
        _show_worker(worker)


def _show_worker(worker: dict[str, Any]) -> None:
    facts = [
        ("a, weight of the teacher in the loss", worker["weight"]),
        ("r, retained rows per fresh row", worker["replay_ratio"]),
        ("K, batches between two updates of the teacher", worker["teacher_every"]),
        ("last versions", ", ".join(f"{bundle}:{version}" for bundle, version in worker["versions"].items())),
        ("batches", worker["batches"]),
        ("rows trained on", worker["trained_rows"]),
        ("loss of the last batch", worker["loss"]),
    ]
    show_table("worker", ("what", "value"), [(name, _text(value)) for name, value in facts])
    if worker["refused"]:
        refused = [(r["bundle"], r["version"], "; ".join(r["reasons"])) for r in worker["refused"]]
        show_table("refused by the gate", ("bundle", "version", "why"), refused)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)

"""`baton metrics`, `baton audit`, `baton audit explain`: figures and evidence of a rollout's verdicts."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from serving.cli.api import DEFAULT_SERVER, AdminClient
from serving.cli.demo_view import PHASE_COLUMNS, phase_rows
from serving.cli.options import Endpoint, Format, Server, Token
from serving.cli.output import Output, emit, say

__all__ = ["audit", "metrics"]

audit = typer.Typer()

_ROWS_TIMEOUT_S = 3600.0
_OUTCOME = ("step", "weight %", "requests, stable", "requests, candidate", "per request, stable", "candidate",
            "difference", "low", "high")  # fmt: skip
_LONG_RUN = ("answered by", "requests", "per request", "low", "high")
_CALIBRATION = ("step", "arm", "AUC within", "calibration error", "score drift (PSI)", "bias by tenth of the scores")
_SLICE = ("segment", "rows", "clicks", "share", "bias, stable", "bias, candidate", "low", "high", "LogLoss difference",
            "low", "high")  # fmt: skip


def metrics(
    endpoint: Endpoint, server: Server = DEFAULT_SERVER, token: Token = "", output: Format = Output.table
) -> None:
    """Show bias with its interval, AUC, LogLoss, outcome, calibration and rows per arm, step and slice of the traffic.

    Example: baton metrics ranker
    """
    found = AdminClient(server, token=token).get(f"/metrics/{endpoint}")
    if output is Output.json:
        emit(output, found, "", (), ())
        return
    phases = AdminClient(server, token=token).get(f"/rollouts/{endpoint}")["phases"]
    emit(output, None, f"{endpoint}, both arms on the same rows", PHASE_COLUMNS, phase_rows(phases))
    emit(output, None, "outcome per request, each arm on what it answered", _OUTCOME,
         [_outcome_row(phase) for phase in found["phases"] if phase["outcome"]])  # fmt: skip
    if found["long_run"] is not None:
        _long_run(found["long_run"])
    rows = [_calibration_row(phase, arm) for phase in found["phases"] for arm in ("stable", "candidate")]
    emit(output, None, "calibration and drift against the first step", _CALIBRATION, rows)
    if found["segments"]:
        drift = ", ".join(f"{name} {psi:.3f}" for name, psi in found["psi"].items() if psi is not None)
        title = "parts of the traffic" + (f"; drift since the first step (PSI): {drift}" if drift else "")
        emit(output, None, title, _SLICE, [_slice_row(figures) for figures in found["segments"]])


@audit.callback(invoke_without_command=True)
def list_audit(
    context: typer.Context,
    endpoint: Annotated[str, typer.Option(help="Only this endpoint's")] = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Most entries to show")] = 1000,
    server: Server = DEFAULT_SERVER,
    token: Token = "",
    output: Format = Output.table,
) -> None:
    """Show who changed what, when and why, oldest first; `explain SEQ` shows the figures of a verdict.

    Example: baton audit --endpoint ranker
    """
    if context.invoked_subcommand is not None:
        return
    found = AdminClient(server, token=token).list("/audit", "entries", most=limit, endpoint=endpoint or None)
    rows = [
        (
            e["seq"],
            _time(e["time_ms"]),
            e["endpoint"],
            e["actor"],
            e["verb"],
            _weight(e),
            e["reason"],
        )
        for e in found
    ]
    emit(output, found, "", ("seq", "time (UTC)", "endpoint", "actor", "verb", "weight after", "reason"), rows)


@audit.command("explain")
def explain(
    seq: Annotated[int, typer.Argument(min=1, help="Number of the entry, from `baton audit`")],
    rows: Annotated[
        bool, typer.Option("--rows", help="From the rows of the log; takes as long as reading them")
    ] = False,
    server: Server = DEFAULT_SERVER,
    token: Token = "",
    output: Format = Output.table,
) -> None:
    """Compute the figures of a verdict again from its sums and show both; exit code 1 if they differ.

    Example: baton audit explain 42
    """
    client = AdminClient(server, token=token, timeout=_ROWS_TIMEOUT_S if rows else 10.0)
    found = client.get(f"/audit/{seq}/explain", rows=True if rows else None)
    entry = found["entry"]
    table = [(f["name"], f["used"], f["recomputed"], "" if f["same"] else "DIFFERENT") for f in found["figures"]]
    title = f"{seq}: {entry['verb']} of {entry['endpoint']} by {entry['actor']}, {_time(entry['time_ms'])}"
    if output is Output.json or table:
        emit(output, found, title, ("figure", "used", "computed now", ""), table)
    if output is Output.table:
        say(f"reason: {entry['reason']}")
        if found["verdict"]:
            say(f"computed now: {found['verdict']}")
        say(found["note"])
    if found["same"] is False:
        raise typer.Exit(1)


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _weight(entry: dict[str, Any]) -> str:
    """Weight after the change; entries about tokens, models or the cache have none."""
    endpoint = entry["after"].get("endpoint")
    return f"{endpoint['weight']:g} %" if endpoint else "-"


def _outcome_row(phase: dict[str, Any]) -> tuple[Any, ...]:
    outcome, requests = phase["outcome"], phase["requests"]
    apart = outcome["difference"]
    return (str(phase["step"]), f"{phase['weight']:g}", requests["stable"], requests["candidate"],
            outcome["stable"]["value"], outcome["candidate"]["value"], apart["value"], apart["low"], apart["high"])  # fmt: skip


def _long_run(effect: dict[str, Any]) -> None:
    """Print the long-run effect of the hand-over: moved keys against those that stayed."""
    until = "now" if effect["until_ms"] is None else _time(effect["until_ms"])
    title = (
        f"long run at weight {effect['weight']:g} with a holdout of {effect['holdout']:.1%}: outcome per request from "
        f"{_time(effect['since_ms'])} until {until} (UTC)"
    )
    rows = [
        (arm, effect["requests"].get(arm), *(interval[name] for name in ("value", "low", "high")))
        for arm, interval in effect["outcome"].items()
    ]
    emit(Output.table, None, title, _LONG_RUN, rows)


def _calibration_row(phase: dict[str, Any], arm: str) -> tuple[Any, ...]:
    figures = phase[arm]
    tenths = " ".join("-" if tenth["bias"] is None else f"{tenth['bias']:+.2f}" for tenth in figures["deciles"])
    return str(phase["step"]), arm, figures["auc_bound"], figures["calibration_error"], figures["score_psi"], tenths


def _slice_row(figures: dict[str, Any]) -> tuple[Any, ...]:
    bias, apart = figures["candidate"], figures["logloss_delta"]
    return (figures["segment"], figures["rows"], figures["clicks"], f"{figures['share']:.1%}", figures["stable"]["value"],
            bias["value"], bias["low"], bias["high"], apart["value"], apart["low"], apart["high"])  # fmt: skip

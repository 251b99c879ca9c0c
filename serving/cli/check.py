"""`baton doctor`: checks of the machine and the configuration, with the remedy where one fails."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sqlite3
import stat
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated

import typer

from pipeline import host
from pipeline.bundle.bundle import Manifest
from pipeline.bundle.teachers import IMPORTED, in_words, teacher_kind
from pipeline.bundle.versions import Repository
from pipeline.clock import SystemClock
from pipeline.errors import BatonError
from pipeline.model.probe import PROBED, Verdict, noted
from pipeline.stages.record import Record
from serving.cli.output import Output, emit
from serving.config import Config
from serving.lane.stages import lane_plan
from serving.rollout.routing import is_observed
from serving.runtime import status
from serving.runtime.claims import holders
from serving.runtime.ports import listening, port_holders, taken
from serving.runtime.roster import last_endings, roster_of
from serving.security.certificates import Certificates
from serving.security.exposure import exposure
from serving.security.modes import exchangeable, open_parts
from serving.tiers.unknown import unusual
from serving.wiring.bundles import open_repository
from serving.wiring.home import home_faults
from serving.wiring.in_force import not_in_force
from serving.wiring.state_restore import state_condition
from serving.wiring.stores import look_at_stores
from serving.wiring.traffic import now_ms_of
from transfer.architecture_names import is_known, unknown_architecture

__all__ = ["doctor"]

LEAST_MEMORY_BYTES = 4 << 30
LEAST_DISK_BYTES = 2 << 30
DATABASE_CHECK_S = 30.0

Finding = tuple[str, bool, str]


def doctor(
    config: Annotated[Path, typer.Option("--config", help="Configuration file; its absence is fine")] = Path(
        "baton.yaml"
    ),
    output: Annotated[
        Output, typer.Option("-o", "--output", help="table for people, json for programs")
    ] = Output.table,
) -> None:
    """Check Python, libraries, memory, disk, ports and the configured bundles; exit code 1 when something is wrong.

    Example: baton doctor --config baton.yaml
    """
    findings = [*_machine(), *_configured(config)]
    data = [{"check": name, "ok": ok, "detail": detail} for name, ok, detail in findings]
    emit(output, {"ok": all(ok for _, ok, _ in findings), "checks": data}, "", ("check", "ok", "detail"), findings)
    if not all(ok for _, ok, _ in findings):
        raise typer.Exit(1)


def _machine() -> list[Finding]:
    cores, memory = host.cores(), host.memory()
    free = shutil.disk_usage(".").free
    found: list[Finding] = [
        ("python", sys.version_info >= (3, 11), f"{platform.python_version()} (3.11 or newer is needed)"),
        ("cores", True, host.cores_in_words(cores)),
        ("memory", memory.amount >= LEAST_MEMORY_BYTES, f"{host.memory_in_words(memory)} (4 GiB or more)"),
        ("disk", free >= LEAST_DISK_BYTES, f"{free / (1 << 30):.1f} GiB free here (2 or more)"),
        ("sqlite", sqlite3.sqlite_version_info >= (3, 37), f"{sqlite3.sqlite_version} (3.37 or newer)"),
    ]
    for module in ("grpc", "onnxruntime", "torch", "numba", "uvloop"):
        installed = importlib.util.find_spec(module) is not None
        found.append((module, installed, "installed" if installed else "missing: pip install -e . in the project"))
    ray = importlib.util.find_spec("ray") is not None
    found.append(("ray", True, "installed" if ray else "not installed; only several machines need it"))
    return found


def _configured(path: Path) -> list[Finding]:
    if not path.exists():
        return [("config", True, f"{path} is not there; nothing more to check")]
    try:
        config = Config.load(path)
    except BatonError as error:
        return [("config", False, str(error))]
    found: list[Finding] = [("config", True, str(path))]
    found.append(_home(config))
    found += [
        (f"{store.kind} {store.name}", not (store.full or store.reason), str(store)) for store in look_at_stores(config)
    ]
    found.append(_state(config))
    found += [_port(config, name, port) for name, port in config.listen.ports.items()]
    found += _processes(config)
    try:
        steps = lane_plan(Record(SystemClock(), lambda _: True), config.stages).compile().steps
    except BatonError as error:
        found.append(("stages", False, str(error)))
    else:
        found.append(("stages", True, ", ".join(step.name for step in steps)))
    found += _in_force(config)
    found += _security(config, path)
    if config.embedding.redis is not None or config.state.url or config.traffic.url:
        from serving.cli.check_redis import redis_findings  # imports redis, which is not needed without one

        found += redis_findings(config)
    found += _unknown_ids(config)
    repository = open_repository(config)
    for endpoint, arms in config.endpoints.items():
        for arm, spec in (("stable", arms.stable), ("candidate", arms.candidate)):
            if spec is None:
                continue
            if is_observed(spec.bundle):
                found.append((f"{endpoint}/{arm}", True, f"{spec.bundle} is answered elsewhere and told by Observe"))
                continue
            try:
                bundle = repository.open(spec.bundle, spec.version, verify=True)
                version = bundle.manifest.version
            except BatonError as error:
                found.append((f"{endpoint}/{arm}", False, str(error)))
            else:
                if bundle.manifest.remote:
                    from serving.cli.check_remote import remote_finding  # imports gRPC's client side

                    found.append((f"{endpoint}/{arm} server", *remote_finding(bundle, config)))
                aside = noted(config.segments / spec.bundle / PROBED).get(version, Verdict()).reason
                detail = f"set aside: {aside}" if aside else "is whole"
                found.append((f"{endpoint}/{arm}", not aside, f"{spec.bundle} {version} {detail}"))
    found += _teachers(config, repository)
    broken = {f"{name}/{v}": why for name in repository.names() for v, why in repository.damaged(name).items()}
    found.append(
        ("versions", not broken, "; ".join(f"{key}: {why}" for key, why in broken.items()) or "none is damaged")
    )
    return found


def _teachers(config: Config, repository: Repository) -> Iterator[Finding]:
    """Of endpoints with two arms whose versions can be read: how their fields differ, and how the worker's teacher teaches."""
    for name, endpoint in config.endpoints.items():
        if endpoint.candidate is None:
            continue
        try:
            stable, candidate = (
                repository.open(spec.bundle, spec.version).manifest for spec in (endpoint.stable, endpoint.candidate)
            )
        except BatonError:
            continue  # said where the arms are checked
        yield _fields(name, stable, candidate)
        if config.worker is not None and config.worker.endpoint == name:
            own = config.worker.architectures
            unusable = not is_known(stable.architecture, own)
            kind = "frozen" if unusable and teacher_kind(stable) == "learns" else teacher_kind(stable)
            yield (
                f"{name}/teacher",
                True,
                in_words(stable.name, kind, _why_frozen(stable, own) if kind == "frozen" else ""),
            )


def _fields(name: str, stable: Manifest, candidate: Manifest) -> Finding:
    contradiction = candidate.model_schema.inputs_match(stable.model_schema)
    if contradiction:
        return f"{name}/fields", False, f"candidate {candidate.name} contradicts stable {stable.name}: {contradiction}"
    alone = [
        f"{manifest.name} alone reads {', '.join(fields)}"
        for manifest, other in ((candidate, stable), (stable, candidate))
        if (fields := manifest.model_schema.fields_beside(other.model_schema))
    ]
    return f"{name}/fields", True, "; ".join(alone) or "both arms read the same"


def _why_frozen(manifest: Manifest, own: Collection[str]) -> str:
    if manifest.architecture == IMPORTED:
        return f"version {manifest.version} was imported"
    if not is_known(manifest.architecture, own):
        return unknown_architecture(manifest.architecture)
    return f"version {manifest.version} has no training state"


def _home(config: Config) -> Finding:
    faults = home_faults(config, DATABASE_CHECK_S)
    return ("home", not faults, "; ".join(faults) or f"{config.home} is whole")


def _state(config: Config) -> Finding:
    """Whether the state is the one that this home knows; how its Redis is kept is checked beside."""
    try:
        found = state_condition(config)
    except BatonError as error:
        return ("state identity", False, str(error))
    said = "there is none yet" if found.condition == "new" else f"{found.identity} is the one of this home"
    return ("state identity", not found.problem, found.problem or said)


def _port(config: Config, name: str, port: int) -> Finding:
    """Whether a port is free, or this home's alone."""
    host, home = config.listen.host, str(config.home.resolve())
    if port == 0:
        return (name, True, "0: any free port")
    try:
        claims, why = port_holders(host, port), taken(host, port)
    except BatonError as error:
        return (name, False, str(error))
    other = next((claim for claim in claims if claim.home != home), None)
    if other is not None:
        return (name, False, f"{port} is in use by another installation: {other}; end it, or set another port")
    known = {claim.pid for claim in claims}
    strangers = [f"`{command}` (pid {pid})" for pid, command in listening(host, port).items() if pid not in known]
    if strangers or (why and not claims):
        who = ", ".join(strangers) or "another program"
        return (
            name,
            False,
            f"{port} is in use by {who}, which is no process of this home: end it, or set another port",
        )
    return (name, True, f"{port}: " + (f"this home has it: {claims[0]}" if claims else "free"))


def _closed(config: Config) -> str:
    made = f"{stat.S_IMODE(config.home.stat().st_mode):04o}" if config.home.exists() else "0700 from the start on"
    return f"home has mode {made}; keys, tokens and passwords are their owner's alone"


def _processes(config: Config) -> list[Finding]:
    """Processes of this home that do not run as they should; where none runs, those that could not start."""
    if not holders(config.home):
        return [(name, False, f"it could not run: {why}") for name, why in last_endings(config).items()]
    states = roster_of(config, now_ms_of(config))
    sick = [(process.name, False, f"{process.state}: {process.why}") for process in states if not process.well]
    return sick or [("processes", True, f"{len(states)} run")]


def _unknown_ids(config: Config) -> list[Finding]:
    """What running lanes are asked for that their models do not know."""
    lanes = status.read(config.status, now_ms_of(config)).fresh().lanes
    said = list(unusual({name: report.status for name, report in lanes.items()}))
    return [("unknown ids", True, "; ".join(said) or "as at training")] if lanes else []


def _in_force(config: Config) -> list[Finding]:
    """Settings that the state has decided otherwise; no fault, but nothing that may stay unsaid."""
    try:
        lines = not_in_force(config)
    except BatonError as error:
        return [("in force", False, str(error))]
    return [("in force", True, line) for line in lines] or [("in force", True, "endpoints are as configured")]


def _security(config: Config, path: Path) -> list[Finding]:
    weak = list(open_parts(config, path))
    well = [_closed(config), *(f"warning: {problem}" for problem in exchangeable(config.home))]
    found: list[Finding] = [("file modes", not weak, "; ".join(weak or well))]
    try:
        found.append(("exposure", True, "; ".join(exposure(config)) or "tokens are needed"))
    except BatonError as error:
        found.append(("exposure", False, str(error)))
    if config.listen.tls is not None:
        try:
            Certificates(config.listen.tls)
        except BatonError as error:
            found.append(("tls", False, str(error)))
        else:
            found.append(("tls", True, "certificate, key and roots load and fit together"))
    return found

"""Restore of a lost state: from the home's snapshot, from a backup, or from the configuration; and the choice of another one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from pipeline.clock import Clock
from pipeline.disk import copy_database
from pipeline.errors import InvalidInput, NotReady
from serving.config import Config, EndpointConfig
from serving.rollout.document import StateDocument, StoredRollout
from serving.rollout.identity import HomeIdentity, StateLost, new_identity, shown_identity
from serving.rollout.routing import ArmSpec, Endpoint
from serving.rollout.sqlite_store import SqliteControlStore
from serving.rollout.state import Cause, Pause, Phase, after, apply
from serving.rollout.store import Who
from serving.state.kill import KillFlag
from serving.state.snapshot import SnapshotFile, StateSnapshot
from serving.wiring.backup import STATE, read_backup
from serving.wiring.state import agree_secret, open_control_store, open_kill_switch, open_snapshot

__all__ = ["Restored", "StateCondition", "adopt_state", "restore_state", "state_condition"]


@dataclass(frozen=True, slots=True)
class StateCondition:
    """Whether the state is the one that a home knows.

    Args:
        condition: `here`, `empty`, `another`, `gone` (lost), or `away`: it does not answer.
        identity: that the home knows; "": none. problem: what is wrong, and what to do; "": nothing.
        snapshot: of the home; None: there is none.
    """

    condition: str
    identity: str
    problem: str
    snapshot: StateSnapshot | None


@dataclass(slots=True)
class Restored:
    """What a restore has brought back, each as (what, name, how), and what is not back."""

    source: str
    back: list[tuple[str, str, str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def state_condition(config: Config) -> StateCondition:
    """The condition of the state of a home. Raises: InvalidInput: the home or its Redis cannot be used."""
    condition, problem = "here", ""
    if not config.state.url and not config.control_db.exists() and not config.state_identity.exists():
        return StateCondition("new", "", "", None)
    try:
        with closing(open_control_store(config)) as store:
            store.data_version()
    except StateLost as error:
        condition, problem = error.kind, str(error)
    except NotReady as error:
        condition, problem = "away", str(error)
    return StateCondition(
        condition, HomeIdentity(config.state_identity).known, problem, open_snapshot(config).known_or_none()
    )


def restore_state(
    config: Config,
    clock: Clock,
    actor: str,
    reason: str,
    *,
    snapshot: Path | None = None,
    backup: Path | None = None,
    configuration: bool = False,
    replace_other: bool = False,
) -> Restored:
    """Fill a lost state again. At most one source is named; the snapshot of the home by default.

    Rollouts come back paused: their evidence is read again, and an operator says that they go on. What was killed stays so.

    Args:
        snapshot: file of another machine's home. replace_other: fill it also where it is another installation's.

    Raises:
        InvalidInput: the source cannot be used. Conflict: the state is not lost, or another's. NotReady: it is away.
    """
    mine = open_snapshot(config).known_or_none()
    source, document, killed = _source(config, clock, mine, snapshot, backup, configuration)
    identity = HomeIdentity(config.state_identity)
    if document.identity and identity.known and document.identity != identity.known and not replace_other:
        raise InvalidInput(
            f"{source} is of the state {shown_identity(document.identity)}, and this home belongs to "
            f"{shown_identity(identity.known)}: name one of this state, or give --replace",
            "snapshot",
        )
    flags = dict(mine.killed if mine is not None else {}) | killed
    now_ms = clock.wall_ms()
    cause = Cause("restore_state", actor, reason or f"the state was lost and is back from {source}", now_ms)
    document = replace(
        document,
        identity=identity.known or document.identity or new_identity(),
        rollouts=tuple(_paused(stored, cause) for stored in document.rollouts),
    )
    with closing(open_control_store(config)) as store:
        if not identity.known:
            raise InvalidInput("this home has met no state yet: start it, there is nothing to restore", "home")
        evidence = {"source": source, "killed": sorted(flags)}
        store.fill(document, Who(actor, reason, now_ms), evidence, replace=replace_other)
    switch = open_kill_switch(config)
    for name, flag in flags.items():
        if switch.shared is not None:
            switch.shared.engage(name, flag.reason, flag.actor)
    agree_secret(config)
    made = Restored(source)
    made.back += list(_told(document, flags))
    made.missing += list(_missing(document, config))
    return made


def adopt_state(config: Config, clock: Clock, actor: str, reason: str) -> tuple[str, str]:
    """Make the state that is configured now the one of this home, whatever it holds; the identities before and now."""
    try:
        before = HomeIdentity(config.state_identity).known
    except InvalidInput:
        before = ""
    config.state_identity.unlink(missing_ok=True)
    with closing(open_control_store(config)) as store:
        now = HomeIdentity(config.state_identity).known
        if now != before:
            store.note("adopt_state", Who(actor, reason, clock.wall_ms()), {"before": before, "identity": now})
    return before, now


def _source(
    config: Config,
    clock: Clock,
    mine: StateSnapshot | None,
    snapshot: Path | None,
    backup: Path | None,
    configuration: bool,
) -> tuple[str, StateDocument, dict[str, KillFlag]]:
    """Name, document and kill flags of what a state is restored from."""
    if sum((snapshot is not None, backup is not None, configuration)) > 1:
        raise InvalidInput("--snapshot, --backup and --configuration are three sources; give one", "snapshot")
    if configuration:
        return "the configuration", _configured(config, mine), {}
    if backup is not None:
        made = read_backup(backup)
        when = datetime.fromtimestamp(made.made_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        document, killed = _of_backup(backup, clock)
        return f"the backup of {when}", document, killed
    if snapshot is not None:
        found = SnapshotFile(snapshot, clock).read()
        if found is None:
            raise InvalidInput(f"there is no snapshot {snapshot}", "snapshot")
    elif mine is None:
        raise InvalidInput(
            f"there is no snapshot {config.state_snapshot}: name another machine's with --snapshot, a backup with --backup, or "
            "--configuration for the endpoints of baton.yaml at weight 0",
            "snapshot",
        )
    else:
        found = mine
    when = datetime.fromtimestamp(found.time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"the snapshot of {when}", found.document, dict(found.killed)


def _of_backup(folder: Path, clock: Clock) -> tuple[StateDocument, dict[str, KillFlag]]:
    """What a backup holds of the state: the document of a shared one, `control.db`, or the snapshot of its home."""
    for file in (folder / STATE, folder / "home" / "state" / "snapshot.json"):
        database = folder / "home" / "control.db"
        if database.exists():
            with tempfile.TemporaryDirectory(prefix="baton-restore-") as scratch:
                copy_database(database, Path(scratch))
                with closing(SqliteControlStore(Path(scratch) / database.name)) as store:
                    return store.document(whole=True), {}
        found = SnapshotFile(file, clock).read()
        if found is not None:
            return found.document, dict(found.killed)
    raise InvalidInput(
        f"{folder} has nothing of a state: it was in a Redis, and an earlier Baton left it out", "backup"
    )


def _configured(config: Config, mine: StateSnapshot | None) -> StateDocument:
    """The endpoints of the configuration, and those that the home knows beside them, all at weight 0."""
    before = StateDocument() if mine is None else mine.document
    known = before.endpoints
    made = {name: _endpoint(name, wanted, known.get(name)) for name, wanted in config.endpoints.items()}
    for name, endpoint in known.items():
        made.setdefault(name, endpoint.model_copy(update={"weight": 0.0}))
    return replace(before, endpoints=made, rollouts=())


def _endpoint(name: str, wanted: EndpointConfig, known: Endpoint | None) -> Endpoint:
    arms = [
        None if arm is None else ArmSpec(bundle=arm.bundle, version=int(arm.version or 0))
        for arm in (wanted.stable, wanted.candidate)
    ]
    assert arms[0] is not None
    return Endpoint(
        name=name,
        stable=arms[0],
        candidate=arms[1],
        salt=wanted.salt or (known.salt if known else name),
        holdout=known.holdout if known else 0.0,
        resource_version=(known.resource_version if known else 0) + 1,
    )


def _paused(stored: StoredRollout, cause: Cause) -> StoredRollout:
    if not stored.state.active or stored.state.phase == Phase.PAUSED:
        return stored
    state = apply(stored.spec, stored.state, Pause(), cause.time_ms, 0)
    state = after(stored.state, state, Pause(), cause)
    return replace(stored, state=state, resource_version=stored.resource_version + 1)


def _told(document: StateDocument, killed: dict[str, KillFlag]) -> Iterator[tuple[str, str, str]]:
    for name, endpoint in document.endpoints.items():
        arms = [f"stable {_named(endpoint.stable_now)}"]
        if endpoint.candidate is not None:
            arms.append(f"candidate {_named(endpoint.candidate)} at weight {endpoint.weight:g}")
        yield "endpoint", name, ", ".join(arms)
    for stored in document.rollouts:
        if stored.state.active:
            step = f"paused at step {stored.state.step}, weight {stored.state.weight:g}"
            how = f"{step}: baton rollout resume {stored.spec.endpoint} --reason '...'"
            yield "rollout", stored.id, how
    for name in document.settings:
        yield "setting", name, ""
    for name, flag in killed.items():
        yield "kill switch", name, f"engaged by {flag.actor}: {flag.reason}"
    if document.audit:
        yield "audit", f"{len(document.audit)} entries", f"up to number {document.audit[-1].seq}"


def _missing(document: StateDocument, config: Config) -> Iterator[str]:
    if not document.audit and document.audit_seq:
        yield f"the audit up to entry {document.audit_seq}, and rollouts that had ended; a backup has them as of its time"
    if document.audit:
        yield "changes since the backup"
    if any(stored.state.active and stored.id not in document.sums for stored in document.rollouts):
        yield "sums of the evidence: they are worked out again from the rows that the traffic log still has"
    if not any(stored.state.active for stored in document.rollouts):
        yield "rollouts: none was active in it; start one again where you want it"
    yield "idempotency keys: a call of before that is repeated under its key runs again, unless its control process still runs"
    if config.state.url:
        yield "sessions of the console: sign in again"


def _named(arm: ArmSpec) -> str:
    return f"{arm.bundle}:{arm.version or 'newest'}"

"""Answers of the admin verbs. Typed where the shape is settled; `Figures` where more figures may come.

Field names are those of `baton.admin.v1` and of REST. Versions are decimal strings, times Unix milliseconds.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

__all__ = [
    "Answer",
    "Arm",
    "AuditEntry",
    "AuditPage",
    "Cache",
    "CacheWarming",
    "Cause",
    "Chunk",
    "DamagedStatus",
    "Endpoint",
    "EndpointPage",
    "Explanation",
    "Figure",
    "Figures",
    "Forgotten",
    "Freeze",
    "Health",
    "HealthFact",
    "Hold",
    "HoldList",
    "Metrics",
    "Model",
    "ModelLoaded",
    "ModelPage",
    "ProcessState",
    "Processes",
    "Refused",
    "Retired",
    "Rollout",
    "RolloutPage",
    "RolloutSummary",
    "Step",
    "StoreState",
    "Worker",
]


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


Figures = Annotated[dict[str, Any], BeforeValidator(_finite)]
FiguresList = Annotated[list[dict[str, Any]], BeforeValidator(_finite)]
Number = Annotated[float | None, BeforeValidator(_finite)]


class Answer(BaseModel):
    """Answer of a verb."""

    model_config = ConfigDict(extra="forbid")


# Endpoints


class Arm(Answer):
    bundle: str
    version: str
    """Empty: the newest that may serve."""


class Endpoint(Answer):
    name: str
    stable: Arm
    candidate: Arm | None = None
    weight: float
    salt: str
    holdout: float
    killed: bool
    killed_reason: str = ""
    killed_by: str = ""
    resource_version: int
    stable_held: str = ""
    """Newest version that an unpinned stable arm may answer with while a rollout runs; empty: any."""


class EndpointPage(Answer):
    endpoints: list[Endpoint]
    next_page_token: str = ""


# Models


class Model(Answer):
    bundle: str
    version: str
    architecture: str
    base: str | None = None
    """Version that a delta builds on."""
    servable: bool
    reasons: list[str]
    """Why the gate refused it."""
    fault: str
    """Why it cannot be loaded; empty: nothing is known against it."""
    metrics: Figures
    arms: list[str]
    """Where it answers, as ENDPOINT/ARM."""
    lanes: list[str]
    """That have it loaded."""


class ModelPage(Answer):
    models: list[Model]
    next_page_token: str = ""


class ModelLoaded(Answer):
    """Progress of a load or unload. `done`: there is a lane, and all that run are in the wanted state."""

    bundle: str
    version: str
    wanted: bool
    done: bool
    lanes: dict[str, str]
    """By lane: READY, LOADING, UNLOADED, or why it cannot be loaded."""


class Retired(Answer):
    bundle: str
    version: str
    retired: bool


# Rollouts


class Step(Answer):
    shadow: bool = False
    min_positives: int = 0
    weight: float = 0.0
    bias_below: float | None = None
    approve: bool = False


class Cause(Answer):
    """Who brought a rollout into its phase, by which verb, why and when, and what was not met then."""

    verb: str
    actor: str
    reason: str
    time_ms: int
    unmet: list[str] = []


class RolloutSummary(Answer):
    id: str
    endpoint: str
    candidate: Arm
    phase: str
    step: int
    weight: float
    steps: list[Step]
    steps_on_evidence: list[int]
    stepped_back: int
    attempt: int
    entered_ms: int
    waiting: str
    next_look_ms: int | None = None
    missing_clicks: Number = None
    evidence: Figures
    created_ms: int
    resource_version: int
    cause: Cause | None = None
    """None before the first change of phase, and of rollouts that an older version steered."""
    code: str = ""
    """Of what it says; `serving.rollout.status.codes` has all."""
    what_to_do: str = ""
    page: str = ""
    held_since_ms: int | None = None
    """Since when it says so."""
    hours_left: Number = None
    """Until the missing clicks are there at the present rate; None: not known."""
    overdue: bool = False
    """It has not moved for the time of `progress_deadline`."""
    step_backs: Figures = {}
    """Number of step backs by guard, since an operator resumed or promoted last."""
    alarm: str = ""
    """Guard that holds it for an operator to look at; empty: none does."""
    refused_version: str = ""
    """Versions of the candidate up to this one are not adopted: a breach was returned from it, or it was there at the start."""


class Rollout(RolloutSummary):
    """With its figures per stay at a step."""

    coverage: Number = None
    phases: FiguresList


class RolloutPage(Answer):
    rollouts: list[RolloutSummary]
    next_page_token: str = ""


# Figures


class Metrics(Answer):
    """Of an endpoint's newest rollout; see `serving.rollout.figures`."""

    seq: int
    newest_ms: int | None = None
    exposed: int
    paired: int
    overridden: int
    coverage: Number = None
    phases: FiguresList
    segments: FiguresList
    psi: Figures
    long_run: Figures | None = None
    not_finite: int = 0
    left_out: int = 0


class DamagedStatus(Answer):
    """A status file that cannot be used: its process counts as one that does not report."""

    file: str
    reason: str


class ProcessState(Answer):
    """State of one process; the fields of `serving.runtime.roster.ProcessState`."""

    name: str
    state: str
    """alive, starting, silent, stopped, restarting or gone."""
    doing: str = ""
    why: str = ""
    pid: int | None = None
    age_s: float | None = None
    restarts: int = 0
    last_exit: str = ""


class Restart(Answer):
    """Restart that was ordered last. `state`: running, done or failed; `doing`: what it waits for now; `why`: it failed;
    `seconds`: that each process took which has been started again."""

    id: str
    process: str
    by: str = ""
    reason: str = ""
    state: str = "running"
    doing: str = ""
    why: str = ""
    seconds: dict[str, float] = {}


class ProcessList(Answer):
    """State of every process, and the restart that was ordered last."""

    processes: list[ProcessState]
    restart: Restart | None = None


class Freeze(Answer):
    """Until when nothing moves in any rollout but kill, abort and step back; who ordered it, why and when. `until_ms` 0: there
    is none."""

    until_ms: int = 0
    actor: str = ""
    reason: str = ""
    since_ms: int = 0


class StoreState(Answer):
    """A disk or a Redis. `size_bytes` 0: it has no limit; `refused`: writes, by a Redis; `reason`: why it does not answer;
    `full`: little of it is free."""

    name: str
    kind: str
    where: str
    size_bytes: int
    used_bytes: int
    free_bytes: int
    refused: int
    reason: str
    full: bool


class Processes(Answer):
    """The state of every process, the status that each wrote, and the state of the traffic log."""

    lanes: Figures
    shadow: Figures
    worker: Figures | None = None
    supervisor: Figures | None = None
    traffic: Figures
    damaged: list[DamagedStatus] = []
    control: Figures | None = None
    processes: list[ProcessState] = []
    freeze: Freeze | None = None
    stores: list[StoreState] = []
    faults: list[str] = []
    """What of all this could not be read, and why."""


class HealthFact(Answer):
    """A fact of the installation's health. `level`: ok, attention or unknown; `do`: the command that helps."""

    about: str
    name: str
    level: str
    says: str
    do: str = ""


class Health(Answer):
    """Facts of the installation, those that need a person first. `level`: of the worst; `source`: where they are from."""

    level: str
    time_ms: int
    source: str
    facts: list[HealthFact]


# Audit


class AuditEntry(Answer):
    seq: int
    time_ms: int
    endpoint: str
    rollout: str
    actor: str
    reason: str
    verb: str
    before: Figures
    after: Figures
    evidence: Figures


class AuditPage(Answer):
    entries: list[AuditEntry]
    next_page_token: str = ""


class Figure(Answer):
    name: str
    used: Annotated[Any, BeforeValidator(_finite)] = None
    recomputed: Annotated[Any, BeforeValidator(_finite)] = None
    same: bool


class Explanation(Answer):
    entry: AuditEntry
    figures: list[Figure]
    verdict: str
    same: bool | None = None
    note: str


# Cache and worker


class CacheWarming(Answer):
    """A run of `cache.warm`. `error` is empty while nothing went wrong."""

    name: str
    running: bool
    total: int
    written: int
    seconds: float
    error: str
    loaded: FiguresList


class Cache(Answer):
    tables: FiguresList
    tiers: FiguresList
    shared: Figures | None = None
    """What Redis holds; none where the configuration names no Redis."""
    warming: CacheWarming | None = None


class Refused(Answer):
    """A version that the gate refused, and why; no reasons: it has been removed since."""

    bundle: str
    version: str
    reasons: list[str]


class Worker(Answer):
    """Status of the transfer worker. The letters in brackets are those of the online stage."""

    running: bool
    """Its status is younger than ten seconds."""
    age_seconds: Number = None
    weight: Number = None
    """Weight of the teacher's scores in the student's loss (a)."""
    replay_ratio: Number = None
    """Retained rows per fresh row (r)."""
    teacher_every: int | None = None
    """Batches between two updates of the teacher (K)."""
    versions: dict[str, str]
    """By bundle: last version published, which serves."""
    refused: list[Refused]
    batches: int = 0
    trained_rows: int = 0
    held_rows: int = 0
    loss: Number = None
    teacher: str = ""
    """Bundle that teaches."""
    teacher_kind: str = ""
    """`learns`: from labels, too; `frozen`: it does not learn here; `remote`: another server answers for it. The last two
    teach by their logged scores."""
    teacher_reason: str = ""
    """Why it does not learn."""
    unguided_rows: int = 0
    """Rows learned from their labels alone, for want of a score of the teacher."""
    featureless: int = 0
    """Labelled rows whose features were not recorded, so that nothing is learned from them."""
    position: int = 0
    """Place in the labelled log up to which it has learned."""
    committed: int = 0
    """Place that its last checkpoint holds."""
    reports: Figures


# Traffic log


class Forgotten(Answer):
    predictions: int
    """Deleted, with their labels, scores and labelled rows."""


class Hold(Answer):
    """A routing key whose records stay, named by its hash: who ordered that, why and since when."""

    key: str
    actor: str
    reason: str
    since_ms: int


class HoldList(Answer):
    holds: list[Hold]


# Bulk answers


class Chunk(Answer):
    """Bytes of an answer that is a file: an export (Parquet) or a backup (tar), in order."""

    data: bytes

"""Status of processes: what each one reports to the others once a second, in `<home>/run/status/<process>.json`.

A process fills in the dataclass of its kind and calls `write`; `read` returns the statuses of a folder, typed. Nobody
else knows the JSON. Another version of Baton may have written a file: keys that are missing take their defaults, unknown
keys are left out. A file of another form is `Damaged`, which is a line in `baton status` and never a process.
The transfer worker writes its file itself (`transfer.online.worker`), since it knows nothing of serving.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import UTC, datetime
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from pipeline.reports import report_files, write_report
from pipeline.traffic.writer import WriterCounters
from serving.runtime.stores import StoreStatus

__all__ = [
    "FRESH_S",
    "LABEL_EDGES_S",
    "STANDS_BY",
    "ArmReport",
    "ArmTotals",
    "ChildStatus",
    "ControlStatus",
    "Damaged",
    "EmbeddingStatus",
    "EngineStatus",
    "HandOffStatus",
    "JoinBacklog",
    "LabelArrivals",
    "LabelFlow",
    "LabelStatus",
    "LaneArm",
    "LaneStatus",
    "RecentTotals",
    "RemoteStatus",
    "Report",
    "ScoreSums",
    "ShadowStatus",
    "StateAway",
    "Statuses",
    "StepStatus",
    "SupervisorStatus",
    "UnknownIds",
    "WorkerStatus",
    "dumps",
    "lane_of",
    "parse",
    "read",
    "read_one",
    "write",
]

FRESH_S = 10.0
"""Age up to which a status, a file of figures or a replica's record counts: what is older is of a process that is gone."""
STANDS_BY = "standing by"
_LAST_MS = 253_402_300_799_000  # the end of the year 9999, beyond which there is no date
_INTEGER_MASK = (1 << 63) - 1  # the largest of 64 bits
_NUMBER_LETTERS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RecentTotals:
    """Answers of one arm within the last `seconds`. `degraded`: those that lack rows of a tier. `counts`: latencies by bucket of `serving.telemetry.histogram.EDGES`,
    which add up over lanes."""

    seconds: float = 0
    requests: int = 0
    errors: int = 0
    deadline_misses: int = 0
    degraded: int = 0
    p50_ms: float | None = None
    p99_ms: float | None = None
    counts: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ArmReport:
    """Model of an arm. `version`: the one that answers ("": none); `wanted`: the one that should; `state`: READY, LOADING
    or UNAVAILABLE, with its reason. An arm that another server answers is READY without a version."""

    bundle: str = ""
    version: str = ""
    wanted: str = ""
    state: str = ""
    reason: str = ""

    @property
    def lags(self) -> bool:
        """Whether it does not answer with the wanted version, or that is not the newest since a newer one failed."""
        return bool(self.reason) or self.version != self.wanted

    def __str__(self) -> str:
        """What answers, and why not another version.

        >>> print(ArmReport("ranker", "3", "4", "READY"))
        ranker 3 answers; 4 is being loaded
        """
        if self.state == "READY" and not self.version:
            return f"{self.bundle} is answered elsewhere"
        answers = f"{self.bundle} {self.version} answers" if self.version else f"no version of {self.bundle} answers"
        if self.reason:
            return f"{answers}; {self.reason}"
        return f"{answers}; {self.wanted} is being loaded" if self.lags else answers


@dataclass(frozen=True, kw_only=True)  # no slots: of two bases of `LaneArm` only one may have them
class ArmTotals:
    """Requests of an arm, or of a model called by name, since the lane began and lately."""

    requests: int = 0
    rows: int = 0
    errors: int = 0
    deadline_misses: int = 0
    recent: RecentTotals = field(default_factory=RecentTotals)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneArm(ArmTotals, ArmReport):
    """Model and traffic of an arm in one lane."""

    @classmethod
    def of(cls, report: ArmReport, totals: ArmTotals) -> LaneArm:
        """Both in one."""
        return cls(**_members(report), **_members(totals))


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatus:
    """Events in the engine of a lane; seconds are totals of all its workers, those of `stalled_stage` excepted."""

    pending: int = 0
    queue: int = 0
    accepted: int = 0
    answered: int = 0
    failed: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    worked_seconds: float = 0.0
    waited_seconds: float = 0.0
    stalled_seconds: float = 0.0
    stalled_stage: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownIds:
    """Ids of one table looked up lately, and those that no tier had a row for. `at_training`: their fraction when the model
    was trained; None where the bundle does not say."""

    ids: int = 0
    unknown: int = 0
    at_training: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingStatus:
    """`lookups`: ids since the start by bundle, table, tier and case; `models`: figures of each tier, by bundle/version;
    `unknown`: by endpoint, arm and table."""

    lookups: Mapping[str, Mapping[str, Mapping[str, Mapping[str, int]]]] = field(default_factory=dict)
    models: Mapping[str, Sequence[Mapping[str, float | str | None]]] = field(default_factory=dict)
    unknown: Mapping[str, Mapping[str, Mapping[str, UnknownIds]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteStatus:
    """A model on another server, as this process sees it.

    Args:
        address, model: of the server. breaker: closed, half_open or open; opened: how often it has opened.
        calls: answered, with rows; failed: by class of error; reason: of the last failure, "" after a success.
        ids, unknown: values sent as codes, and those of them that had none.
    """

    address: str = ""
    model: str = ""
    breaker: str = ""
    opened: int = 0
    calls: int = 0
    rows: int = 0
    failed: Mapping[str, int] = field(default_factory=dict)
    reason: str = ""
    ids: int = 0
    unknown: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOffStatus:
    """Predictions that a lane sent to the shadow lane, and those that it dropped, by reason."""

    sent: int = 0
    waiting: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StateAway:
    """A state store that does not answer, or is not the one that the home knows. `since_ms`: Unix time of the first look that
    failed; `reason`: of the last one; `lost`: it answers, and is empty or another one, or its file is gone."""

    since_ms: int
    reason: str
    lost: bool = False

    def seconds(self, now_ms: int) -> float:
        """Time that it has been away."""
        return max(0, now_ms - self.since_ms) / 1000

    def told(self, now_ms: int) -> str:
        """It in words, with what it means.

        >>> StateAway(3_600_000, "connection refused").told(3_612_000)
        'the state has not answered since 01:00:00 UTC (for 12 s), so weights stay as they were: connection refused'
        """
        since = datetime.fromtimestamp(min(max(self.since_ms, 0), _LAST_MS) / 1000, UTC).strftime("%H:%M:%S UTC")
        what = "has been lost" if self.lost else "has not answered"
        lasts = f"for {self.seconds(now_ms):.0f} s"
        return f"the state {what} since {since} ({lasts}), so weights stay as they were: {self.reason}"


LABEL_EDGES_S = tuple(0.5 * 1.25**k for k in range(74))
"""Bounds in seconds of the buckets of label delays, half a second to about ten weeks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelArrivals:
    """Feedback of one kind that was accepted within the last hour, the newest entries of it.

    Args:
        entries: their number; late: those of them that came after the attribution window of their prediction.
        counts: by bucket of `LABEL_EDGES_S`, the time from the prediction to the entry; they add up over lanes.
        last_ms: Unix time of the last one since the lane began, 0 without one.
    """

    entries: int = 0
    late: int = 0
    counts: Mapping[int, int] = field(default_factory=dict)
    last_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelStatus:
    """Labels of one endpoint as a lane sees them. `shown`: exposures; `labelled`: outcomes; `told_ms`: Unix time when predictions
    of other servers were last told, 0: never; `refused`: entries of the last hour that were invalid or too old, of whatever
    endpoint: it is not known."""

    shown: LabelArrivals = field(default_factory=LabelArrivals)
    labelled: LabelArrivals = field(default_factory=LabelArrivals)
    told_ms: int = 0
    refused: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneStatus:
    """A primary lane.

    Args:
        endpoints: by endpoint and arm. direct: models that are called by name.
        models: versions that are loaded, as bundle/version; loading: that it waits for; faults: why others could not be.
        killed: endpoints whose candidate gets nothing.
        blind: why kill files cannot be looked at, so that no candidate gets anything ("": they can).
        state_away: set while the state does not answer or is lost; the lane goes on by what it read last.
        counters: requests by case of routing.
        remotes: versions that other servers answer for, as bundle/version.
        labels: by endpoint.
    """

    process: str = ""
    pid: int = 0
    time_ms: int
    port: int = 0
    state: str = ""
    endpoints: Mapping[str, Mapping[str, LaneArm]] = field(default_factory=dict)
    direct: Mapping[str, ArmTotals] = field(default_factory=dict)
    models: Sequence[str] = field(default_factory=list)
    loading: Sequence[str] = field(default_factory=list)
    faults: Mapping[str, str] = field(default_factory=dict)
    killed: Sequence[str] = field(default_factory=list)
    blind: str = ""
    state_away: StateAway | None = None
    counters: Mapping[str, int] = field(default_factory=dict)
    engine: EngineStatus = field(default_factory=EngineStatus)
    embedding: EmbeddingStatus = field(default_factory=EmbeddingStatus)
    remotes: Mapping[str, RemoteStatus] = field(default_factory=dict)
    writer: WriterCounters = field(default_factory=WriterCounters)
    shadow: HandOffStatus = field(default_factory=HandOffStatus)
    labels: Mapping[str, LabelStatus] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSums:
    """Sums of both arms' scores over the `rows` of the last `seconds`, all by the same version of either. `weight`: rows of
    the traffic that they stand for; 0 of an earlier version. `degraded`: of the `predictions`, those that the shadow lane scored
    with default rows in place of a tier's."""

    seconds: float = 0
    rows: int = 0
    stable: float = 0.0
    candidate: float = 0.0
    weight: float = 0.0
    predictions: int = 0
    degraded: int = 0
    stable_version: str = ""
    candidate_version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowStatus:
    """The shadow lane.

    Args:
        scored: predictions scored as they came in; caught_up: later, from the log. rows: candidates of both.
        dropped: predictions not scored as they came in, by reason; skipped: those that need no score.
        queue: predictions that wait; lanes: that are connected.
        paired: by endpoint.
        remotes, state_away: as of a lane.
    """

    process: str = ""
    pid: int = 0
    time_ms: int
    endpoints: Mapping[str, Mapping[str, ArmReport]] = field(default_factory=dict)
    scored: int = 0
    caught_up: int = 0
    rows: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    skipped: Mapping[str, int] = field(default_factory=dict)
    received: int = 0
    queue: int = 0
    lanes: int = 0
    last_scored_ms: int = 0
    paired: Mapping[str, ScoreSums] = field(default_factory=dict)
    remotes: Mapping[str, RemoteStatus] = field(default_factory=dict)
    state_away: StateAway | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStatus:
    """Version of the candidate with which an endpoint's rollout entered its step; None: it has no rollout."""

    step_version: str | None = None


@dataclass(frozen=True, slots=True)
class JoinBacklog:
    """Predictions whose rows wait for labels: their number, the age of the first, and the time for which a shown row waits."""

    predictions: int = 0
    oldest_s: float = 0.0
    window_s: float = 0.0

    def __str__(self) -> str:
        """Number and ages in words.

        >>> print(JoinBacklog(1200, 65.2, 1800.0))
        1,200 predictions wait for labels, the first for 65 s; shown rows wait 1,800 s
        """
        return (
            f"{self.predictions:,} predictions wait for labels, the first for {self.oldest_s:,.0f} s; "
            f"shown rows wait {self.window_s:,.0f} s"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelFlow:
    """How labels of one kind come to an endpoint (`serving.health.label_flow`).

    Args:
        gaps: that `mean_gap` is of; mean_gap: requests that the endpoint usually answers from one label to the next.
        due_requests: answered since the last label, long enough ago that their labels should be here.
        last_ms: Unix time of the last label, 0 before the first; delay_s: that nine of ten labels take at most.
    """

    gaps: int = 0
    mean_gap: float = 0.0
    due_requests: int = 0
    last_ms: int = 0
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlStatus:
    """A control process.

    Args:
        leads: it joins labels and moves rollouts; leader: the process that does, where it is known.
        backlog: predictions that wait for labels, where it leads.
        stores: disks and Redis as it last saw them, at `stores_ms`.
        labels: how labels come, by endpoint and kind: `shown`, `labelled`.
        state_away: as of a lane; while the state is lost this process does nothing on it.
        damaged: versions of the repository that cannot be opened, as bundle/version, and why.
    """

    process: str = ""
    pid: int = 0
    time_ms: int
    endpoints: Mapping[str, StepStatus] = field(default_factory=dict)
    leads: bool = True
    lead_token: int | None = None
    leader: str = ""
    backlog: JoinBacklog = field(default_factory=JoinBacklog)
    stores: Sequence[StoreStatus] = field(default_factory=list)
    stores_ms: int = 0
    labels: Mapping[str, Mapping[str, LabelFlow]] = field(default_factory=dict)
    state_away: StateAway | None = None
    damaged: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildStatus:
    """A process that a supervisor keeps running.

    Args:
        pid: None while it does not run. started_ms: Unix time of its last start.
        causes: `restarts` by cause: ended, hung, asked.
        last_exit: as `Popen.returncode`; reason: of that exit, in the process's own words.
    """

    pid: int | None = None
    started_ms: int = 0
    restarts: int = 0
    causes: Mapping[str, int] = field(default_factory=dict)
    last_exit: int | None = None
    reason: str = ""

    @property
    def last_end(self) -> str:
        """How it last ended, "" where it has not.

        >>> ChildStatus(last_exit=-9).last_end
        'signal SIGKILL'
        """
        code = self.last_exit
        if code is None:
            return ""
        return f"signal {signal.Signals(-code).name}" if -code in set(signal.Signals) else f"exit code {code}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorStatus:
    """A supervisor and its children, by name. `time_ms`: None of an earlier version, which wrote when something changed.
    `takes_orders`: whether it starts processes again where an operator wants it."""

    pid: int = 0
    takes_orders: bool = False
    time_ms: int | None = None
    children: Mapping[str, ChildStatus]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """The transfer worker. Its dictionaries are by bundle, `reports` by teacher and student.

    Args:
        state: learning, waiting for what `waiting` says, or `STANDS_BY`, since the worker of another machine learns.
        position: place in the labelled log up to which it has learned; committed: that its last checkpoint holds.
        weight, replay_ratio, teacher_every: a, r and K of the online stage.
        set_aside: batches that could not be learned from; unguided_rows: learned from labels alone, for want of a score of
            the teacher; featureless: labelled rows without recorded features, which nothing is learned from.
        teacher: its `name`, `version`, `kind` (learns, frozen, remote) and the `reason` why it does not learn.
        versions: the last ones published; refused: by the gate; chains: those that it needs to go on.
    """

    time_ms: int
    pid: int = 0
    state: str = ""
    waiting: str = ""
    position: int = 0
    committed: int = 0
    batches: int = 0
    trained_rows: int = 0
    held_rows: int = 0
    loss: float | None = None
    set_aside: int = 0
    unguided_rows: int = 0
    featureless: int = 0
    teacher: Mapping[str, str] = field(default_factory=dict)
    weight: float | None = None
    replay_ratio: float | None = None
    teacher_every: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    chains: Mapping[str, Sequence[str]] | None = None
    refused: Mapping[str, Sequence[str]] = field(default_factory=dict)
    reports: Mapping[str, Any] = field(default_factory=dict)


Status = LaneStatus | ShadowStatus | ControlStatus | SupervisorStatus | WorkerStatus
S = TypeVar("S", bound=Status, covariant=True)


@dataclass(frozen=True, slots=True)
class Report(Generic[S]):
    """A status that was read. `age_s`: None of one without a time; `document`: the JSON that it was read from.

    A status of the future is as old as it is ahead: whoever wrote it does so no longer, or by another clock.
    """

    status: S
    age_s: float | None
    document: Mapping[str, Any]

    @property
    def fresh(self) -> bool:
        """Whether the process still writes."""
        return self.age_s is not None and self.age_s <= FRESH_S

    def to_json(self) -> dict[str, Any]:
        """The document with its age, as REST answers carry it."""
        age = {} if self.age_s is None else {"age_s": self.age_s, "fresh": self.fresh}
        return {**self.document, **age}


@dataclass(frozen=True, slots=True)
class Damaged:
    """A status file that cannot be used, and why."""

    file: str
    reason: str


@dataclass(frozen=True, slots=True)
class Statuses:
    """Statuses of one folder by process; those of other machines are named PROCESS@NODE."""

    lanes: Mapping[str, Report[LaneStatus]] = field(default_factory=dict)
    shadows: Mapping[str, Report[ShadowStatus]] = field(default_factory=dict)
    controls: Mapping[str, Report[ControlStatus]] = field(default_factory=dict)
    workers: Mapping[str, Report[WorkerStatus]] = field(default_factory=dict)
    supervisors: Mapping[str, Report[SupervisorStatus]] = field(default_factory=dict)
    damaged: Sequence[Damaged] = ()

    @property
    def shadow(self) -> Report[ShadowStatus] | None:
        """This machine's."""
        return self.shadows.get("shadow")

    @property
    def control(self) -> Report[ControlStatus] | None:
        return self.controls.get("control")

    @property
    def worker(self) -> Report[WorkerStatus] | None:
        return self.workers.get("worker")

    @property
    def learner(self) -> Report[WorkerStatus] | None:
        """This machine's worker, or, where it stands by, that of another machine which learns."""
        here = self.worker
        if here is None or here.status.state != STANDS_BY:
            return here
        learning = [report for report in self.workers.values() if report.status.state != STANDS_BY]
        return max(learning, key=lambda report: report.status.time_ms, default=here)

    @property
    def supervisor(self) -> Report[SupervisorStatus] | None:
        return self.supervisors.get("supervisor")

    def all(self) -> dict[str, Report[Status]]:
        """Every kind, by process."""
        return {**self.lanes, **self.shadows, **self.controls, **self.workers, **self.supervisors}

    def fresh(self) -> Statuses:
        """Only processes that still write."""
        return Statuses(_fresh(self.lanes), _fresh(self.shadows), _fresh(self.controls), _fresh(self.workers))

    def served_versions(self) -> dict[str, set[str]]:
        """By bundle: versions that a lane or shadow lane answers with, or wants to."""
        served: dict[str, set[str]] = {}
        endpoints = [lane.status.endpoints for lane in self.lanes.values()]
        for by_endpoint in (*endpoints, *(shadow.status.endpoints for shadow in self.shadows.values())):
            for arms in by_endpoint.values():
                for arm in arms.values():
                    served.setdefault(arm.bundle, set()).update({arm.version, arm.wanted} - {""})
        return served

    def shadow_drops(self) -> dict[str, int]:
        """Predictions by reason that the shadow lane did not score as they came, or lanes did not hand over to it."""
        reasons = dict(self.shadow.status.dropped) if self.shadow is not None else {}
        for lane in self.lanes.values():
            for reason, count in lane.status.shadow.dropped.items():
                reasons[reason] = reasons.get(reason, 0) + count
        return reasons


def dumps(status: Status) -> str:
    """A status as JSON."""
    return json.dumps(status, default=_members)


def write(folder: Path, name: str, status: Status | str) -> None:
    """Write the status of a process, or a text that `dumps` made; see `write_report`. Raises: OSError."""
    write_report(folder / f"{name}.json", status if isinstance(status, str) else dumps(status))


def read(folder: Path, now_ms: int) -> Statuses:
    """Every status of a folder, those of dead processes too; nothing where there is no folder."""
    found: dict[str, str | Damaged] = {}
    for path in report_files(folder, ".json"):
        try:
            found[path.stem] = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            continue  # removed since the folder was listed
        except (OSError, ValueError) as error:
            found[path.stem] = Damaged(path.name, getattr(error, "strerror", None) or "not text")
    return parse(found, now_ms)


def read_one(folder: Path, name: str, now_ms: int) -> Report[Status] | None:
    """Status of one process in a folder; None where there is none, or a damaged one."""
    try:
        text = (folder / f"{name}.json").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    return parse({name: text}, now_ms).all().get(name)


def parse(found: Mapping[str, str | Damaged], now_ms: int) -> Statuses:
    """Statuses by process from their JSON texts."""
    kinds: dict[type, dict[str, Any]] = {kind: {} for kind in _KINDS}
    damaged = []
    for name, text in found.items():
        if isinstance(text, Damaged):
            damaged.append(text)
            continue
        kind = _kind(name)
        try:
            document = _load(text)
            status = _adapter(kind).validate_python(document)
        except ValidationError as error:
            damaged.append(Damaged(f"{name}.json", _reason(error)))
        except (ValueError, RecursionError) as error:
            damaged.append(Damaged(f"{name}.json", f"not JSON: {error}"))
        else:
            time_ms = getattr(status, "time_ms", None)
            kinds[kind][name] = Report(status, None if time_ms is None else abs(now_ms - time_ms) / 1000, document)
    lanes, shadows, controls, workers, supervisors = kinds.values()
    return Statuses(lanes, shadows, controls, workers, supervisors, tuple(damaged))


def _load(text: str) -> Any:
    """JSON in which a number that is not finite is null, and each integer fits 64 bits. Raises: ValueError."""
    return json.loads(text, parse_constant=lambda _: None, parse_float=_finite, parse_int=_integer)


def _finite(text: str) -> float | None:
    number = float(text)
    return number if isfinite(number) else None


def _integer(text: str) -> int:
    if len(text) > _NUMBER_LETTERS or abs(number := int(text)) > _INTEGER_MASK:
        raise ValueError(f"{text[:_NUMBER_LETTERS]}... does not fit 64 bits")
    return number


def lane_of(document: Mapping[str, Any]) -> LaneStatus:
    """The status of a lane from its JSON document. Raises: ValidationError: it is of another form."""
    status: LaneStatus = _adapter(LaneStatus).validate_python(document)
    return status


def _fresh(reports: Mapping[str, Report[S]]) -> dict[str, Report[S]]:
    return {name: report for name, report in reports.items() if report.fresh}


_KINDS = (LaneStatus, ShadowStatus, ControlStatus, WorkerStatus, SupervisorStatus)
"""In the order of the fields of `Statuses`."""


def _kind(name: str) -> type:
    """The kind of a process by its name; supervisors have several: `supervisor`, `replica-0`, `shadow-supervisor`."""
    process = name.partition("@")[0]
    if process.startswith("lane-"):
        return LaneStatus
    return {"shadow": ShadowStatus, "control": ControlStatus, "worker": WorkerStatus}.get(process, SupervisorStatus)


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)  # 10 ms, for readers alone


def _reason(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else "not a JSON object"


def _members(value: Any) -> Any:
    """What `json` does not know: dataclasses, and mappings and sets of other kinds."""
    if is_dataclass(value):
        kind: Any = type(value)
        return {name: getattr(value, name) for name in _names(kind)}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Iterable):
        return list(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


@cache
def _names(kind: Any) -> tuple[str, ...]:
    return tuple(item.name for item in fields(kind))

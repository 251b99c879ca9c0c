"""Table of everything that a rollout says: a code for programs, what it means, and what an operator can do.

`reconcile` gives every decision a code; status, console and command line show what to do beside the reason. `docs/statuses.md` is
written from this table: `python -m serving.rollout.status.codes > docs/statuses.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["ALARMS", "STATUSES", "Code", "Status", "page", "status_of"]

PAGE = "docs/statuses.md"


class Code(StrEnum):
    """What a rollout says, for programs."""

    FIRST_LOOK = "first_look"
    NEXT_LOOK = "next_look"
    READING_LOG = "reading_log"
    CLOCK_WENT_BACK = "clock_went_back"
    NO_LABELS = "no_labels"
    LABELS_STALE = "labels_stale"
    LABELS_AFTER_WINDOW = "labels_after_window"
    LABELS_NOT_SENT = "labels_not_sent"
    LABELS_REFUSED = "labels_refused"
    FEW_REQUESTS = "few_requests"
    JOIN_BEHIND = "join_behind"
    LABELS_SILENT = "labels_silent"
    WINDOW_CHANGED = "window_changed"
    EVIDENCE_MISSING = "evidence_missing"
    MIN_STEP_TIME = "min_step_time"
    LOW_COVERAGE = "low_coverage"
    HELD_BY_GUARD = "held_by_guard"
    HELD_BY_SERVING = "held_by_serving"
    DRIFT = "drift"
    LATE_LABELS = "late_labels"
    ANSWERS = "answers"
    SAMPLE_RATIO = "sample_ratio"
    WAITS_FOR_VERSION = "waits_for_version"
    WAITS_FOR_APPROVAL = "waits_for_approval"
    FROZEN = "frozen"
    PAUSED = "paused"
    PAUSED_BY_STEP_BACKS = "paused_by_step_backs"
    RESTING = "resting"
    WATCHING = "watching"
    ADVANCED = "advanced"
    STEPPED_BACK = "stepped_back"
    RECOVERED = "recovered"
    VERSION_ADOPTED = "version_adopted"
    VERSION_RETURNED = "version_returned"
    COMPLETED = "completed"
    ABORTED = "aborted"
    UNDONE = "undone"
    HOLDS = "holds"


@dataclass(frozen=True, slots=True)
class Status:
    """What a code means, and what to do."""

    says: str
    do: str


_NOTHING = "Nothing."

STATUSES: Mapping[Code, Status] = {
    Code.FIRST_LOOK: Status(
        "The rollout has begun, and has not looked at its evidence yet.", "Wait one `analysis.interval`."
    ),
    Code.NEXT_LOOK: Status("The evidence was looked at, and the next look is not due.", _NOTHING),
    Code.READING_LOG: Status(
        "The control process has restarted and counts the labelled log again.",
        "Wait; `baton status` shows the log. Breaches of guards that need no labels step back all the same.",
    ),
    Code.CLOCK_WENT_BACK: Status(
        "The machine's clock is behind the time at which this step was entered.", "Set the clock right, or wait."
    ),
    Code.NO_LABELS: Status(
        "No exposed row has a final label or is older than the attribution window.",
        "Wait one attribution window. Then look whether clients send exposures and outcomes (`baton status`, `baton log tail`).",
    ),
    Code.LABELS_STALE: Status(
        "Rows with labels have stopped coming. Silence neither promotes nor rolls back.",
        "Look at the clients' feedback calls, the traffic log and the lanes (`baton status`, `baton log tail`).",
    ),
    Code.LABELS_AFTER_WINDOW: Status(
        "Labels come after the attribution window of their prediction, so its rows are without them when they are counted.",
        "Make `traffic.attribution_window` longer than the delay that the reason names and start the rollout again, or send labels "
        "sooner. `baton_label_delay_seconds` has the delay by endpoint.",
    ),
    Code.LABELS_NOT_SENT: Status(
        "Requests are answered, and nobody sends exposures or labels of them.",
        "Look whether the callers' feedback runs, and whether the requests are those of users: test calls are never labelled "
        "(`baton log tail --endpoint ENDPOINT`).",
    ),
    Code.LABELS_REFUSED: Status(
        "Feedback comes, and all of it is refused.",
        "Look at the reasons in the replies and at who sends it (`baton_caller_failures_total`): ids of another installation, a lost "
        "`secret.key`, or labels older than `traffic.late_limit`.",
    ),
    Code.FEW_REQUESTS: Status(
        "The endpoint answers no requests, or so few that there is hardly anything to label.",
        "Look whether callers reach this endpoint (`baton status`); the rollout goes on when they do.",
    ),
    Code.JOIN_BEHIND: Status(
        "Exposures and labels come, and the join gives out no new rows.",
        "Look at the control process and the traffic log (`baton status`, `baton doctor`).",
    ),
    Code.LABELS_SILENT: Status(
        "The newest rows have no click at all where stable expected many.",
        "Look at the way of the outcomes: exposures arrive, clicks do not.",
    ),
    Code.WINDOW_CHANGED: Status(
        "The traffic log has got another attribution window than the rollout began with.",
        "Set `traffic.attribution_window` back and restart, or abort and start the rollout again.",
    ),
    Code.EVIDENCE_MISSING: Status(
        "The next step's bounds are not shown to hold yet; the reason names which, and how many clicks are missing.",
        "Wait for labels. Where no number of labels will show it, the candidate has to get better, or the file asks for too much.",
    ),
    Code.MIN_STEP_TIME: Status(
        "The shortest stay at this step is not over.", "Wait, or shorten `analysis.min_step_time`."
    ),
    Code.LOW_COVERAGE: Status(
        "Too few exposed rows have the scores of both arms.",
        "Look whether the shadow lane runs and keeps up (`baton status`).",
    ),
    Code.HELD_BY_GUARD: Status(
        "A guard whose action is `hold` is breached, or a guard cannot tell; nothing is entered or completed while it lasts.",
        "Look at the guard's figures. Abort or set a smaller weight if it is the candidate's fault; else it goes on by itself.",
    ),
    Code.HELD_BY_SERVING: Status(
        "Serving itself is ill, so no step is taken.",
        "Mend what the reason names (`baton status`); it goes on by itself.",
    ),
    Code.DRIFT: Status(
        "A bias that only the newest rows show; it may be the hour of the day, so all evidence decides.",
        "Look at the bias over the day. Set a smaller weight or abort where the model has really changed.",
    ),
    Code.LATE_LABELS: Status(
        "Rows that one arm served lack labels that they should have.",
        "Look at the way of that arm's outcomes: they are late or lost.",
    ),
    Code.ANSWERS: Status(
        "An arm answers far fewer requests than its weight says.",
        "Look whether requests have routing keys, and whether the arm is ready in every lane (`baton endpoint get`).",
    ),
    Code.SAMPLE_RATIO: Status(
        "The arms' answers are not shown alike, or those that were shown are not split between the arms as the keys are.",
        "Compare what each arm answered with what callers report as shown: exposures of one arm are lost on their way, or a caller "
        "sends some requests to one arm. While it lasts no figure of the other arm compares with it.",
    ),
    Code.WAITS_FOR_VERSION: Status(
        "In shadow a guard shows this version to be unfit, and there is no step below.",
        "Publish a better version (the worker does by itself), or abort.",
    ),
    Code.WAITS_FOR_APPROVAL: Status(
        "All evidence for a step with `approve: true` is there.",
        "`baton rollout approve ENDPOINT --reason ...`, or abort.",
    ),
    Code.FROZEN: Status(
        "All rollouts are frozen: nothing moves but kill, abort and step back.",
        "Wait for its end, or `baton freeze --lift --reason ...`.",
    ),
    Code.PAUSED: Status(
        "A person has paused it: the reason names who, when and why. Breaches still step back.",
        "`baton rollout resume ENDPOINT --reason ...` when it may go on.",
    ),
    Code.PAUSED_BY_STEP_BACKS: Status(
        "One guard has stepped it back `step_backs_max` times, so it tries no more.",
        "Look at the figures of the step backs (`baton audit --endpoint ENDPOINT`); mend the cause, then resume, or abort.",
    ),
    Code.RESTING: Status(
        "It rests after a step back; rests double with each one.",
        "Look at the breach in the audit, or wait for the end of the rest.",
    ),
    Code.WATCHING: Status("The last step is entered; guards watch on for `after_full.watch`.", _NOTHING),
    Code.ADVANCED: Status("A step was entered on evidence.", _NOTHING),
    Code.STEPPED_BACK: Status(
        "A guard was shown to be breached; the weight went one step down.",
        "Look at the guard and its figures in the audit.",
    ),
    Code.RECOVERED: Status("The rest after a step back is over.", _NOTHING),
    Code.VERSION_ADOPTED: Status("The candidate serves a newer version.", _NOTHING),
    Code.VERSION_RETURNED: Status(
        "A guard was breached after a version was adopted at this step; the version before it serves again, at the same weight.",
        "Look at the guard and its figures in the audit, and at what published the version. A newer one is adopted.",
    ),
    Code.COMPLETED: Status(
        "The watch after the last step is over; the candidate stays at its last weight.",
        "Make it the stable arm (`baton endpoint set`) when you like; `baton rollout undo` takes it back.",
    ),
    Code.ABORTED: Status(
        "It has ended, and stable answers everything.", "Read why, mend it, and start the rollout anew."
    ),
    Code.UNDONE: Status(
        "The hand-over was taken back, and stable answers everything.", "Read why, and start the rollout anew."
    ),
    Code.HOLDS: Status("It holds for the reason that it gives.", "See the reason."),
}

ALARMS: Mapping[str, Code] = {
    "drift": Code.DRIFT,
    "late_labels": Code.LATE_LABELS,
    "answers": Code.ANSWERS,
    "sample_ratio": Code.SAMPLE_RATIO,
}
"""Codes of what holds a rollout for an operator to look at, beside guards (`serving.rollout.look.Look.holds`)."""
_ENDED = {Code.COMPLETED, Code.ABORTED, Code.UNDONE}
"""They have the names of their phases."""
_WHILE_PAUSED = {Code.PAUSED, Code.PAUSED_BY_STEP_BACKS, Code.FROZEN}


def status_of(phase: str, stored: str) -> Code:
    """Code of a rollout in a phase whose last look stored a code ("": none yet). One of a newer version is `holds`."""
    if phase in _ENDED:
        return Code.DRIFT if phase == Code.COMPLETED and stored == Code.DRIFT else Code(phase)
    if stored and stored not in set(map(str, Code)):
        return Code.HOLDS
    if phase == Code.PAUSED and stored not in _WHILE_PAUSED:  # its last look was before the pause
        return Code.PAUSED
    return Code(stored) if stored else Code.FIRST_LOOK


def page(code: Code) -> str:
    """Where the documentation explains a code."""
    return f"{PAGE}#{code}"


def document() -> str:
    """The page of all codes."""
    lines = [
        "# What a rollout says",
        "",
        "A rollout always says what it waits for, in words (`waiting`) and as a code (`code`), and what can be done (`what_to_do`). This",
        "page has all codes. It is written from `serving/rollout/status/codes.py`: `python -m serving.rollout.status.codes > docs/statuses.md`.",
    ]
    for code, status in STATUSES.items():
        lines += ["", f"## {code}", "", status.says, "", f"What to do: {status.do}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(document(), end="")

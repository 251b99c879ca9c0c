"""Top of an endpoint's page: split of the traffic, bias, the condition that the rollout waits for, and its steps."""

from __future__ import annotations

from nicegui.element import Element

from serving.http.console.live import Cell, Facts, Text, element, put
from serving.http.console.overview import bound_of, phase_of, state_of
from serving.http.console.reader import Reading, View
from serving.http.console.shell import EndpointPanel
from serving.http.console.wording import NONE, clock, count, percent, signed_percent, span, weight
from serving.rollout.state import ACTIVE, Phase

__all__ = ["HeadlinePanel", "StepsPanel"]

_CHIPS = {Phase.PAUSED: "warn", Phase.DEGRADED: "warn", Phase.PROGRESSING: "live", Phase.WATCHING: "live"}


class HeadlinePanel(EndpointPanel):
    """Summary of one endpoint."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        with element("section", "panel", aria_label=f"Endpoint {name}"), element("div", "headline"):
            with element("div"):
                with element("div", "title"):
                    Text(name, "h1")
                    self._phase, self._state = Text(classes="chip"), Text(classes="chip")
                with element("div", "weight"):
                    self._weight = Text(classes="big")
                    self._split = Text(classes="note")
                with element("div", "split", aria_hidden="true"):
                    self._bar = element("div")
                with element("div", "arms"):
                    self._candidate = Text(classes="candidate")
                    self._stable = Text()
            with element("div"):
                Text("Waits for", "h2")
                self._waits = Text(tag="p", classes="waits")
                self._facts = Facts()

    def draw(self, view: View, reading: Reading, now_ms: int) -> None:
        endpoint, rollout = view.endpoint, view.rollout
        phase, _ = phase_of(view)
        self._phase.tell(phase, _CHIPS.get(phase, ""))
        word, tone = state_of(view)
        self._state.tell(word, tone.split(" ")[0])
        answers = 0.0 if endpoint.killed else endpoint.weight
        self._weight.tell(weight(answers), "bad" if endpoint.killed else "")
        held = f", {percent(endpoint.holdout)} of keys held back" if endpoint.holdout else ""
        self._split.tell(f"of routing keys go to the candidate{held}")
        self._bar.style(replace=f"width:{answers:g}%")
        candidate = view.endpoint.candidate
        self._candidate.tell(f"candidate {candidate.bundle}" if candidate else "no candidate")
        at = f", held at version {endpoint.stable_held}" if endpoint.stable_held else ""
        self._stable.tell(f"stable {endpoint.stable.bundle}{at}")
        if rollout is None:
            self._waits.tell("Nothing: there is no rollout. An operator may start one from a file.")
            return
        waits = rollout.waiting if rollout.phase in ACTIVE else f"Nothing: {rollout.waiting}."
        if rollout.cause is not None and rollout.cause.unmet:
            waits += f" (moved by {rollout.cause.actor} although not met: {'; '.join(rollout.cause.unmet)})"
        self._waits.tell(waits)
        seen, bound = rollout.evidence, bound_of(view)
        bias, low, high = (seen.get(name) for name in ("bias", "bias_low", "bias_high"))
        outside = bias is not None and bound is not None and abs(bias) > bound
        known = low is not None and high is not None
        look = rollout.next_look_ms if rollout.phase in ACTIVE else None
        self._facts.tell(
            {
                "bias of the candidate": Cell(signed_percent(bias), "bad strong" if outside else "strong"),
                "interval": f"{signed_percent(low, 1)} to {signed_percent(high, 1)}" if known else NONE,
                "must be within": NONE if bound is None else f"±{percent(bound)}",
                "missing clicks": count(rollout.missing_clicks),
                "next look": f"in {span((look - now_ms) / 1000)}, {clock(look, now_ms)} UTC" if look else NONE,
                "at this step since": f"{clock(rollout.entered_ms, now_ms)} UTC",
                "says so since": f"{clock(rollout.held_since_ms, now_ms)} UTC" if rollout.held_since_ms else NONE,
                "time left": f"about {rollout.hours_left:.1f} h" if rollout.hours_left is not None else "unknown",
                "what to do": Cell(rollout.what_to_do, "wide"),
            }
        )


class StepsPanel(EndpointPanel):
    """Steps of the rollout: done, present and future ones."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._rollout = ""
        self._lines: list[tuple[Element, Text]] = []
        with element("section", "panel third", aria_label="Rollout steps"):
            with element("header"):
                Text("Rollout steps", "h2")
                self._about = Text(tag="p", classes="note")
            self._list = element("ol", "steps")
            self._none = Text("No rollout.", "p", "note")

    def draw(self, view: View, reading: Reading, now_ms: int) -> None:
        rollout = view.rollout
        if rollout is None:
            return
        self._none.set_visibility(False)
        back = f", stepped back {rollout.stepped_back} times" if rollout.stepped_back else ""
        self._about.tell(f"{rollout.candidate.bundle} {rollout.candidate.version}, attempt {rollout.attempt}{back}")
        if rollout.id != self._rollout:
            self._rollout = rollout.id
            self._list.clear()
            self._lines = []
            for step in rollout.steps:
                with self._list, element("li") as line:
                    name = "shadow, answers nothing" if step.shadow else weight(step.weight)
                    Text(name, "span", "name")
                    when = Text(classes="when")
                    needs = (
                        f"{step.min_positives:,} clicks" if step.shadow else f"bias within ±{percent(step.bias_below)}"
                    )
                    Text()
                    Text(needs, classes="note")
                self._lines.append((line, when))
        for at, (line, when) in enumerate(self._lines):
            present = rollout.phase in ACTIVE and at == rollout.step
            place = "now" if present else "done" if at < rollout.step else ""
            line.classes(replace=place)
            put(line, "aria-current", "step" if place == "now" else "false")
            how = "on evidence" if at in rollout.steps_on_evidence else "by hand"
            when.tell("now" if place == "now" else how if place == "done" else "")

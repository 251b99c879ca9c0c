"""Alerts, their unit tests and their runbooks hold together; promtool is Prometheus' own judge."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_tree import below
from typer.main import get_command

from serving.cli.main import app

ROOT = Path(__file__).parents[3]
PROMETHEUS = ROOT / "deploy" / "prometheus"
UNIT_TESTS = ROOT / "tests" / "deploy" / "alerts.yml"
OF_DAYS = ROOT / "tests" / "deploy" / "alerts_of_days.yml"


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


@pytest.mark.parametrize(
    "command",
    [
        ("check", "rules", PROMETHEUS / "alerts.yml"),
        ("check", "config", PROMETHEUS / "prometheus.yml"),
        ("test", "rules", UNIT_TESTS),
        pytest.param(("test", "rules", OF_DAYS), marks=pytest.mark.long),
    ],
    ids=lambda command: " ".join(map(str, command[:2])),
)
def test_promtool_finds_nothing_wrong(command: tuple[Any, ...]) -> None:
    done = subprocess.run(["promtool", *command], capture_output=True, text=True, check=False, timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_seen_to_fire_and_to_be_silent() -> None:
    seen: dict[str, set[bool]] = {}
    tests = [test for path in (UNIT_TESTS, OF_DAYS) for test in yaml.safe_load(path.read_text())["tests"]]
    for test in tests:
        seen.setdefault(test["name"], set()).update(bool(point["exp_samples"]) for point in test["promql_expr_test"])
    assert seen == {rule["alert"]: {True, False} for rule in rules()}


def test_every_alert_says_what_it_means_and_where_to_read_what_to_do() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    sections = dict(re.findall(r"^### (.+)\n((?:(?!^#).*\n?)*)", page, re.MULTILINE))
    for rule in rules():
        note = rule["annotations"]
        assert {"summary", "description", "runbook_url"} <= set(note), rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning")
        path, _, anchor = note["runbook_url"].partition("#")
        assert path == "docs/operations.md"
        text = next((text for title, text in sections.items() if title.lower().replace(" ", "-") == anchor), "")
        assert rule["alert"] in text, f"{rule['alert']}: docs/operations.md has no section #{anchor} that names it"
        assert "    baton " in text or "`baton " in text, f"{rule['alert']}: its section names no command"


def test_the_table_of_incidents_has_every_alert() -> None:
    table = (ROOT / "docs" / "incidents.md").read_text()
    assert [
        rule["alert"]
        for rule in rules()
        if f"`{rule['alert']}`" not in table and rule["labels"]["severity"] == "critical"
    ] == []


def test_commands_of_the_runbooks_exist() -> None:
    lines = re.findall(r"^    baton (.+?)(?:  +#.*)?$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    lines += re.findall(r"`baton ([^`]+)`", (ROOT / "docs" / "incidents.md").read_text())
    assert len(lines) > 40
    for line in lines:
        command: Any = get_command(app)
        words = line.split()
        while words and (known := below(command)):
            if words[0] not in known:
                assert command.invoke_without_command, f"baton {line}: there is no such command"
                break
            command = known[words.pop(0)]
        options = {name for parameter in command.params for name in parameter.opts}
        asked = {word for word in words if word.startswith("--")}
        assert asked <= options, f"baton {line}: {sorted(asked - options)}"

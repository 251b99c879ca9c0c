"""Text of others on a terminal: shown as it is, neither markup nor a command to the terminal, wherever it comes from."""

from __future__ import annotations

import ast
import io
import json
import logging
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from serving.cli import output, progress
from serving.cli.api import AdminClient
from serving.cli.drawing import CELL_LETTERS, Drawing, shown, table_of
from serving.cli.main import app
from serving.runtime.logs import JsonLines, PlainLines, TextLines
from serving.runtime.visible import json_safe, visible

ROOT = Path(__file__).parents[3]
NASTY = (
    "\x1b]0;OWNED\x07\x1b[2K\x1b[1A[link=https://evil.example]see[/link] [conceal]hidden[/conceal] [/nope] :bomb: "
    "\x9b2J\r\nerror: forged\u202etxt.exe\u2066\u2028\u200b\ud800\U000e0041"
)
SEEN = "[link=https://evil.example]see[/link] [conceal]hidden[/conceal] [/nope] :bomb:"

texts = st.text(
    st.one_of(st.characters(), st.sampled_from("\x1b\x07\x9b[]/\\\n\r\t\u202e\u2028\u200f\ud800\U000e0041{}:")),
    max_size=60,
)


def unseen(text: str) -> list[str]:
    """Characters of a text that steer a terminal or do not show; ends of lines are the writer's own."""
    return [c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]


def drawn(thing: Drawing, width: int = 100, terminal: bool = False) -> str:
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=terminal, color_system=None).print(thing)
    return file.getvalue()


@given(texts)
def test_any_text_is_one_line_without_characters_that_do_not_show(text: str) -> None:
    line = visible(text)
    assert "\n" not in line
    assert not unseen(line)
    line.encode()
    assert line == text or unseen(text) or not text.isprintable()
    assert json.loads(json_safe(json.dumps(text, ensure_ascii=False))) == text
    assert not unseen(json_safe(json.dumps(text, ensure_ascii=False)))


@given(st.lists(st.tuples(texts, texts), max_size=4), texts, st.integers(20, 200))
@settings(max_examples=60, deadline=None)
def test_any_text_is_drawn_in_a_table_of_any_width(rows: list[tuple[str, str]], head: str, width: int) -> None:
    assert not unseen(drawn(table_of((head, "other"), rows), width))


def test_brackets_are_shown_and_a_long_text_is_cut_with_what_is_missing() -> None:
    assert drawn(table_of(("why",), [("a [bold]b[/bold] [/nope] :smile:",)])).count("a [bold]b[/bold] [/nope] :smile:")
    assert visible("x" * 10, 4) == "xxxx ... (6 more letters)"
    far = drawn(table_of(("why", "n"), [("x" * 1_000_000, "1")]))
    assert len(far) < 10 * CELL_LETTERS
    assert "999,000" in far


@pytest.fixture
def reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server all of whose texts are nasty."""
    entry = {
        "seq": 1, "time_ms": 0, "endpoint": NASTY, "actor": NASTY, "verb": NASTY, "after": {}, "reason": NASTY,
    }  # fmt: skip
    arm = {"bundle": NASTY, "version": NASTY}
    endpoint = {"name": NASTY, "stable": arm, "candidate": arm, "weight": 1, "killed": False, "resource_version": 1}
    model = {
        "bundle": NASTY, "version": "1", "architecture": NASTY, "base": NASTY, "fault": NASTY, "servable": False,
        "reasons": [NASTY], "arms": [NASTY], "lanes": [NASTY],
    }  # fmt: skip
    rollout = {
        "id": NASTY, "endpoint": NASTY, "phase": NASTY, "step": 0, "steps": [1, 2], "weight": 1, "waiting": NASTY, "phases": [],
    }  # fmt: skip
    process = {
        "name": NASTY, "state": NASTY, "doing": NASTY, "age_s": None, "restarts": 0, "last_exit": NASTY, "why": NASTY,
    }  # fmt: skip
    explained = {"entry": entry, "figures": [], "verdict": NASTY, "note": NASTY, "same": True}
    answers = {
        "/audit": {"entries": [entry], "next_page_token": ""},
        "/audit/1/explain": explained,
        "/endpoints": {"endpoints": [endpoint], "next_page_token": ""},
        "/models": {"models": [model], "next_page_token": ""},
        "/rollouts": {"rollouts": [rollout], "next_page_token": ""},
        "/rollouts/x": rollout,
        "/status": {
            "processes": [process], "damaged": [{"file": NASTY, "reason": NASTY}],
            "lanes": {NASTY: {"faults": {NASTY: NASTY}}},
        },
        "/worker": {"versions": {}},
    }  # fmt: skip
    monkeypatch.setattr(AdminClient, "check_alive", lambda self: None)
    monkeypatch.setattr(AdminClient, "get", lambda self, path, **query: answers[path])


@pytest.mark.parametrize(
    "command",
    ["audit", "audit explain 1", "endpoint list", "model list", "rollout list", "rollout get x", "status"],
)
@pytest.mark.usefixtures("reasons")
def test_every_table_shows_what_a_server_says_as_text(command: str) -> None:
    done = CliRunner().invoke(app, command.split())
    assert done.exit_code == 0, (done.output, done.exception)
    assert not unseen(done.output)
    assert "conceal]" in done.output.replace("\n", "")
    assert not [line for line in done.output.splitlines() if line.startswith("error: forged")]
    exact = CliRunner().invoke(app, [*command.split(), "-o", "json"])
    assert not unseen(exact.stdout)
    assert json.dumps(NASTY) in exact.stdout


def test_an_error_says_a_foreign_name_as_text_and_cuts_a_long_one(tmp_path: Path) -> None:
    for name in (NASTY.replace("/", "|").replace("\ud800", ""), "n" * 200):
        done = CliRunner().invoke(app, ["bundle", "verify", str(tmp_path / name)])
        assert done.exit_code == 1
        assert not unseen(done.output), done.output
        assert done.output.count("\n") == 1
    file = tmp_path / "rollout.yaml"
    file.write_text(f"endpoint: {'n' * 1_000_000}\nstepps: []\n")
    done = CliRunner().invoke(app, ["rollout", "simulate", str(file)])
    assert done.exit_code == 1
    assert len(done.output) < 20_000


def test_usage_errors_show_the_command_line_as_text() -> None:
    for arguments in (
        ["audit", NASTY],
        ["bundle", NASTY],
        ["rollout", "list", f"--{NASTY}"],
        [NASTY],
        ["status", "-o", NASTY],
    ):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 2
        assert not unseen(done.output), (arguments, done.output)


def test_an_error_that_nobody_expected_and_what_libraries_log_are_text_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> object:
        logging.getLogger("library").warning("odd: %s", NASTY)
        raise RuntimeError(NASTY)

    monkeypatch.setattr(AdminClient, "get", broken)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    done = CliRunner().invoke(app, ["audit"])
    assert isinstance(done.exception, RuntimeError)
    assert not unseen(done.output)
    sys.excepthook(RuntimeError, done.exception, done.exception.__traceback__)
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert SEEN in said
    assert not unseen(said)


def test_a_progress_bar_shows_its_words_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=file, width=400))
    with progress.bar("{task.description}", "bar", "{task.fields[rate]} rows/s") as shown_bar:
        shown_bar.add_task(NASTY, total=3, rate=NASTY)
    assert not unseen(file.getvalue())
    assert SEEN in file.getvalue()
    assert not unseen(drawn(shown(NASTY)))


def entry(message: str, *arguments: object) -> logging.LogRecord:
    try:
        raise ValueError(NASTY)
    except ValueError:
        return logging.LogRecord("serving", logging.ERROR, "file", 1, message, arguments, sys.exc_info())


@pytest.mark.parametrize("form", [TextLines, JsonLines, lambda _: PlainLines()])
def test_no_text_makes_a_line_of_the_log_of_its_own(form: Callable[[str], logging.Formatter]) -> None:
    record = entry("reason %s", f"{NASTY}\n2026-01-02T03:04:05.678Z CRITICAL control serving: forged")
    record.request_id = NASTY
    written = form("control").format(record)
    first, *below = written.split("\n")
    assert "CRITICAL" in first
    assert all(line.startswith("  ") for line in below)
    assert not unseen(written)
    if form is JsonLines:
        assert json.loads(written)["message"].startswith(f"reason {NASTY}")
        assert not below


def test_commands_write_through_one_door() -> None:
    """Only `output` and its two parts know rich or write; the rest hands them text."""
    doors = {"output.py", "drawing.py", "progress.py"}
    wrong = []
    for path in [*sorted((ROOT / "serving/cli").glob("*.py")), ROOT / "benchmarks/cli.py"]:
        if path.parent.name == "cli" and path.name in doors:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            wrong += [f"{path.name}: imports {name}" for name in names if name.split(".")[0] == "rich"]
            if isinstance(node, ast.Call):
                call = ast.unparse(node.func)
                if call in (
                    "print",
                    "typer.echo",
                    "typer.secho",
                    "sys.stdout.write",
                    "sys.stderr.write",
                    "console.print",
                ):
                    wrong.append(f"{path.name}: {call}")
    assert not wrong
    for path in (ROOT / "serving/cli").glob("*.py"):  # and no pattern of rich is made of a text
        assert "from_markup" not in path.read_text(), path.name
    assert isinstance(output.console, Console)

"""What docs/adopt.md shows, as it stands there, in its order: a team's own model brought, its student taught from a thinned log,
the traffic moved on evidence while purchases come days late, taken back, and moved again.

Days are seconds here. Purchases are drawn by their true probability on all of the traffic, so that what the arms say can be held
against the truth and not only against labels.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from machine import Served, free_ports, until
from shop import PER_PAGE, Pages, Shop
from shoppers import Shoppers
from typer.testing import CliRunner

from pipeline.calibration import sigmoid
from pipeline.traffic.requests import request_key
from serving.cli.main import app
from serving.client import RankingClient
from serving.rollout.spec import Rollout

pytestmark = pytest.mark.long

PAGE = (Path(__file__).parents[2] / "docs" / "adopt.md").read_text()
RANKER, BRING, CALLER = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
FILES = {
    next(iter(yaml.safe_load(block))): yaml.safe_load(block)
    for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
}
DAY_S = 2.0
WAY_S = 3.0
"""What a purchase takes from the team's file into the log at most: no part of the three days, and not shorter with them."""
FASTER = 2000.0
"""How much shorter blocks, looks, stays and the window for breaches are than those of the page."""
PAGES_PER_S, ITEMS_SHOWN, TRAFFIC_SEED = 60.0, 100, int(os.environ.get("BATON_TEST_SEED", "0"))
STAY_S = 5.0
BOUND = 0.02
HISTORY_PAGES, TAUGHT = 20_000, 0.5
CLOSE = 1e-5


def command(start: str) -> list[str]:
    """Arguments of the page's command that starts so."""
    (line,) = re.findall(rf"^    baton ({re.escape(start)}.*)$", PAGE, re.MULTILINE)
    return shlex.split(line)


def baton(start: str, *more: str) -> Any:
    """Run the page's command that starts so, with these options more; what it says."""
    return run(*command(start), *more)


def run(*arguments: str) -> Any:
    """Run a command; what it says."""
    done = CliRunner().invoke(app, [*arguments, "-o", "json"])
    assert done.exit_code == 0, f"{arguments}: {done.output}"
    return yaml.safe_load(done.stdout)


@dataclass
class Team:
    """The team's folder, in which everything runs, and its world."""

    folder: Path
    shop: Shop
    history: Pages
    kept: np.ndarray[Any, Any]
    ranker: Any
    caller: Any

    def asked(self, pages: Pages, at: int) -> tuple[dict[str, str], dict[str, list[Any]]]:
        """A page as callers ask for it."""
        return self.shop.context(pages, at), self.shop.candidates(pages, at)


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """What the team has before it hears of Baton, and its model brought."""
    folder = tmp_path_factory.mktemp("team")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        torch.set_num_threads(1)
        (folder / "team").mkdir()
        (folder / "team" / "ranker.py").write_text(RANKER)
        (folder / "team" / "caller.py").write_text(CALLER)
        from team import caller, ranker  # type: ignore[import-not-found]

        shop = Shop()
        history = shop.pages(HISTORY_PAGES, 0)
        kept = shop.kept(history, 0)
        shop.write_vocabularies(folder)
        torch.manual_seed(0)
        model = ranker.Ranker()
        shop.train(model, history, kept[: int(TAUGHT * len(kept))])
        torch.save(model.state_dict(), "ranker.pt")
        made = Team(folder, shop, history, kept, model, caller)
        yield made
        for name in [name for name in sys.modules if name == "team" or name.startswith("team.")]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def machine(team: Team) -> Iterator[Served]:
    """The old model alone in service, by the page's baton.yaml."""
    rows = team.shop.frame(team.shop.pages(1000 // PER_PAGE, 1))
    item = rows.item_id.str.removeprefix("item-").astype(int).to_numpy()
    user = rows.user_id.map({name: n for n, name in enumerate(team.shop.user_ids)}).to_numpy()
    with torch.no_grad():
        rows["score"] = team.ranker(*team.shop.codes(user, item, rows.price.to_numpy())).numpy()
    rows[["user_id", "item_id", "tags", "price", "score"]].to_parquet("rows.parquet")
    bring: dict[str, Any] = {"__name__": "bring"}
    exec(compile(BRING, "bring.py", "exec"), bring)
    assert bring["made"].warnings == []
    assert bring["made"].parity.rows == 1000
    grpc_port, http_port, admin_port = free_ports(3)
    settings = FILES["home"]
    settings["listen"] = {"grpc_port": grpc_port, "http_port": http_port, "admin_port": admin_port}
    settings["engine"] = {"lanes": 1}
    settings["traffic"]["attribution_window"] = f"{3 * DAY_S + WAY_S:g}s"
    settings["worker"] |= {
        "batch_rows": 1000
    }  # publish_interval is the page's: less traffic tells the level no better than to 2 %
    Path("baton.yaml").write_text(yaml.safe_dump(settings))
    published = baton("bundle publish")
    assert (published["name"], published["version"]) == ("shop-old", "1")
    made = Served(team.folder / "baton.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BATON_SERVER", made.url)
        made.start()
        yield made
        assert made.stop() == 0


def test_bringing_the_model_takes_few_lines() -> None:
    assert len([line for line in BRING.splitlines() if line.strip()]) < 30


def test_the_server_says_what_the_model_says(team: Team, machine: Served) -> None:
    rows = pd.read_parquet("rows.parquet")
    pages = team.shop.pages(1000 // PER_PAGE, 1)
    said = []
    with RankingClient(machine.target) as client:
        for at in range(len(pages.user)):
            context, candidates = team.asked(pages, at)
            del context["device"], candidates["age_days"]  # nobody asks for them yet
            answer = client.rank_message(team.caller.page(f"first-{at}", context, candidates))
            assert (answer.arm, answer.bundle, answer.version) == ("stable", "shop-old", "1")
            said.append(answer.scores)
    worst = np.abs(np.concatenate(said) - sigmoid(rows.score.to_numpy(np.float64))).max()
    print(f"1,000 rows served, largest difference to the module's own answer {worst:.1e}")
    assert worst < CLOSE


@pytest.fixture(scope="module")
def student(team: Team, machine: Served) -> dict[str, Any]:
    """The student, taught from the thinned log while the old model serves."""
    team.shop.frame(team.history, team.kept).to_parquet("clicks-1.parquet")
    Path("dataset.yaml").write_text(yaml.safe_dump(FILES["name"], sort_keys=False))
    taught: dict[str, Any] = baton("transfer")
    return taught


def test_the_student_has_the_level_of_the_traffic_and_ranks_better(student: dict[str, Any]) -> None:
    assert (student["name"], student["version"]) == ("shop-new", "1")
    after, before = student["after"], student["teacher_after"]
    print(
        f"rows after: student AUC {after['auc']:.3f}, bias {after['bias']:+.3f}; teacher {before['auc']:.3f}, {before['bias']:+.3f}"
    )
    assert after["auc"] > before["auc"] + 0.01
    assert abs(after["bias"]) < 0.06  # of 3,000 purchases: three standard errors


@dataclass
class Live:
    """The shop's traffic, and the command that takes its purchases in."""

    shoppers: Shoppers
    taking: subprocess.Popen[str]


def beside(start: str, *more: str) -> subprocess.Popen[str]:
    """The page's command that starts so, in a process of its own."""
    arguments = [sys.executable, "-m", "serving.cli.main", *command(start), *more, "-o", "json"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.fixture(scope="module")
def live(team: Team, machine: Served, student: dict[str, Any]) -> Iterator[Live]:
    """Pages and late purchases, from before the rollout on."""
    (team.folder / "purchases").mkdir()
    taking = beside("labels import", "--target", machine.target)
    try:
        shoppers = Shoppers(
            team.shop,
            team.caller.show,
            machine.target,
            team.folder / "purchases" / "bought.jsonl",
            rate=PAGES_PER_S,
            per_page=ITEMS_SHOWN,
            latest_s=3 * DAY_S,
            seed=10 + TRAFFIC_SEED,
        )
        with shoppers:
            until(lambda: len(shoppers.pages) > PAGES_PER_S, "pages are answered")
            yield Live(shoppers, taking)
    finally:
        taking.kill()
        taking.wait()


def write_rollout() -> None:
    """The page's rollout.yaml, its times shorter."""
    page = FILES["endpoint"]
    told = Rollout.model_validate(page).analysis
    shorter = {name: f"{getattr(told, name) / FASTER:g}s" for name in (*page["analysis"], "evidence_span")}
    # This machine is client, trainer and server in one: how long an answer takes says nothing of the student.
    guards = {**page["guards"], "p99_ms_max": None}
    Path("rollout.yaml").write_text(yaml.safe_dump({**page, "guards": guards, "analysis": shorter}, sort_keys=False))


def answering(live: Live, arm: str, *, but: float = 0.0) -> None:
    """Wait until an arm answers the pages that are asked for from now on, all but a share of them."""
    begun = time.monotonic()

    def answered() -> bool:
        live.shoppers.check()
        newest = [page.arm for page in live.shoppers.pages[-int(PAGES_PER_S) :] if page.asked >= begun]
        return len(newest) >= PAGES_PER_S / 2 and newest.count(arm) >= (1 - but) * len(newest)

    until(answered, f"the arm {arm} answers")


HOLDOUT = 0.05
"""Share of the pages that the old model may answer at 100 %: its keys of the holdout, one in a hundred, some more seen."""


def test_the_traffic_moves_on_evidence(team: Team, live: Live) -> None:
    write_rollout()
    begun = time.monotonic()
    assert baton('rollout start rollout.yaml --reason "two')["phase"] == "progressing"
    until(lambda: live.shoppers.page_is_answered(team.caller.page), "a page with the new fields is answered")
    live.shoppers.knows = True
    watching = beside("rollout watch")
    assert watching.stdout is not None
    said = ""
    try:
        for line in watching.stdout:
            live.shoppers.check()
            seen = json.loads(line)
            assert seen["phase"] == "progressing" or seen["weight"] == 100, seen
            if (what := re.sub(r"[\d.+-]+", "", seen["waiting"])) != said:
                said = what
                print(f"{time.monotonic() - begun:6.1f} s, {seen['weight']:3g} %: {seen['waiting']}")
            if seen["phase"] == "watching" or time.monotonic() > begun + 400:
                break
    finally:
        watching.kill()
        watching.wait()
    assert seen["phase"] == "watching", seen["waiting"]
    moves = [
        entry
        for entry in run("audit", "--endpoint", "ranker")
        if "state" in entry["after"] and entry["verb"] != "start"
    ]
    assert [entry["after"]["state"]["weight"] for entry in moves if entry["verb"] == "advance"] == [1, 10, 50, 100]
    assert {entry["verb"] for entry in moves} <= {"advance", "adopt_version"}
    answering(live, "candidate", but=HOLDOUT)
    at_full = time.monotonic()
    until(lambda: live.shoppers.pages[-1].asked > at_full + STAY_S, "the student has answered for a while")


def test_undone_at_once(live: Live) -> None:
    undone = baton("rollout undo")
    since = time.monotonic()
    assert (undone["phase"], undone["weight"]) == ("undone", 0)
    answering(live, "stable")
    until(lambda: live.shoppers.pages[-1].asked > since + 2, "two seconds of pages")
    later = [page for page in live.shoppers.pages if page.asked >= since]
    late = max((page.asked - since for page in later if page.arm != "stable"), default=0.0)
    print(
        f"undone: the student was asked for the last time {late:.2f} s after the command had ended; {len(later)} pages"
    )
    assert late < 1


def test_started_again_and_promoted_to_the_end(live: Live) -> None:
    assert baton('rollout start rollout.yaml --reason "it')["weight"] == 0
    assert baton("rollout promote")["weight"] == 100
    answering(live, "candidate", but=HOLDOUT)
    since = time.monotonic()
    until(lambda: live.shoppers.pages[-1].asked > since + STAY_S, "the student has answered for a while")
    assert run("rollout", "get", "ranker")["phase"] == "watching"


def test_every_purchase_counts_once(live: Live) -> None:
    live.shoppers.end()
    bought, rows = live.shoppers.purchased, ITEMS_SHOWN * len(live.shoppers.pages)

    def exported() -> pd.DataFrame | None:
        run("log", "export", "traffic.parquet", "--endpoint", "ranker")
        found = pd.read_parquet("traffic.parquet", columns=["request_key", "index", "label"])
        newest = found.groupby(["request_key", "index"]).label.last()
        return (len(newest), newest.sum()) == (rows, bought)

    until(exported, f"{rows:,} rows and {bought:,} purchases are in the log")
    live.taking.send_signal(signal.SIGINT)
    told, _ = live.taking.communicate(timeout=30)
    assert live.taking.returncode == 0
    taken = json.loads(told)
    assert (taken["accepted"], taken["duplicate"], taken["expired"], taken["invalid"]) == (bought, 0, 0, 0)


def test_the_students_level_is_right_on_all_traffic_at_every_step(live: Live) -> None:
    """By the probabilities of purchases themselves: on every row of a step, whoever answered it."""
    pages = live.shoppers.pages
    truth = pd.Series(range(len(pages)), index=[request_key("ranker", page.request_id) for page in pages])
    columns = ["time", "arm", "request_key", "index", "previous", "candidate"]
    rows = pq.read_table("traffic.parquet", columns=columns).flatten().to_pandas()
    rows = rows[rows.previous.isna()]
    rows["truth"] = np.stack([page.truth for page in pages])[truth[rows.request_key], rows["index"]]
    changes = run("audit", "--endpoint", "ranker")
    stays = [entry for entry in changes if entry["verb"] in ("start", "advance", "promote", "undo")]
    times = rows.time.astype("int64")  # milliseconds
    print("step                rows   scored  by student  bias, all rows  bias, answered by it  versions")
    for stay, after in zip(stays, [*stays[1:], None], strict=True):
        if stay["verb"] == "undo":
            continue
        there = rows[(times >= stay["time_ms"]) & (times < (after["time_ms"] if after else np.inf))]
        scored = there[there["candidate.score"].notna()]
        served = scored[scored.arm == "candidate"]
        own = served["candidate.score"].sum() / served.truth.sum() - 1 if len(served) else math.nan
        level = scored["candidate.score"].sum() / scored.truth.sum() - 1
        versions = ",".join(str(int(v)) for v in sorted(scored["candidate.version"].unique()))
        print(
            f"{stay['after']['state']['weight']:4g} % {stay['verb']:8} {len(there):9,} {len(scored):8,} {len(served):11,}"
            f" {level:+15.2%} {own:+21.2%}  {versions}"
        )
        if stay["verb"] == "start" and after is not None and after["verb"] == "promote":
            continue  # over before a page was asked for
        assert len(scored) >= 0.95 * len(there) > 1000
        assert abs(level) < BOUND
        if stay["after"]["state"]["weight"] == 100:
            assert len(served) >= (1 - HOLDOUT) * len(there)
            assert abs(own) < BOUND

"""The console in a real browser, over a real control process, store and rollout: what an operator and a viewer can do.

The tests of this file share one installation and go through one night in order.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from desk import LIMIT_MS, Open, act, fits, phase, settled, shoot, sign_in
from installation import eventually
from scene import ROLLOUT, Scene

from serving.config.principal import Role

OPERATOR, VIEWER = "ann", "vic"
MINUS = "\N{MINUS SIGN}"


@pytest.fixture(scope="module")
def night(scene: Scene) -> tuple[Scene, dict[str, str]]:
    """The scene, started, with a token each for an operator and a viewer."""
    tokens = {OPERATOR: scene.token(OPERATOR, Role.OPERATOR), VIEWER: scene.token(VIEWER, Role.VIEWER)}
    scene.start_control()
    scene.start_traffic()
    return scene, tokens


Night = tuple[Scene, dict[str, str]]


def number(page: Any, fact: str) -> float:
    """A percentage among the facts of the headline; NaN while there is none."""
    text = page.locator("dl.facts > div", has=page.locator("dt", has_text=fact)).locator("dd").first.inner_text()
    found = re.search(rf"[+{MINUS}]?[\d.]+", text)
    return float(found[0].replace(MINUS, "-")) if found else float("nan")


def test_nobody_sees_it_without_a_token(night: Night, opened: Open, screenshots: Path) -> None:
    scene, tokens = night
    page = opened(width=375)
    page.goto(scene.url + "/")
    assert "/login" in page.url
    assert fits(page)
    shoot(page, screenshots, "sign-in-phone")
    page.get_by_label("Token").fill("baton_00000000_wrong")
    answer = httpx.post(scene.url + "/login", data={"token": "baton_00000000_wrong"})
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers or "Max-Age=0" in answer.headers["set-cookie"]
    right = httpx.post(scene.url + "/login", data={"token": tokens[VIEWER], "next": "https://elsewhere.example/"})
    assert (right.status_code, right.headers["location"]) == (303, "/")
    flags = right.headers["set-cookie"].lower()
    assert "httponly" in flags
    assert "samesite" in flags
    assert tokens[VIEWER] not in right.headers["set-cookie"]
    assert httpx.get(scene.url + "/", headers={"accept": "text/html"}).status_code == 303


def test_an_operator_starts_a_rollout_and_watches_bias_fall_and_steps_taken(
    night: Night, opened: Open, screenshots: Path
) -> None:
    scene, tokens = night
    page = opened()
    sign_in(page, scene.url, tokens[OPERATOR])
    page.get_by_text("there is no rollout").wait_for()
    act(page, "Start rollout", "the new model is ready", Rollout_file=ROLLOUT)
    phase(page, "progressing")
    page.wait_for_function("/^[+\u2212]/.test(document.querySelector('dl.facts dd').innerText)")
    # All its figures until then: the first one may come when most of the bias is gone.
    shown = [abs(number(page, "bias of the candidate"))]
    half = page.locator(".weight .big", has_text="50 %")
    while not half.count():
        shown.append(abs(number(page, "bias of the candidate")))
        page.wait_for_timeout(20)
    assert abs(number(page, "bias of the candidate")) < max(shown), shown
    assert page.locator(".steps li.now", has_text="50 %").count() == 1
    # Of a step that is over in less than two readings the page need not have shown the weight; the trail has it.
    page.get_by_role("button", name="advance, 10 to 50 %").wait_for()
    page.get_by_role("button", name="advance, 0 to 10 %").click()
    evidence = page.get_by_role("dialog")
    evidence.get_by_text("bias_high").wait_for()
    evidence.get_by_role("button", name="Work it out again").click()
    evidence.get_by_text("It comes out the same.").wait_for()
    page.keyboard.press("Escape")
    evidence.wait_for(state="hidden")
    shoot(page, screenshots, "endpoint-desktop-light")
    assert scene.audit()[-2:] == ["advance", "advance"]


def test_a_viewer_sees_and_cannot_act(night: Night, opened: Open) -> None:
    scene, tokens = night
    theirs, his = opened(), opened()
    sign_in(theirs, scene.url, tokens[OPERATOR])
    sign_in(his, scene.url, tokens[VIEWER])
    phase(his, "progressing")
    assert his.get_by_role("button", name="Pause").count() == 0
    assert his.get_by_text("vic, viewer").count() == 1
    before = scene.audit()
    refused = httpx.post(
        f"{scene.url}/api/v1/rollouts/ranker/pause",
        json={"reason": "no"},
        headers={"authorization": f"Bearer {tokens[VIEWER]}"},
    )
    assert refused.status_code == 403
    # Every listener of the operator's page, named with the operator's page and with the viewer's own.
    theirs.get_by_role("button", name="Pause").click()
    theirs.get_by_role("dialog").get_by_label("Reason").fill("she meant to")
    theirs.wait_for_timeout(300)
    page, listeners = theirs.evaluate(
        "[window.clientId, Object.entries(mounted_app.elements).flatMap(([id, e]) =>"
        " (e.events || []).map(l => ({id: Number(id), listener_id: l.listener_id})))]"
    )
    assert len(listeners) > 10
    for client in (page, his.evaluate("window.clientId")):
        for listener in listeners:
            his.evaluate(
                "message => window.socket.emit('event', message)", {**listener, "client_id": client, "args": []}
            )
    his.evaluate(
        "page => window.socket.emit('handshake', {client_id: page, tab_id: 'x', document_id: 'y'})", page
    )  # fmt: skip
    round_trip(his)
    assert [verb for verb in scene.audit()[len(before) :] if verb not in ("advance", "step_back", "recover")] == []
    theirs.keyboard.press("Escape")


def round_trip(page: Any) -> None:
    """Wait until the server has dealt with all that a page has sent: it answers in order."""
    page.evaluate("new Promise(done => window.socket.emit('handshake', {client_id: 'nobody'}, done))")


def test_an_operator_pauses_resumes_promotes_and_aborts(night: Night, opened: Open) -> None:
    scene, tokens = night
    page = opened()
    sign_in(page, scene.url, tokens[OPERATOR])
    act(page, "Pause", "the labels look odd")
    phase(page, "paused")
    page.get_by_text(f"paused by {OPERATOR} at ").first.wait_for()
    act(page, "Resume", "they were fine")
    phase(page, "progressing")
    act(page, "Promote one step", "the product owner wants it")
    phase(page, "watching")
    page.locator(".weight .big", has_text="100 %").wait_for()
    act(page, "Abort", "enough for today")
    phase(page, "aborted")
    page.locator(".weight .big", has_text=re.compile("^0 %")).wait_for()
    assert scene.audit()[-4:] == ["pause", "resume", "promote", "abort"]
    last = scene.made.store.audit("ranker")[-1]
    assert (last.actor, last.reason) == (OPERATOR, "enough for today")


def test_the_keyboard_does(night: Night, opened: Open) -> None:
    scene, tokens = night
    page = opened()
    sign_in(page, scene.url, tokens[OPERATOR])
    kill = page.get_by_role("button", name="Kill", exact=True)
    kill.wait_for()
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.innerText?.trim() || document.activeElement.ariaLabel"))
        if seen[-1] == "Kill":
            break
    assert seen[0] == "Skip to the content"
    assert seen.index("Baton") < seen.index("system") < seen.index("Start rollout") < seen.index("Kill")
    assert page.evaluate("getComputedStyle(document.activeElement).boxShadow") != "none"
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    reason = dialog.get_by_label("Reason")
    reason.wait_for()
    page.wait_for_function("document.activeElement.tagName === 'INPUT'")
    page.keyboard.press("Enter")
    dialog.get_by_text("Say why").wait_for()
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    page.wait_for_function("document.activeElement.innerText.trim() === 'Kill'")
    page.keyboard.press("Enter")
    page.wait_for_function("document.activeElement.tagName === 'INPUT'")
    page.keyboard.type("it burns")
    page.keyboard.press("Enter")
    dialog.wait_for(state="hidden")
    page.get_by_text("Killed by ann: it burns").wait_for()
    act(page, "Release", "repaired")
    page.get_by_text("Killed by").wait_for(state="hidden")
    assert scene.audit()[-2:] == ["kill", "release"]


@pytest.mark.parametrize("path", ["/", "/endpoints/ranker"])
def test_a_phone_needs_no_sideways_scroll(night: Night, opened: Open, screenshots: Path, path: str) -> None:
    scene, tokens = night
    page = opened(width=375, scheme="dark")
    sign_in(page, scene.url, tokens[VIEWER], path)
    page.locator("body.body--dark").wait_for()
    assert fits(page)
    shoot(page, screenshots, f"{'landing' if path == '/' else 'endpoint'}-phone-dark")
    page.get_by_role("link", name="light").click()
    page.locator("body.body--light").wait_for()
    settled(page)
    assert fits(page)
    shoot(page, screenshots, f"{'landing' if path == '/' else 'endpoint'}-phone-light")


def test_a_revoked_token_sees_no_more(night: Night, opened: Open) -> None:
    scene, _ = night
    page = opened()
    sign_in(page, scene.url, scene.token("tom", Role.VIEWER))
    scene.revoke("tom")
    page.wait_for_url(re.compile("/login"))


@pytest.mark.long
def test_a_sign_out_ends_every_page_of_the_session_and_outlives_a_restart(night: Night, opened: Open) -> None:
    scene, tokens = night
    page = opened()
    sign_in(page, scene.url, tokens[VIEWER])
    other = page.context.new_page()
    other.goto(scene.url + "/endpoints/ranker")
    settled(other)
    cookies = {cookie["name"]: cookie["value"] for cookie in page.context.cookies()}
    assert httpx.get(scene.url + "/api/v1/endpoints", cookies=cookies).status_code == 200
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url(re.compile("/login"))
    other.wait_for_url(re.compile("/login"))
    assert httpx.get(scene.url + "/api/v1/endpoints", cookies=cookies).status_code == 401
    scene.stop_control()
    scene.start_control()
    assert httpx.get(scene.url + "/api/v1/endpoints", cookies=cookies).status_code == 401


def test_a_lost_server_is_shown_and_comes_back_by_itself(night: Night, opened: Open, screenshots: Path) -> None:
    scene, tokens = night
    page = opened()
    sign_in(page, scene.url, tokens[OPERATOR])
    lost = page.locator("#popup")
    assert not lost.is_visible()
    scene.stop_control()
    lost.wait_for(state="visible")
    shoot(page, screenshots, "server-gone")
    scene.start_control()
    lost.wait_for(state="hidden", timeout=2 * LIMIT_MS)
    settled(page)
    eventually(lambda: "ranker" in page.title(), "the page is back")

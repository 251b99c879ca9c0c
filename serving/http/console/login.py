"""Sign-in page: without scripts, it exchanges a token for a session. And the cookie with the theme, light or dark."""

from __future__ import annotations

from html import escape
from typing import Annotated
from urllib.parse import quote, unquote

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from pipeline.errors import NotReady, Overloaded, PermissionDenied, Unauthenticated
from serving.http.console.nonces import PAGES
from serving.http.console.shell import ICON, STYLE, THEME, Theme
from serving.http.console.visitors import Visitors
from serving.security.authenticator import Credentials
from serving.security.headers import POLICY_HEADER, page_policy
from serving.security.session import LENGTH_S

__all__ = ["login_routes"]

LOGIN = "/login"
_YEAR_S = 365 * 86400
_AWAY = "Sessions cannot be kept now: the state does not answer. Try again; baton and the API go on with tokens."
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>Sign in, Baton</title><link rel="icon" href="{icon}"><style>{style}</style></head>
<body class="plain {theme}"><main class="signin"><form method="post" action="/login" aria-label="Sign in">
<h1>Baton</h1>
<input type="hidden" name="next" value="{next}">
<label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus
 aria-describedby="message" maxlength="500">
<p id="message" class="{tone}" role="alert">{message}</p>
<button type="submit">Sign in</button>
<p class="note">An operator of this machine makes one: baton token create NAME --role viewer</p>
</form></main></body></html>
"""


def login_routes(visitors: Visitors) -> APIRouter:
    """`/login` and `/theme`."""
    routes = APIRouter(include_in_schema=False)
    sessions = visitors.sessions

    def page(request: Request, back: str, message: str = "", code: int = 200) -> Response:
        theme = {"dark": "body--dark", "light": "light"}.get(request.cookies.get(THEME, ""), "")
        body = _PAGE.format(
            style=STYLE,
            icon=f"data:image/svg+xml,{quote(ICON)}",
            next=escape(back),
            message=escape(message),
            tone="bad" if message else "note",
            theme=theme,
        )
        headers = {POLICY_HEADER: page_policy("'none'"), "cache-control": "no-store"}
        return HTMLResponse(body, code, headers)

    @routes.get(LOGIN)
    def ask(request: Request, next: str = "/") -> Response:
        try:
            if sessions.who(request.cookies.get(sessions.cookie, "")) is not None:
                return RedirectResponse(_ours(next), 303)
        except NotReady:
            return page(request, next, _AWAY, 503)
        answer = page(request, next)
        answer.delete_cookie(sessions.cookie, **sessions.flags())
        return answer

    @routes.post(LOGIN)
    def begin(
        request: Request, token: Annotated[str, Form(max_length=500)], next: Annotated[str, Form()] = "/"
    ) -> Response:  # fmt: skip
        caller = Credentials(f"Bearer {token.strip()}", request.client.host if request.client else "")
        try:
            value = sessions.begin(caller)
        except (Unauthenticated, PermissionDenied):
            return page(request, next, "This token is not known, was revoked or has expired.", 401)
        except Overloaded:
            return page(request, next, "Too many wrong tokens came from your address. Wait a minute.", 429)
        except NotReady:
            return page(request, next, _AWAY, 503)
        sessions.end(request.cookies.get(sessions.cookie, ""))  # the browser forgets the cookie of the one before
        answer = RedirectResponse(_ours(next), 303)
        answer.set_cookie(sessions.cookie, value, max_age=LENGTH_S, **sessions.flags())
        return answer

    @routes.get("/theme/{name}")
    def theme(name: Theme, back: str = "/") -> Response:
        answer = RedirectResponse(_ours(back), 303)
        if name == "system":
            answer.delete_cookie(THEME, **sessions.flags())
        else:
            answer.set_cookie(THEME, name, max_age=_YEAR_S, **sessions.flags())
        return answer

    return routes


def _ours(path: str) -> str:
    """The console page to continue with; any other target becomes `/`, so that nobody is redirected to another site."""
    known = unquote(path)
    return quote(known) if PAGES.fullmatch(known) else "/"

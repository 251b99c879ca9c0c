"""Why no control process answers: none runs, it hangs, or the address is another installation's. Each with what to do."""

from __future__ import annotations

from pathlib import Path

import httpx

from pipeline.errors import BatonError
from serving.config import Config
from serving.runtime.claims import Holder, supervisors
from serving.runtime.loopback import is_loopback_host
from serving.runtime.ports import claims_of, port_holders
from serving.runtime.roster import process_state

__all__ = ["unanswered"]

CONFIG = Path("baton.yaml")


def unanswered(server: str, error: httpx.HTTPError) -> str:
    """A sentence for people: what is there at the server's address, and the command that helps."""
    url = httpx.URL(server)
    port = url.port or (443 if url.scheme == "https" else 80)
    refused = isinstance(error, httpx.ConnectError)
    head = f"no control process answers at {server} ({error})"
    if not is_loopback_host(url.host):
        if refused:
            return (
                f"{head}; look whether `baton serve` runs there, or name another server with --server or BATON_SERVER"
            )
        return f"{head}: it hangs, or the network does; `baton status` on its machine tells"
    if (holder := _holder(url.host, port)) is not None:
        return f"{head}: {_hung(holder, refused)}"
    if not refused:
        return f"{head}: what listens there is no process of Baton's, or of another user; name the server with --server"
    return f"{head}; {_elsewhere(port)}"


def _holder(host: str, port: int) -> Holder | None:
    try:
        return next(iter(port_holders(host, port)), None)
    except BatonError:
        return None


def _hung(holder: Holder, refused: bool) -> str:
    again = f"`baton process restart control --home {holder.home}` starts it again"
    who = f"the control process of {holder.home} has the port (pid {holder.pid})"
    state = process_state(holder.pid)
    if state == "stopped":
        return f"{who} and is stopped by a signal; {again}, kill -CONT {holder.pid} lets it go on"
    if refused:
        return f"{who} and does not listen yet, it starts or ends; `baton status` tells"
    return f"{who}, it hangs or is busy; `baton status` tells what it says of itself, {again}"


def _elsewhere(port: int) -> str:
    """Where nothing listens: what of this machine may be meant."""
    config = _configured()
    if config is not None and config.listen.http_port not in (0, port):
        return f"{CONFIG} here has http_port {config.listen.http_port}: name it with --server or BATON_SERVER"
    if config is not None and (running := supervisors(config.home)):
        return (
            f"`baton serve` of {config.home} runs (pid {running[0].pid}), its control process does not: "
            "`baton status` tells why"
        )
    others = [f"{other} ({holder.home})" for other, holder in claims_of("control") if other != port]
    if others:
        return f"control processes of this machine have the ports {', '.join(sorted(set(others))[:5])}: name one with --server"
    return (
        "no process of Baton's runs on this machine: start one with `baton serve`, or name another server with --server"
    )


def _configured() -> Config | None:
    try:
        return Config.load(CONFIG) if CONFIG.exists() else None
    except BatonError:
        return None

"""Part of `baton doctor` for arms on other servers: the server is asked, and what running lanes say of it is told."""

from __future__ import annotations

import time

from pipeline.bundle.bundle import Bundle
from pipeline.clock import SystemClock
from pipeline.errors import BatonError
from serving.config import Config
from serving.lane.remote import RemoteServers
from serving.runtime import status
from serving.wiring.traffic import now_ms_of

__all__ = ["remote_finding"]


def remote_finding(bundle: Bundle, config: Config) -> tuple[bool, str]:
    """Whether the server of a remote bundle lives, has the model and takes what the spec says; and what to know."""
    spec = bundle.remote_spec()
    server = spec.remote
    started = time.monotonic()
    try:
        RemoteServers(config.remote, SystemClock()).connect(spec).check()
    except BatonError as error:
        return False, str(error)
    said = (
        f"{server.address} has {server.model} ready and takes these inputs, asked in {time.monotonic() - started:.2f} s"
    )
    key = f"{bundle.manifest.name}/{bundle.manifest.version}"
    lanes = status.read(config.status, now_ms_of(config)).fresh().lanes
    told = [report.status.remotes[key] for report in lanes.values() if key in report.status.remotes]
    if told:
        opened = sum(remote.opened for remote in told)
        away = sum(remote.breaker == "open" for remote in told)
        said += f"; its breaker is open in {away} of {len(told)} lanes and has opened {opened} times"
        ids, unknown = sum(remote.ids for remote in told), sum(remote.unknown for remote in told)
        if ids:
            said += f"; {unknown / ids:.1%} of {ids:,} values had no code"
    return True, said

"""Settings of baton.yaml that are not in force, because the state of the installation says otherwise.

Endpoints are made from the configuration at the first start; from then on verbs and rollouts change them, and the state
counts. A rollout keeps the attribution window that it began with.
"""

from __future__ import annotations

from contextlib import closing

from pipeline.errors import NotReady
from serving.config import ArmConfig, Config, EndpointConfig
from serving.rollout.routing import ArmSpec, Endpoint
from serving.wiring.state import open_control_store

__all__ = ["not_in_force", "warnings_of"]


def warnings_of(config: Config) -> list[str]:
    """The same; none while the state does not answer, since processes say so and start once it is back."""
    try:
        return not_in_force(config)
    except NotReady:
        return []


def not_in_force(config: Config) -> list[str]:
    """A line for each difference, with what counts and how it is changed; none where the installation has never run.

    Raises:
        InvalidInput, NotReady: see `open_control_store`.
    """
    if not config.state.url and not config.control_db.exists():
        return []
    with closing(open_control_store(config)) as store:
        stored = store.endpoints()
        rollouts = store.rollouts(active=True)
    lines = [_endpoint(name, config.endpoints[name], stored[name]) for name in config.endpoints if name in stored]
    if config.endpoints:
        lines += [
            f"endpoint {name} is in the state and not in the configuration: it is served all the same, as {_shown(stored[name])}"
            for name in sorted(stored.keys() - config.endpoints.keys())
        ]
    for rollout in rollouts:
        if problem := rollout.spec.analysis.other_window(config.traffic.attribution_window):
            lines.append(
                f"rollout {rollout.id}: {problem}: it enters no step; set traffic.attribution_window back and restart, or "
                f"`baton rollout abort {rollout.spec.endpoint} --reason '...'` and start it again"
            )
    return [line for line in lines if line]


def _endpoint(name: str, wanted: EndpointConfig, stored: Endpoint) -> str:
    same = (
        _same_arm(wanted.stable, stored.stable)
        and (wanted.candidate is None) == (stored.candidate is None)
        and (wanted.candidate is None or stored.candidate is None or _same_arm(wanted.candidate, stored.candidate))
        and wanted.salt in (None, stored.salt)
    )
    if same:
        return ""
    arms = {"stable": wanted.stable, "candidate": wanted.candidate}
    options = [f"--{arm} {_named(spec.bundle, spec.version)}" for arm, spec in arms.items() if spec is not None]
    options += [] if wanted.salt is None else [f"--salt {wanted.salt}"]
    return (
        f"endpoint {name}: the state counts and not the configuration: it has {_shown(stored)}; for what the configuration "
        f"says: baton endpoint set {name} {' '.join(options)} --reason '...'"
    )


def _same_arm(wanted: ArmConfig, stored: ArmSpec) -> bool:
    return wanted.bundle == stored.bundle and (not wanted.version or wanted.version == str(stored.version or ""))


def _shown(endpoint: Endpoint) -> str:
    arms = {"stable": endpoint.stable, "candidate": endpoint.candidate}
    shown = [f"{arm} {_named(spec.bundle, str(spec.version or ''))}" for arm, spec in arms.items() if spec is not None]
    return ", ".join([*shown, f"salt {endpoint.salt}"])


def _named(bundle: str, version: str) -> str:
    return f"{bundle}:{version}" if version else bundle

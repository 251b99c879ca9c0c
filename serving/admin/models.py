"""Verbs of models: list the versions, have all lanes load one under its own name or unload it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.errors import BatonError, Conflict, NotFound
from pipeline.model.probe import PROBED, forget, noted
from serving.admin import answers as a
from serving.admin import requests as r
from serving.admin.pages import cut
from serving.admin.service import Service
from serving.config.principal import Principal
from serving.rollout.status.retired import RETIRED, retired_of
from serving.runtime.status import LaneStatus

__all__ = ["ModelVerbs"]

LOOK_EVERY_S = 0.2
NOTICE_MS = 500
"""Time in which a lane has seen a request to load; what it reported before is of earlier tries."""
READY, LOADING, UNLOADED = "READY", "LOADING", "UNLOADED"


class ModelVerbs(Service):
    """Verbs of models. A load is a file that all lanes look at; their statuses, a second old at most, show how far it has come. So `load` can
    answer at once, or wait.
    """

    def list(self, request: r.ModelList, by: Principal) -> a.ModelPage:
        """Every version in the repository, by bundle and number."""
        names = [name for name in self._repository.names() if request.bundle in ("", name)]
        broken = {name: self._repository.damaged(name) for name in names}
        versions = sorted(
            (name, int(version)) for name in names for version in {*self._repository.versions(name), *broken[name]}
        )
        found, token = cut(versions, request, lambda version: version, str, int)
        lanes = self._processes.lanes()
        arms = _arms(lanes)
        # Also after newer ones came, and no lane asks for a version that did not pass its probe on this machine.
        verdicts = {name: noted(self._config.segments / name / PROBED) for name in {name for name, _ in found}}
        retired = retired_of(self._store)
        models = [
            self._told(
                name,
                str(v),
                lanes,
                arms,
                retired.get(f"{name}/{v}", ""),
                broken[name].get(str(v)) or (aside.reason if (aside := verdicts[name].get(str(v))) else ""),
            )
            for name, v in found
        ]
        return a.ModelPage(models=models, next_page_token=token)

    def load(self, request: r.ModelLoad, by: Principal) -> a.ModelLoaded:
        """Load the newest version that may serve in all lanes, so that it answers under the bundle's own name.

        Versions of it that failed or were set aside are tried again.

        Raises:
            NotFound: no such bundle, or none of its versions may serve. BundleError: those that may are damaged.
        """
        bundle = request.bundle
        self._known(bundle)
        version = self._repository.latest(bundle)
        forget(self._config.segments / bundle / PROBED)
        self._config.loads.mkdir(parents=True, exist_ok=True)
        (self._config.loads / bundle).touch()
        seen_ms = self._clock.wall_ms() + NOTICE_MS
        self._store.note("model-load", self._who(by, request), {"bundle": bundle, "version": version})
        return self._settled(request, version, lambda lane: _loading(lane, bundle, version, seen_ms), READY)

    warm = load

    def unload(self, request: r.ModelLoad, by: Principal) -> a.ModelLoaded:
        """Take a load back.

        Raises:
            NotFound: no such bundle, or it is not loaded by name.
            Conflict: an endpoint serves it.
        """
        bundle = request.bundle
        self._known(bundle)
        for endpoint in self._store.endpoints().values():
            if bundle in (endpoint.stable.bundle, endpoint.candidate.bundle if endpoint.candidate else ""):
                raise Conflict(
                    f"model {bundle!r} is an arm of endpoint {endpoint.name!r}; set the endpoint's arms first"
                )
        try:
            (self._config.loads / bundle).unlink()
        except FileNotFoundError:
            raise NotFound(f"model {bundle!r} is not loaded by name") from None
        self._store.note("model-unload", self._who(by, request), {"bundle": bundle})
        return self._settled(request, "", lambda lane: _unloading(lane, bundle), UNLOADED)

    def retire(self, request: r.ModelRetire, by: Principal) -> a.Retired:
        """Keep a version from every arm that follows the newest, and from new rollouts; or take that back.

        Raises:
            NotFound: there is no such version, or it is not retired. Conflict: an arm is set to it.
        """
        bundle, version = request.bundle, request.version
        self._repository.manifest(bundle, version)
        key, known = f"{bundle}/{version}", dict(retired_of(self._store))
        if request.restore:
            if known.pop(key, None) is None:
                raise NotFound(f"version {version} of {bundle} is not retired")
        else:
            for endpoint in self._store.endpoints().values():
                for arm in (endpoint.stable, endpoint.candidate):
                    if arm is not None and (arm.bundle, str(arm.version)) == (bundle, version):
                        raise Conflict(
                            f"version {version} of {bundle} is an arm of endpoint {endpoint.name!r}: pin another version of "
                            "stable (baton endpoint pin), or abort the rollout, first"
                        )
            known[key] = f"retired by {by.name}: {request.reason}"
        verb = "model-restore" if request.restore else "model-retire"
        self._store.put_setting(RETIRED, known, self._who(by, request), verb)
        return a.Retired(bundle=bundle, version=version, retired=not request.restore)

    def _settled(
        self, request: r.ModelLoad, version: str, state_of: Callable[[LaneStatus], str], aim: str
    ) -> a.ModelLoaded:
        """State of the lanes, as soon as none is on its way any more or `wait_seconds` have passed."""
        until = self._clock.monotonic() + request.wait_seconds
        while True:
            lanes = {name: state_of(lane) for name, lane in self._processes.lanes().items()}
            on_their_way = any(state in (LOADING, READY) and state != aim for state in lanes.values())
            if not on_their_way or self._clock.monotonic() >= until:
                done = bool(lanes) and all(state == aim for state in lanes.values())
                return a.ModelLoaded(
                    bundle=request.bundle, version=version, wanted=aim == READY, done=done, lanes=lanes
                )
            time.sleep(LOOK_EVERY_S)

    def _known(self, bundle: str) -> None:
        if bundle not in self._repository.names():
            raise NotFound(f"model {bundle!r} is not in the repository; it has {self._repository.names() or 'none'}")

    def _told(
        self,
        bundle: str,
        version: str,
        lanes: Mapping[str, LaneStatus],
        arms: Mapping[tuple[str, str], Sequence[str]],
        retired: str,
        aside: str,
    ) -> a.Model:
        key = f"{bundle}/{version}"
        shared: dict[str, Any] = {
            "bundle": bundle,
            "version": version,
            "arms": arms.get((bundle, version), []),
            "lanes": sorted(name for name, lane in lanes.items() if key in lane.models),
        }
        try:
            manifest = self._repository.open(bundle, version).manifest
        except BatonError as error:
            return a.Model(**shared, architecture="", servable=False, reasons=[], fault=aside or str(error), metrics={})
        return a.Model(
            **shared,
            architecture=manifest.architecture,
            base=manifest.base,
            servable=manifest.servable and not retired,
            reasons=[*(manifest.gate.reasons if manifest.gate else ()), *([retired] if retired else [])],
            fault=next((lane.faults[key] for lane in lanes.values() if key in lane.faults), "") or aside,
            metrics=dict(manifest.metrics),
        )


def _loading(lane: LaneStatus, bundle: str, version: str, seen_ms: int) -> str:
    key = f"{bundle}/{version}"
    if key in lane.models:
        return READY
    return lane.faults.get(key, LOADING) if lane.time_ms >= seen_ms else LOADING


def _unloading(lane: LaneStatus, bundle: str) -> str:
    return READY if any(key.partition("/")[0] == bundle for key in lane.models) else UNLOADED


def _arms(lanes: Mapping[str, LaneStatus]) -> dict[tuple[str, str], list[str]]:
    """By bundle and version: where it answers, as ENDPOINT/ARM."""
    found: dict[tuple[str, str], set[str]] = {}
    for lane in lanes.values():
        for endpoint, arms in lane.endpoints.items():
            for arm, report in arms.items():
                if report.version:
                    found.setdefault((report.bundle, report.version), set()).add(f"{endpoint}/{arm}")
    return {key: sorted(places) for key, places in found.items()}

"""Plan of a lane: the ranking stages, then the user's stages that baton.yaml names.

Only the local configuration names classes, never a bundle or a request. How to write a stage: docs/pipeline.md.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from pipeline.engine.plan import Plan
from pipeline.errors import InvalidInput
from pipeline.stage import Stage
from pipeline.stages.decode import Decode
from pipeline.stages.embed import Embed
from pipeline.stages.finite import Finite
from pipeline.stages.infer import Infer
from serving.config import StageConfig

__all__ = ["lane_plan"]


def lane_plan(record: Stage, own: Sequence[StageConfig]) -> Plan:
    """The stages of a request in a lane.

    Args:
        record: stage that stores predictions and passes them to the shadow lane.
        own: the user's stages; they run after the built-in ones.

    Raises:
        InvalidInput: a class cannot be imported, constructed or used as a stage; the error names the setting.
    """
    made = [_make(at, stage) for at, stage in enumerate(own)]
    return Plan([Decode(), Embed(), Infer(), record, *made, *([Finite()] if made else [])])


def _make(at: int, config: StageConfig) -> Stage:
    setting = f"stages.{at}"
    module, _, name = config.class_.partition(":")
    try:
        kind = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever importing a user's module raises
        raise InvalidInput(
            f"{setting}.class {config.class_!r} cannot be imported: {error}; install its package or put it on PYTHONPATH",
            f"{setting}.class",
        ) from error
    try:
        stage: Stage = kind(**config.args)
    except Exception as error:  # the same for its constructor
        raise InvalidInput(f"{setting}.args: {config.class_} refuses them: {error}", f"{setting}.args") from error
    lacking = [what for what in ("name", "consumes", "produces", "run") if not hasattr(stage, what)]
    if lacking:
        raise InvalidInput(f"{setting}.class {config.class_!r} is no stage: it lacks {lacking}", f"{setting}.class")
    return stage

"""Kinds of teachers: what a bundle's model can do for a student while it serves.

Whatever its kind, a teacher teaches by the scores that the traffic log has of it. One that learns here also learns from the
labels, at its own pace, and scores rows that the log has no score for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pipeline.bundle.bundle import Manifest
from pipeline.bundle.remote_spec import REMOTE

__all__ = ["IMPORTED", "KINDS", "REMOTE", "TRAINING_STATE", "TeacherKind", "in_words", "teacher_kind"]

TeacherKind = Literal["learns", "frozen", "remote"]

IMPORTED = "onnx"
"""Architecture of a model from elsewhere; nothing here can train it."""
TRAINING_STATE = "training/state.safetensors"
"""File of a base with the state that training goes on from."""
KINDS: dict[TeacherKind, str] = {
    "learns": "learns from the labels, too",
    "frozen": "does not learn here; it teaches by its logged scores",
    "remote": "is answered by another server; it teaches by its logged scores",
}


def in_words(name: str, kind: str, reason: str) -> str:
    """What a teacher does, for people: its bundle, its kind and why.

    >>> in_words("ranker-fm", "frozen", "version 1 was imported")
    'ranker-fm does not learn here; it teaches by its logged scores (version 1 was imported)'
    """
    said = {str(known): words for known, words in KINDS.items()}.get(kind, kind)
    return f"{name} {said}" + (f" ({reason})" if reason else "")


def teacher_kind(manifest: Manifest, usable: Callable[[str], bool] = lambda architecture: True) -> TeacherKind:
    """The kind of a bundle as a teacher, from its manifest.

    Args:
        usable: whether an architecture may be built here: one of the zoo, or a module that can be imported and is named
            in the configuration.
    """
    if manifest.architecture == REMOTE:
        return "remote"
    if manifest.architecture == IMPORTED or not usable(manifest.architecture):
        return "frozen"
    if manifest.base is None and TRAINING_STATE not in manifest.files:
        return "frozen"
    return "learns"

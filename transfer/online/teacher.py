"""Teacher of a worker as the repository shows it: what kind it is, and which fields it reads.

A teacher that cannot be trained here (imported, of a module that is not to be had here, or answered by another server)
teaches by the scores that the traffic log has of it. Nothing of it is loaded. Next stop: `transfer.online.codistill`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.bundle.bundle import Bundle
from pipeline.bundle.teachers import IMPORTED, TeacherKind, teacher_kind
from pipeline.bundle.versions import Repository
from pipeline.errors import BundleError, InvalidInput
from pipeline.schema import Schema
from transfer.bundles.publish import load
from transfer.click_model.model import ClickModel
from transfer.model_zoo import Architectures

__all__ = ["Teacher", "open_teacher"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Teacher:
    """A teacher when its worker began.

    Args:
        version: its newest one; empty: the repository has none.
        reason: why it does not learn; empty: it does.
        schema: its fields; None: they are not known.
        model: to train on; None where it does not learn.
        chain: base and deltas of `version`.
    """

    name: str
    version: str
    kind: TeacherKind
    reason: str
    schema: Schema | None
    model: ClickModel | None = None
    chain: tuple[str, ...] = ()

    def status(self) -> dict[str, str]:
        """For the worker's status file."""
        return {"name": self.name, "version": self.version, "kind": self.kind, "reason": self.reason}


def open_teacher(repository: Repository, name: str, notes: Path, architectures: Architectures) -> Teacher:
    """The teacher of a bundle's newest version, its model loaded where it can learn.

    Args:
        notes: as of `Repository.newest`.
        architectures: what may be built here.

    Raises:
        BundleError: it is damaged.
    """
    if name not in repository.names():
        return _told(Teacher(name, "", "remote", f"the repository has no bundle {name}", None))
    chain = repository.newest(name, verify=True, notes=notes)
    manifest = chain[-1].manifest
    versions = tuple(bundle.manifest.version for bundle in chain)
    kind, model = teacher_kind(manifest), None
    if kind == "remote":
        reason = f"version {versions[-1]} is answered by another server"
    elif manifest.architecture == IMPORTED:
        reason = f"version {versions[-1]} was imported"
    else:
        model, reason = _model(chain, architectures)
        kind = "frozen" if model is None else "learns"
    return _told(Teacher(name, versions[-1], kind, reason, manifest.model_schema, model, versions))


def _model(chain: Sequence[Bundle], architectures: Architectures) -> tuple[ClickModel | None, str]:
    """The model to train on; or None, and why there is none."""
    try:
        model = load(chain, architectures)
    except (InvalidInput, BundleError) as error:
        return None, str(error)
    return (None, f"version {chain[-1].manifest.version} has no training state") if model.frozen else (model, "")


def _told(teacher: Teacher) -> Teacher:
    if teacher.kind != "learns":
        log.info("teacher %s does not learn here (%s): its logged scores teach", teacher.name, teacher.reason)
    return teacher

"""Teacher pools of `baton transfer`: this process, further processes, or actors on a Ray cluster score rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import InvalidInput

if TYPE_CHECKING:
    from transfer.model_zoo import Architectures

__all__ = ["pooled"]


@contextmanager
def pooled(
    teacher: Path, count: int, ray: str, *, calibrated: bool, architectures: Architectures
) -> Iterator[Callable[[Any], Any] | None]:
    """A function that scores rows instead of the teacher; None where the teacher of this process does.

    Args:
        teacher: its bundle; on a cluster every node must find it there.
        count: processes, or actors.
        ray: address of a cluster; "": this machine.
        calibrated: logits after the bundle's calibration.
        architectures: what the bundle may name.

    Raises:
        InvalidInput: a cluster is named without a number of teachers, or Ray is not installed.
        NotReady: no teacher could be started.
    """
    if not count:
        if ray:
            raise InvalidInput("--ray needs --teachers: how many actors are to score", "teachers")
        yield None
        return
    from transfer.teachers.pool import TeacherPool
    from transfer.teachers.process import BundleTeacher, ProcessMember

    load = BundleTeacher(teacher.resolve(), calibrated=calibrated, architectures=architectures)
    pool = TeacherPool()
    if ray:
        try:
            from transfer.teachers.ray_pool import RayTeachers
        except ImportError:
            raise InvalidInput("Ray is not installed: pip install 'baton[ray]'", "ray") from None
        with closing(RayTeachers(pool, load, count, address=ray)):
            yield pool.spread
        return
    with closing(pool):
        for at in range(count):
            pool.join(ProcessMember(f"process-{at}", load))
        yield pool.spread

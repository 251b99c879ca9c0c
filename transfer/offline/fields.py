"""Fields of teacher and student of `baton transfer`: compared by name, before any row of a log is read."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.errors import InvalidInput
from pipeline.schema import Schema
from transfer.data.own_fields import own_fields

__all__ = ["fields_of_student"]


def fields_of_student(log: Schema, teacher: Schema, without: Sequence[str]) -> tuple[Schema, list[str]]:
    """The student's fields, those of the log but for `without`; and what differs from the teacher's, for people.

    Raises:
        InvalidInput: the log lacks a field of the teacher or contradicts it, `without` names no field, or leaves none that
            the teacher has, too.
    """
    known = {field.name for field in log.fields}
    for name in without:
        if name not in known:
            raise InvalidInput(
                f"--without {name}: the log has no such field; it has {', '.join(sorted(known))}", "without"
            )
    own_fields(log, teacher)
    kept = [field for field in log.fields if field.name not in without]
    shared = [field for field in kept if field.name not in log.fields_beside(teacher)]
    if not shared:
        raise InvalidInput("the student needs a field that the teacher has, too", "without")
    student = Schema(fields=tuple(kept))
    notes = []
    if more := student.fields_beside(teacher):
        notes.append(f"the student alone reads {', '.join(more)}: the teacher knows nothing of them, their rows teach")
    if fewer := teacher.fields_beside(student):
        notes.append(
            f"the teacher alone reads {', '.join(fewer)}: what they say reaches the student by the teacher's scores alone"
        )
    return student, notes

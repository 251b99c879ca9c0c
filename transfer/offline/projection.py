"""S1A: projection of a teacher's embedding tables to the width of the student, without a gradient.

It works on shards of rows and never needs a second copy of a table. Wider: a rotation into more dimensions, which keeps inner
products. Narrower: principal components, from a covariance that is summed over shards and solved by `eigh`. Equal: a copy.
A weight per id is copied, never rotated. Next stop: `transfer.offline.distill` (S1B, S1C).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.arrays import F32, F64, I64
from pipeline.bundle.bundle import Table
from pipeline.errors import InvalidInput
from transfer.bundles.lent_tables import LentTables
from transfer.click_model.model import ClickModel
from transfer.click_model.tables import Tables

__all__ = ["Projection", "fit_projection", "project_tables", "widening"]

SHARD_ROWS = 1 << 18


@dataclass(frozen=True, slots=True)
class Projection:
    """`row -> (row - mean) @ matrix`; `matrix` float64 `[d_t, d_s]`, `mean` float64 `[d_t]`."""

    matrix: F64
    mean: F64

    def __call__(self, rows: F32) -> F32:
        """Rows float32 `[n, d_t]` in the student's width, float32 `[n, d_s]`."""
        if self.matrix.shape[0] == self.matrix.shape[1] and (self.matrix == np.eye(len(self.matrix))).all():
            return (rows - self.mean.astype(np.float32)).astype(np.float32) if self.mean.any() else rows.copy()
        out: F32 = ((rows.astype(np.float64) - self.mean) @ self.matrix).astype(np.float32)
        return out


def widening(narrow: int, wide: int, seed: int) -> Projection:
    """`W`: the first `narrow` rows of the Q factor of a seeded Gaussian `[wide, wide]`; `W W^T` is the identity."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((wide, wide)))
    return Projection(np.ascontiguousarray(q[:narrow]), np.zeros(narrow))


def fit_projection(
    shards: Iterable[tuple[F32, I64]], teacher_width: int, student_width: int, *, centered: bool = False, seed: int = 0
) -> Projection:
    """The map from one width to another.

    Args:
        shards: rows float32 `[n, d_t]` and how often their ids were seen, int64 `[n]`; read once, only to narrow. Rows
            count by frequency: an untrained row must not steer the axes. Pass ones for the published, unweighted way.
        teacher_width, student_width: d_t, d_s.
        centered: narrow around the mean row, which is then lost (published); else around zero, which keeps the inner
            products that FM-like students live on.
        seed: of the rotation when widening.
    """
    if student_width == teacher_width:
        return Projection(np.eye(teacher_width), np.zeros(teacher_width))
    if student_width > teacher_width:
        return widening(teacher_width, student_width, seed)
    second, first, total = np.zeros((teacher_width, teacher_width)), np.zeros(teacher_width), 0.0
    for rows, counts in shards:
        x, w = rows.astype(np.float64), counts.astype(np.float64)
        second += (x * w[:, None]).T @ x
        first += w @ x
        total += float(w.sum())
    total = max(total, 1.0)
    mean = first / total if centered else np.zeros(teacher_width)
    _, vectors = np.linalg.eigh(second / total - np.outer(mean, mean))
    axes = vectors[:, ::-1][:, :student_width]
    # eigh leaves signs open; the largest component of every axis is made positive, so that results repeat everywhere.
    signs = np.sign(axes[np.abs(axes).argmax(0), np.arange(student_width)])
    return Projection(np.ascontiguousarray(axes * np.where(signs == 0, 1.0, signs)), mean)


def project_tables(
    teacher: ClickModel | LentTables,
    student: ClickModel,
    *,
    per_table: bool = False,
    weighted: bool = True,
    centered: bool = False,
    warm: bool = False,
    seed: int = 0,
) -> dict[str, Projection]:
    """Fill a student's tables with the projected rows of its teacher. A table that the teacher has not stays empty: its ids
    are learned from their own rows.

    The maps also go to the student's training state (`extra`), so that a row that only the teacher has can follow later.

    Args:
        teacher: a model, or the tables that a frozen one lends; tables of several widths are narrowed each by itself.
        student: a model whose tables are empty.
        per_table: narrow every table along its own axes (published). One set of axes for all keeps the inner products
            between fields as well, as far as the width allows.
        weighted: by frequency.
        warm: copy the optimiser's accumulated squares too, where both models have row-wise Adagrad: a row that has
            been learned for long then goes on in small steps. Per number of a row, so they shrink as rows widen.
        centered, seed: see `fit_projection`.

    Returns:
        The map of every table of both.

    Raises:
        InvalidInput: a field of both is not the same in both.
    """
    difference = student.schema.inputs_match(teacher.schema)
    if difference is not None:
        raise InvalidInput(f"student and teacher contradict each other: {difference}", "schema")
    source, target = teacher if isinstance(teacher, LentTables) else teacher.tables, student.tables
    names = [name for name in target.names if name in source.names]
    if not names:
        return {}

    def fit(tables: list[str]) -> Projection:
        width = source.width_of(tables[0]) if isinstance(source, LentTables) else source.width
        # Tables from elsewhere may not say how often an id was seen; then each row counts once.
        counted = weighted and not isinstance(source, LentTables)
        shards = (_weighted(shard, counted) for name in tables for shard in _shards(source, name))
        return fit_projection(shards, width, target.width, centered=centered, seed=seed)

    alone = per_table or (isinstance(source, LentTables) and len({source.width_of(name) for name in names}) > 1)
    maps = {name: fit([name]) for name in names} if alone else dict.fromkeys(names, fit(names)) if names else {}
    for name in names:
        index, place = source.names.index(name), target.names.index(name)
        target.default[place] = maps[name](
            source.default_of(name) if isinstance(source, LentTables) else source.default[index : index + 1]
        )[0]
        if source.linear and target.linear and not isinstance(source, LentTables):
            target.default_linear[place] = source.default_linear[index]
        for shard in _shards(source, name):
            linear = shard.linear if target.linear else None
            target.set_rows(name, Table(shard.ids, maps[name](shard.rows), shard.counts, linear))
        if warm and not isinstance(source, LentTables):
            target.take_over_squares(name, source)
        student.extra[f"projection.{name}.matrix"] = maps[name].matrix
        student.extra[f"projection.{name}.mean"] = maps[name].mean
    return maps


def _weighted(shard: Table, weighted: bool) -> tuple[F32, I64]:
    return shard.rows, shard.counts if weighted else np.ones_like(shard.counts)


def _shards(tables: Tables | LentTables, name: str) -> Iterator[Table]:
    """A table in shards of `SHARD_ROWS` rows."""
    if isinstance(tables, LentTables):
        yield from tables.shards(name, SHARD_ROWS)
        return
    slots = tables.slots_of(name)
    for start in range(0, len(slots), SHARD_ROWS):
        yield tables.export(name, slots[start : start + SHARD_ROWS])

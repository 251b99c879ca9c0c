import numpy as np
import pytest
from small_log import SCHEMA, SmallLog

from pipeline.errors import InvalidInput
from pipeline.schema import FieldSpec, Schema
from transfer.click_model.model import ClickModel
from transfer.offline import projection
from transfer.offline.fields import fields_of_student
from transfer.offline.projection import fit_projection, project_tables, widening


def rows(n=500, d=8, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 0.5).astype(np.float32)


def taught(arch="deepfm", width=8):
    log = SmallLog(2000)
    model = ClickModel.create(SCHEMA, arch, width, seed=1)
    model.step(log.window(0, 1).rows, log.window(0, 1).labels)
    model.tables.default_to_mean()
    return model


def test_widening_keeps_inner_products():
    x = rows()
    y = widening(8, 24, seed=3)(x)
    assert y.shape == (500, 24)
    before, after = x.astype(np.float64) @ x.T, y.astype(np.float64) @ y.T
    assert np.abs(after - before).max() / np.abs(before).max() < 1e-6


def test_equal_widths_copy():
    x = rows()
    np.testing.assert_array_equal(fit_projection([], 8, 8)(x), x)


@pytest.mark.parametrize("centered", [False, True])
def test_narrowing_is_the_weighted_svd(centered):
    x, counts = rows(), np.random.default_rng(1).integers(0, 50, 500)
    found = fit_projection([(x[:200], counts[:200]), (x[200:], counts[200:])], 8, 3, centered=centered)
    mean = np.average(x, axis=0, weights=counts) if centered else np.zeros(8)
    _, _, vt = np.linalg.svd((x - mean) * np.sqrt(counts)[:, None], full_matrices=False)
    np.testing.assert_allclose(np.abs(found.matrix.T @ vt[:3].T), np.eye(3), atol=1e-6)
    np.testing.assert_allclose(found(x), (x - found.mean) @ found.matrix, atol=1e-4)


def test_unseen_rows_do_not_steer_the_axes():
    x, counts = rows(), np.full(500, 7)
    junk = np.full((300, 8), 100.0, np.float32)
    plain = fit_projection([(x, counts)], 8, 2)
    np.testing.assert_allclose(
        fit_projection([(x, counts), (junk, np.zeros(300, np.int64))], 8, 2).matrix, plain.matrix
    )


@pytest.mark.parametrize(("width", "per_table"), [(16, False), (8, False), (4, False), (4, True)])
def test_tables_travel_with_counts_weights_and_defaults(width, per_table, monkeypatch):
    monkeypatch.setattr(projection, "SHARD_ROWS", 13)
    teacher = taught()
    student = ClickModel.create(SCHEMA, "deepfm", width, seed=2)
    maps = project_tables(teacher, student, per_table=per_table)
    for index, name in enumerate(teacher.tables.names):
        before, after = teacher.tables.export(name), student.tables.export(name)
        np.testing.assert_array_equal(after.ids, before.ids)
        np.testing.assert_array_equal(after.counts, before.counts)
        np.testing.assert_array_equal(after.linear, before.linear)
        np.testing.assert_allclose(after.rows, maps[name](before.rows), rtol=1e-6)
        np.testing.assert_allclose(student.tables.default[index], maps[name](teacher.tables.default[[index]])[0])
        assert student.extra[f"projection.{name}.matrix"].shape == (8, width)


def test_a_copied_fm_scores_like_its_teacher():
    teacher, log = taught("fm"), SmallLog(300, seed=5)
    student = ClickModel.create(SCHEMA, "fm", 12, seed=2)
    project_tables(teacher, student)
    student.network.load_state_dict(teacher.network.state_dict())
    batch = log.window(0, 1).rows
    np.testing.assert_allclose(student.logits(batch), teacher.logits(batch), atol=1e-5)


def test_a_student_takes_the_tables_of_the_fields_that_it_has():
    kept = tuple(field for field in SCHEMA.fields if field.name != "item")
    fewer = ClickModel.create(Schema(fields=kept), "fm", 8, seed=0)
    teacher = taught()
    maps = project_tables(teacher, fewer)
    assert sorted(maps) == [name for name in teacher.tables.names if name != "item"]
    for name in maps:
        np.testing.assert_array_equal(fewer.tables.export(name).ids, teacher.tables.export(name).ids)


def test_a_field_of_both_that_is_not_the_same_is_refused():
    turned = SCHEMA.fields[0].model_copy(
        update={"role": "context" if SCHEMA.fields[0].role == "candidate" else "candidate"}
    )
    other = ClickModel.create(Schema(fields=(turned, *SCHEMA.fields[1:])), "fm", 8, seed=0)
    with pytest.raises(InvalidInput, match=f"{turned.name!r}: role is"):
        project_tables(taught(), other)


def test_what_differs_between_teacher_and_student_is_said_by_name():
    first, *rest = SCHEMA.fields
    log = Schema(fields=(*SCHEMA.fields, FieldSpec(name="shop", role="candidate")))
    student, notes = fields_of_student(log, SCHEMA, [first.name])
    assert [field.name for field in student.fields] == [*(field.name for field in rest), "shop"]
    assert "student alone reads shop" in notes[0]
    assert f"teacher alone reads {first.name}" in notes[1]
    assert fields_of_student(SCHEMA, SCHEMA, ()) == (SCHEMA, [])
    with pytest.raises(InvalidInput, match="no such field"):
        fields_of_student(log, SCHEMA, ["colour"])
    with pytest.raises(InvalidInput, match=f"{first.name!r}: the log has none"):
        fields_of_student(Schema(fields=tuple(rest)), SCHEMA, ())
    with pytest.raises(InvalidInput, match="needs a field that the teacher has"):
        fields_of_student(log, SCHEMA, [field.name for field in SCHEMA.fields])

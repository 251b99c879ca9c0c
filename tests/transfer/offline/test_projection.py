import numpy as np
import pytest
from small_log import SCHEMA, SmallLog

from pipeline.errors import InvalidInput
from pipeline.schema import Schema
from transfer.click_model.model import ClickModel
from transfer.offline import projection
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


def test_other_fields_are_refused():
    other = ClickModel.create(Schema(fields=SCHEMA.fields[:4]), "fm", 8, seed=0)
    with pytest.raises(InvalidInput, match="same fields"):
        project_tables(taught(), other)

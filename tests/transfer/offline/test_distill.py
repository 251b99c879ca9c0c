from dataclasses import replace

import numpy as np
import pytest
from small_log import SCHEMA, SmallLog

from pipeline.bundle.bundle import Calibration
from pipeline.errors import DataError, InvalidInput
from pipeline.metrics import auc
from pipeline.schema import FieldSpec, Schema
from transfer.click_model.calibration import offset_for
from transfer.click_model.model import ClickModel
from transfer.click_model.state import load_state, model_from, state_of
from transfer.data.own_fields import own_fields
from transfer.offline.distill import OURS, PUBLISHED, transfer_offline
from transfer.offline.train import train
from transfer.offline.window import Window
from transfer.quality.trust import Trust

LOG = SmallLog(60_000)


@pytest.fixture(scope="module")
def teacher():
    return train(LOG, "deepfm", width=8, stop=0.4)


def bias(model):
    test = LOG.window(0.8, 1)
    return model.scores(test.rows).sum() / test.truth.sum() - 1


@pytest.mark.parametrize(
    ("width", "settings"),
    [
        (8, OURS),
        (16, replace(OURS, window_fraction=None, dense_window_fraction=None)),
        (4, replace(OURS, window_fraction=0.5, balanced=True)),
    ],
)
def test_our_student_is_unbiased_and_ranks_like_its_teacher(teacher, width, settings):
    student, report = transfer_offline(Window(teacher, LOG, 0.4, 0.8), "dcnv2", width=width, settings=settings)
    # Against the true probabilities; the labels that calibrate have a relative error of a few percent themselves.
    assert abs(bias(student)) < 0.08
    test = LOG.window(0.8, 1)
    assert auc(test.labels, student.scores(test.rows)) > auc(test.labels, teacher.scores(test.rows)) - 0.01
    assert report.rows == 24_000
    assert set(report.seconds) == {"score", "s1a", "s1b", "s1c"}
    assert student.metrics["rows"] > 0


def test_balanced_draws_bias_the_student_that_nobody_corrects(teacher):
    published, report = transfer_offline(
        Window(teacher, LOG, 0.4, 0.8),
        "dcnv2",
        settings=replace(PUBLISHED, teacher_weight=0.0, dense_teacher_weight=0.0, batch=256, window_fraction=0.25),
    )
    assert report.log_k > 0.5
    assert bias(published) > 0.25
    corrected, _ = transfer_offline(
        Window(teacher, LOG, 0.4, 0.8),
        "dcnv2",
        settings=replace(OURS, teacher_weight=0.0, dense_teacher_weight=0.0, window_fraction=0.25, balanced=True),
    )
    assert abs(bias(corrected)) < bias(published) / 2


def test_published_mode_runs_as_published(teacher):
    student, report = transfer_offline(Window(teacher, LOG, 0.4, 0.8), "fibinet", settings=PUBLISHED)
    assert (student.calibration.alpha, student.calibration.beta) == (1.0, 0.0)
    assert report.steps == 2  # one balanced batch of up to 40,960 rows, twice
    assert report.teacher_weight == 0.7


def test_s1b_leaves_the_tables_alone_and_the_run_repeats_itself(teacher):
    settings = replace(OURS, joint_passes=0, calibrate=False)
    a, b = (transfer_offline(Window(teacher, LOG, 0.4, 0.5), "dnn", width=8, settings=settings)[0] for _ in range(2))
    for name in a.tables.names:
        np.testing.assert_array_equal(a.tables.export(name).rows, teacher.tables.export(name).rows)
    np.testing.assert_array_equal(a.logits(LOG.window(0, 0.1).rows), b.logits(LOG.window(0, 0.1).rows))


def test_a_share_of_the_rows_is_scored_and_trained_on(teacher):
    class Counting(ClickModel):
        scored = 0

        def calibrated_logits(self, rows):
            self.scored += len(rows)
            return super().calibrated_logits(rows)

    counting = Counting.create(LOG.schema, teacher.arch, teacher.width, seed=0)
    load_state(counting, *state_of(teacher))
    settings = replace(OURS, window_fraction=0.2, least_rows=0, dense_passes=0, extend=False)
    _, report = transfer_offline(Window(counting, LOG, 0.4, 0.8), "dnn", width=4, settings=settings)
    assert report.rows_trained == pytest.approx(0.2 * 24_000, rel=0.02)
    assert counting.scored == report.rows_trained
    enlarged = replace(OURS, window_fraction=0.01, least_rows=12_000, dense_passes=0, extend=False)
    _, report = transfer_offline(Window(counting, LOG, 0.4, 0.8), "dnn", width=4, settings=enlarged)
    assert report.rows_trained == pytest.approx(12_000, rel=0.02)


def test_a_student_goes_over_the_whole_window_where_its_teacher_is_behind(teacher):
    """A teacher that has forgotten what its ids mean is overtaken on the newest share already; one that is right is not."""
    forgetful = model_from(*state_of(teacher))
    for name in forgetful.tables.names:
        rows = forgetful.tables.export(name)
        forgetful.tables.set_rows(name, replace(rows, rows=np.zeros_like(rows.rows), linear=np.zeros_like(rows.linear)))
    everything = LOG.window(0, 1)
    places = {key: place for place, key in enumerate(keys_of(everything.rows))}
    logits = np.log(everything.truth / (1 - everything.truth))

    def right(rows):
        return logits[[places[key] for key in keys_of(rows)]]

    reports = {}
    for name, model, score in (("right", teacher, right), ("forgetful", forgetful, None)):
        _, reports[name] = transfer_offline(Window(model, LOG, 0.4, 0.8, score=score), "dcnv2", width=8)
    share = 2 * OURS.least_rows
    assert reports["right"].rows_trained == pytest.approx(share, rel=0.1)
    assert reports["forgetful"].rows_trained == pytest.approx(share + 24_000, rel=0.1)
    assert reports["forgetful"].teacher_weight < 0.5 < reports["right"].teacher_weight


def keys_of(rows):
    return [ids.tobytes() + numbers.tobytes() for ids, numbers in zip(rows.ids, rows.numbers, strict=True)]


@pytest.mark.parametrize("off", [1.1, 0.9])
def test_a_teacher_that_is_off_by_a_tenth_does_not_make_the_student_so(teacher, off):
    wrong = model_from(*state_of(teacher))
    rows, alpha, beta = LOG.window(0.4, 0.8).rows, wrong.calibration.alpha, wrong.calibration.beta
    target = off * float(wrong.scores(rows).sum())
    scaled = alpha * wrong.logits(rows).astype(np.float64)
    wrong.calibration = Calibration(alpha=alpha, beta=offset_for(scaled + beta, target) + beta)
    assert wrong.scores(rows).sum() == pytest.approx(target, rel=1e-3)
    students = [transfer_offline(Window(model, LOG, 0.4, 0.8), "dcnv2", width=8)[0] for model in (teacher, wrong)]
    test = LOG.window(0.8, 1).rows
    right, misled = (student.scores(test).sum() for student in students)
    assert misled / right == pytest.approx(1.0, abs=0.02)


def test_warm_rows_keep_what_the_optimiser_gathered(teacher):
    settings = replace(OURS, dense_passes=0, joint_passes=0, calibrate=False)
    for width in (8, 16):
        student, _ = transfer_offline(Window(teacher, LOG, 0.4, 0.8), "deepfm", width=width, settings=settings)
        for part, share in (("rows", 8 / width), ("weights", 1.0)):
            theirs, mine = ({key[len("tables.") :]: v for key, v in state_of(m)[1].items() if key.startswith("tables.")}
                            for m in (teacher, student))  # fmt: skip
            known = dict(zip(zip(theirs["tags"], theirs["ids"], strict=True), theirs[f"{part}.squares"], strict=True))
            for key, square in zip(zip(mine["tags"], mine["ids"], strict=True), mine[f"{part}.squares"], strict=True):
                assert square == pytest.approx(0.1 + share * (known[key] - 0.1), rel=1e-5)


def test_a_teacher_from_elsewhere_gives_logits_only(teacher):
    class Foreign:
        schema = SCHEMA

        def calibrated_logits(self, rows):
            return teacher.calibrated_logits(rows)

    student, _ = transfer_offline(Window(Foreign(), LOG, 0.4, 0.8), "dnn", width=4)
    assert abs(bias(student)) < 0.1


def test_what_cannot_be_transferred_is_named_before_training(teacher):
    class Broken:
        schema = SCHEMA

        def calibrated_logits(self, rows):
            return np.full(len(rows), np.nan, np.float32)

    with pytest.raises(DataError, match="teacher's logits"):
        transfer_offline(Window(Broken(), LOG), "fm")
    with pytest.raises(DataError, match="every label"):
        transfer_offline(Window(teacher, SmallLog(500, labels=0)), "fm")
    with pytest.raises(DataError, match="no rows"):
        transfer_offline(Window(teacher, LOG, 0.5, 0.5), "fm")
    brand = FieldSpec(name="brand", role="candidate")
    other = ClickModel.create(Schema(fields=(*SCHEMA.fields, brand)), "fm", 8, seed=0)
    with pytest.raises(InvalidInput, match="'brand': the log has none"):
        transfer_offline(Window(other, LOG), "fm")
    with pytest.raises(InvalidInput, match="mode"):
        replace(OURS, mode="theirs")
    with pytest.raises(InvalidInput, match="window_fraction"):
        replace(OURS, window_fraction=2.0)
    with pytest.raises(InvalidInput, match="dense_teacher_weight"):
        replace(OURS, dense_teacher_weight=-0.1)


def test_trust_follows_the_better_model():
    rng = np.random.default_rng(0)
    equal, ahead, behind = Trust(0.7), Trust(0.7), Trust(0.7)
    for _ in range(200):
        noise, other = rng.normal(size=100), rng.normal(size=100)
        equal.update(noise, noise)
        ahead.update(noise - 0.3, other)
        behind.update(noise + 0.3, other)
    assert equal.teacher_weight == pytest.approx(0.7)
    assert ahead.teacher_weight < 0.1
    assert behind.teacher_weight == 0.9


def test_a_student_may_have_fields_that_its_teacher_lacks():
    class Narrow(SmallLog):
        schema = Schema(fields=tuple(SCHEMA.fields[at] for at in (0, 3, 4)))

        def chunks(self, *args):
            read = own_fields(SCHEMA, self.schema)
            return (replace(chunk, rows=read(chunk.rows)) for chunk in super().chunks(*args))

    old = train(Narrow(60_000), "fm", width=4, stop=0.5)
    window = Window(old, LOG, 0.5, 0.8)
    student, _ = transfer_offline(window, "fm", width=4, settings=OURS)
    assert student.schema.inputs_match(SCHEMA) is None
    at = student.tables.names.index("item")
    np.testing.assert_array_equal(student.tables.default[at], old.tables.default[old.tables.names.index("item")])
    assert student.network.transform.mean[1] == old.network.transform.mean[0]  # the price
    assert student.network.transform.scale[0] != 1.0  # the age, which the teacher does not have
    after = LOG.window(0.8, 1.0)
    assert auc(after.labels, student.scores(after.rows)) > 0.6

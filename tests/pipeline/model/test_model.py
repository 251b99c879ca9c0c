from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from foreign import needs_price, write_foreign
from handmade import SCHEMA, Reference, random_rows, random_tables, write_bundle

from pipeline.bundle.bundle import GateReport
from pipeline.bundle.versions import Repository
from pipeline.errors import BundleError, NotFinite, NotFound
from pipeline.features import Features, Rows
from pipeline.model.model import Model


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("width", [1, 4, 8, 16, 17])
def test_scores_are_those_of_plain_numpy(repository: Repository, segments: Path, width: int, linear: bool) -> None:
    tables = random_tables(width, width=width, linear=linear)
    bundle = write_bundle(repository, tables, width=width, linear=linear)
    model = Model.load(repository, "ranker", bundle.manifest.version, segments=segments)
    rng = np.random.default_rng(5)
    reference = Reference([bundle])
    for n in (1, 2, 63, 64, 65, 300, 7):
        rows = random_rows(rng, n, tables)
        np.testing.assert_allclose(model.score(Features.from_rows(rows)), reference.score(rows), atol=1e-5)


def test_context_once_scores_as_context_repeated(repository: Repository, segments: Path) -> None:
    tables = random_tables(2)
    write_bundle(repository, tables)
    model = Model.load(repository, "ranker", segments=segments)
    rows = random_rows(np.random.default_rng(6), 50, tables)
    once = Features.from_context(SCHEMA, rows)
    repeated = Features.from_rows(once.rows(SCHEMA))
    np.testing.assert_array_equal(model.score(once), model.score(repeated))


def test_no_candidates_no_scores(repository: Repository, segments: Path) -> None:
    write_bundle(repository, random_tables(3))
    model = Model.load(repository, "ranker", segments=segments)
    model.warm()
    scores = model.score(Features(0))
    assert scores.shape == (0,)
    assert scores.dtype == np.float32


def test_extreme_logits_stay_probabilities(repository: Repository, segments: Path) -> None:
    tables = random_tables(3)
    write_bundle(repository, tables)
    model = Model.load(repository, "ranker", segments=segments)
    rows = random_rows(np.random.default_rng(6), 4, tables)
    rows.numbers[:] = [[3e38, 0], [-3e38, 0], [1e4, 0], [-1e4, 0]]
    with np.errstate(all="raise", under="ignore"):
        scores = model.score(Features.from_rows(rows))
    assert np.isin(np.round(scores), [0, 1]).all()
    assert set(np.round(scores).tolist()) == {0.0, 1.0}


def test_threads_do_not_disturb_each_other(repository: Repository, segments: Path) -> None:
    tables = random_tables(4)
    write_bundle(repository, tables)
    model = Model.load(repository, "ranker", segments=segments)
    rng = np.random.default_rng(7)
    requests = [Features.from_rows(random_rows(rng, n, tables)) for n in (1, 40, 130, 300)]
    expected = [model.score(f) for f in requests]
    wrong: list[int] = []

    def work(offset: int) -> None:
        for turn in range(100):
            i = (turn + offset) % len(requests)
            if not np.array_equal(model.score(requests[i]), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(t,)) for t in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_chain_answers_with_the_newest_rows(repository: Repository, segments: Path) -> None:
    tables = random_tables(8)
    base = write_bundle(repository, tables)
    chain = [base]
    for seed in (9, 10):
        news = random_tables(seed, 50)
        chain.append(
            write_bundle(
                repository, news, base="1", deltas=tuple(b.manifest.version for b in chain[1:]), defaults={"item": 0.7}
            )
        )
    model = Model.load(repository, "ranker", segments=segments)
    assert model.version == "3"
    rng = np.random.default_rng(11)
    for source in (tables, random_tables(9, 50), random_tables(10, 50)):
        rows = random_rows(rng, 80, source)
        np.testing.assert_allclose(model.score(Features.from_rows(rows)), Reference(chain).score(rows), atol=1e-5)


def test_a_refused_version_is_not_loaded(repository: Repository, segments: Path) -> None:
    write_bundle(repository, random_tables(1))
    write_bundle(repository, random_tables(2), gate=GateReport(passed=False, reasons=("AUC fell",)))
    with pytest.raises(BundleError, match="AUC fell"):
        Model.load(repository, "ranker", "2", segments=segments)
    assert Model.load(repository, "ranker", segments=segments).version == "1"
    with pytest.raises(NotFound):
        Model.load(repository, "ranker", "9", segments=segments)


def test_a_chain_with_a_damaged_or_missing_link_is_refused(repository: Repository, segments: Path) -> None:
    base = write_bundle(repository, random_tables(1))
    write_bundle(repository, random_tables(2), base="1")
    path = base.path / "tables" / "item.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BundleError, match=r"item\.safetensors"):
        Model.load(repository, "ranker", "2", segments=segments)
    path.write_bytes(whole)
    base.path.rename(base.path.with_name("gone"))
    with pytest.raises(BundleError, match="gone"):
        Model.load(repository, "ranker", "2", segments=segments)


def test_a_request_without_a_finite_score_fails_alone_and_names_the_missing_number(
    repository: Repository, segments: Path
) -> None:
    write_foreign(repository.path("alien", "1"), needs_price())
    model = Model.load(repository, "alien", "1", segments=segments)
    model.warm()  # requests with missing numbers among them

    def request(*prices: float) -> Features:
        numbers = np.array([[20.0, price] for price in prices], np.float32)
        return Features.from_context(model.schema, Rows(np.ones((len(prices), 1), np.int64), numbers))

    requests = [request(1.0, 2.0), request(3.0, np.nan, np.nan), request(4.0)]
    windows = [window for window in model.embed_batch(requests) if not isinstance(window, Exception)]
    first, second, third = model.infer_batch(windows)
    assert isinstance(second, NotFinite)
    assert "2 of 3 candidates; the first is candidate 1, where 'price' is missing" in str(second)
    for found, alone in ((first, requests[0]), (third, requests[2])):
        assert not isinstance(found, NotFinite)
        np.testing.assert_array_equal(found, model.score(alone))
    with pytest.raises(NotFinite, match="'price'"):
        model.score(requests[1])

"""Networks that were trained elsewhere, with their own tables: saved, compared, served, learning on or lending their tables."""

import numpy as np
import onnx
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from own_tower import Tower
from small_log import SmallLog
from torch import nn

from pipeline.bundle.bundle import Bundle
from pipeline.bundle.row_format import decode_rows
from pipeline.bundle.tensors import mapped
from pipeline.errors import BundleError, DataError, InvalidInput
from pipeline.farmhash import farm64
from transfer import external
from transfer.bundles.frozen import FrozenTeacher, load_teacher
from transfer.bundles.importing.parity import rows_of
from transfer.bundles.importing.tables.file import TableFile
from transfer.click_model.model import ClickModel
from transfer.model_zoo import Architectures
from transfer.offline.distill import transfer_offline
from transfer.offline.window import Window

ITEMS, BUCKETS, WIDTH, ROWS = 40, 16, 6, 300
FIELDS = [
    {"name": "user", "role": "context"},
    {"name": "item", "role": "candidate"},
    {"name": "price", "role": "candidate", "kind": "number", "transform": "log1p"},
]


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    """What a team has: vectors by item of a vocabulary file, by bucket of a user's hash, and rows."""
    folder = tmp_path_factory.mktemp("team")
    rng = np.random.default_rng(0)
    (folder / "items.txt").write_text("".join(f"i{n}\n" for n in range(ITEMS)))
    rows = pd.DataFrame(
        {
            "user": [f"user {n}" for n in rng.integers(0, 10**6, ROWS)],
            "item": [f"i{n}" for n in rng.integers(0, ITEMS + 5, ROWS)],  # some are in no vocabulary
            "price": rng.exponential(size=ROWS),
        }
    )
    rows.loc[::5, "price"] = np.nan
    vectors = {"user": rng.normal(size=(BUCKETS, WIDTH)), "item": rng.normal(size=(ITEMS, WIDTH))}
    return folder, rows, {name: array.astype(np.float32) for name, array in vectors.items()}


def tables(team):
    folder, _, vectors = team
    return {
        "user": external.Table(vectors["user"], index=external.Modulo("farm64")),
        "item": external.Table(torch.tensor(vectors["item"]), index=external.Vocabulary(folder / "items.txt")),
    }


def looked_up(team):
    _, rows, vectors = team
    items = np.concatenate([vectors["item"], np.zeros((5, WIDTH), np.float32)])
    users = [farm64(user.encode()) % BUCKETS for user in rows.user]
    return np.stack([vectors["user"][users], items[[int(item[1:]) for item in rows.item]]], 1)


def tower_with_answers(team, kind=Tower):
    torch.manual_seed(1)
    tower = kind(2, WIDTH, 2, units=4)
    price = team[1].price.to_numpy(np.float32)
    numbers = np.stack([np.nan_to_num(np.log1p(price)), np.isnan(price)], 1).astype(np.float32)
    with torch.no_grad():
        return tower, tower(torch.tensor(looked_up(team)), None, torch.tensor(numbers)).numpy()


def test_an_importable_network_is_compared_and_goes_on_learning(team, tmp_path):
    tower, logits = tower_with_answers(team)
    adam = torch.optim.Adam(tower.parameters())
    tower(torch.zeros(1, 2, WIDTH), None, torch.zeros(1, 2)).sum().backward()
    adam.step()
    tower.load_state_dict(tower_with_answers(team)[0].state_dict())
    made = external.save(
        tmp_path / "ranker" / "3", tower, {"fields": FIELDS}, tables=tables(team), hyperparameters={"units": 4}, optimiser=adam,
        check=team[1].assign(score=logits),
    )  # fmt: skip
    assert made.parity.rows == ROWS
    assert made.parity.worst_logit < 1e-4
    bundle = Bundle.open(tmp_path / "ranker" / "3", verify=True)
    manifest = bundle.manifest
    assert (manifest.name, manifest.version, manifest.architecture) == ("ranker", "3", "own_tower:Tower")
    model = load_teacher(bundle.path, Architectures(["own_tower:Tower"]))
    assert isinstance(model, ClickModel)
    assert not model.frozen
    assert len(model.optimiser.state) == 4
    rows = rows_of(pa.Table.from_pandas(team[1]), manifest.model_schema)
    np.testing.assert_allclose(model.logits(rows), logits, atol=1e-5)
    before = model.logits(rows)
    model.step(rows, np.ones(ROWS, np.float32))
    assert (model.logits(rows) > before).mean() > 0.9
    assert len(model.tables) > ITEMS + BUCKETS  # an item that no vocabulary had has learned a row


def test_a_network_that_cannot_be_imported_is_frozen_and_lends_its_tables(team, tmp_path):
    class Local(Tower):
        pass

    tower, logits = tower_with_answers(team, Local)
    out = tmp_path / "ranker" / "1"
    made = external.save(
        out, tower, FIELDS, tables=tables(team), hyperparameters={"units": 4}, check=team[1].assign(score=logits)
    )
    assert "no other process can import it" in made.warnings[0]
    teacher = load_teacher(out)
    assert isinstance(teacher, FrozenTeacher)
    assert teacher.tables.names == ["item", "user"]
    rows = rows_of(pa.Table.from_pandas(team[1]), teacher.schema)

    class Log(SmallLog):
        schema = teacher.schema

    log = Log(ROWS)
    labels = (logits > np.median(logits)).astype(np.float32)
    log._all = log._all.__class__(
        rows, labels, *(getattr(log._all, k) for k in ("time_ms", "request", "routing_key", "position"))
    )
    student, _ = transfer_offline(Window(teacher, log, 0.0, 0.9), "dnn", width=WIDTH)
    assert len(student.tables) >= ITEMS + BUCKETS
    assert {"projection.item.matrix", "projection.user.matrix"} <= set(student.extra)
    with pytest.raises(InvalidInput, match="cannot learn on"):
        external.save(tmp_path / "x", tower, FIELDS, tables=tables(team), hyperparameters={"units": 4}, learns=True)


class Plain(nn.Module):
    """A module with a forward of its own; tables may differ in width."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2 * WIDTH, 1)

    def forward(self, embeddings, numbers):
        price = torch.nan_to_num(numbers[:, 0], nan=2.0)
        return torch.sigmoid(self.layer(embeddings).squeeze(1) + price)


def plain_with_answers(team):
    torch.manual_seed(2)
    plain, flat = Plain(), looked_up(team).reshape(ROWS, -1)
    price = team[1].price.to_numpy(np.float32)[:, None]
    with torch.no_grad():
        return plain, plain(torch.tensor(flat), torch.tensor(price)).numpy()


def test_any_module_is_saved_frozen(team, tmp_path):
    plain, answers = plain_with_answers(team)
    made = external.save(
        tmp_path / "b" / "1",
        plain,
        FIELDS,
        tables=tables(team),
        heads={"click": "probability"},
        check=team[1].assign(expected=answers),
    )
    assert made.parity.worst_probability < 1e-5
    assert made.warnings == []
    wrong = team[1].assign(expected=answers[::-1])
    with pytest.raises(BundleError, match="does not answer as the model"):
        external.save(tmp_path / "c", plain, FIELDS, tables=tables(team), heads={"click": "probability"}, check=wrong)
    assert not (tmp_path / "c").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_dense_graph_as_tf2onnx_writes_it_is_saved(team, tmp_path):
    """Names end in `:0`, rows are `unk__1`, the answer is `Identity:0` of one column, as in its converted Keras models."""
    plain, answers = plain_with_answers(team)
    torch.onnx.export(
        plain, (torch.zeros(2, 2 * WIDTH), torch.zeros(2, 1)), str(tmp_path / "m.onnx"), dynamo=False, opset_version=15,
        input_names=["embeddings:0", "numbers:0"], output_names=["Identity:0"],
        dynamic_axes={name: {0: "unk__1"} for name in ("embeddings:0", "numbers:0", "Identity:0")},
    )  # fmt: skip
    model = onnx.load(tmp_path / "m.onnx")
    onnx.save(model, tmp_path / "big.onnx", save_as_external_data=True, size_threshold=0)
    made = external.save(
        tmp_path / "b" / "1", tmp_path / "big.onnx", FIELDS, tables=tables(team), heads={"click": "probability"},
        check=team[1].assign(score=answers),
    )  # fmt: skip
    assert made.parity.worst_probability < 1e-5


def test_tables_come_from_parquet_and_from_files_of_keys_and_vectors(team, tmp_path):
    _, rows, vectors = team
    plain, answers = plain_with_answers(team)
    names = [f"i{n}" for n in range(ITEMS)]
    pq.write_table(pa.table({"value": names, "vector": list(vectors["item"])}), tmp_path / "items.parquet")
    keys = np.random.default_rng(0).permutation(BUCKETS)
    for name in ("hugectr", "dynamicemb", "short", "numpy"):
        (tmp_path / name).mkdir()
    keys.tofile(tmp_path / "hugectr" / "key")
    vectors["user"][keys].tofile(tmp_path / "hugectr" / "emb_vector")
    for rank in range(2):
        end = f"rank_{rank}.world_size_2"
        keys[rank::2].tofile(tmp_path / "dynamicemb" / f"user_emb_keys.{end}")
        vectors["user"][keys[rank::2]].tofile(tmp_path / "dynamicemb" / f"user_emb_values.{end}")
    keys.tofile(tmp_path / "short" / "user.key")
    vectors["user"][keys].tofile(tmp_path / "short" / "user.vec")
    np.save(tmp_path / "numpy" / "keys.npy", keys)
    np.save(tmp_path / "numpy" / "values.npy", vectors["user"][keys])
    pair = (tmp_path / "numpy" / "keys.npy", tmp_path / "numpy" / "values.npy")
    index, kept = external.Modulo("farm64", BUCKETS), set()
    for number, source in enumerate((*(tmp_path / n for n in ("hugectr", "dynamicemb", "short", "numpy")), pair)):
        made = external.save(
            tmp_path / "b" / str(number + 1), plain, FIELDS, heads={"click": "probability"},
            check=None if number else rows.assign(score=answers),
            tables={"item": external.Table(tmp_path / "items.parquet"), "user": external.Table(source, index=index)},
        )  # fmt: skip
        kept.add(made.bundle.manifest.files["tables/user.safetensors"].sha256)
    assert len(kept) == 1


@pytest.mark.parametrize("stored", ["float32", "float16", "int8"])
def test_a_table_file_is_sorted_part_by_part(stored, tmp_path, monkeypatch):
    monkeypatch.setattr("transfer.bundles.importing.tables.file.PART_BYTES", 1 << 12)
    rng = np.random.default_rng(0)
    ids = rng.integers(-(2**63), 2**63 - 1, 5000)
    rows = rng.normal(size=(5000, 3)).astype(np.float32)
    with TableFile(tmp_path / "t", "t", 3, expected=5000, stored=stored) as file:
        for part in np.array_split(np.arange(5000), 7):
            file.add(ids[part], rows[part])
        assert file.finish() == 5000
    assert [path.name for path in tmp_path.iterdir()] == ["t"]
    with (tmp_path / "t").open("rb") as done:
        found = mapped(done)
    order = np.argsort(ids)
    np.testing.assert_array_equal(found["ids"], ids[order])
    np.testing.assert_allclose(
        decode_rows(found["rows"], found.get("scales")), rows[order], atol=0 if stored == "float32" else 0.02
    )
    with TableFile(tmp_path / "u", "u", 3, expected=5000) as file:
        file.add(np.array([5, -5, 5, 6]), rows[:4])
        with pytest.raises(DataError, match="1 of 4 values come twice"):
            file.finish()


@pytest.mark.parametrize(
    ("change", "error", "what"),
    [
        ({"tables": {}}, DataError, "tables: there is none for"),
        ({"tables": {"shop": external.Table(np.zeros((2, 2)), index=external.Ids())}}, DataError, "no field reads 'shop'"),
        ({"tables": {"item": external.Table(np.zeros((2, WIDTH)))}}, DataError, "say with `index`"),
        ({"tables": {"item": external.Table(np.full((2, WIDTH), np.nan), index=external.Ids())}}, DataError, "NaN or infinity"),
        ({"tables": {"item": external.Table("absent.parquet")}}, DataError, "no such file"),
        ({"tables": {"item": external.Table(np.zeros((2, 3)), index=external.Ids())}}, InvalidInput, "has width 6"),
        ({"hyperparameters": {"units": 5}}, InvalidInput, "is not the network that was given"),
        ({"heads": {"a": "logit", "b": "logit"}}, InvalidInput, "a bundle serves one"),
        ({"schema": [{"name": "user", "role": "nobody"}]}, DataError, "field 'user'"),
        ({"numbers": {"cost": (0, 1)}}, InvalidInput, "no field of kind number"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(team, change, error, what, tmp_path):
    tower, _ = tower_with_answers(team)
    given = {"schema": FIELDS, "hyperparameters": {"units": 4}} | change
    given["tables"] = (tables(team) if change.get("tables", True) else {}) | change.get("tables", {})
    with pytest.raises(error, match=what):
        external.save(tmp_path / "b", tower, given.pop("schema"), **given)
    assert not (tmp_path / "b").exists()

"""Tables of a whole ONNX model become the bundle's: by vocabulary, hash and row number, with offsets, from external data."""

import numpy as np
import onnx
import pyarrow as pa
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.bundle.bundle import Bundle
from pipeline.errors import BundleError, DataError
from pipeline.farmhash import farm64
from transfer.bundles.importing.network import import_onnx
from transfer.bundles.importing.parity import Check
from transfer.bundles.importing.spec import ImportSpec

ITEMS, BUCKETS, KINDS, WIDTH = 300, 50, (5, 7), 4
FIELDS = [
    {"name": "item", "role": "candidate", "index": {"vocabulary": "items.txt", "oov": 0, "first": 1}},
    {"name": "user", "role": "context", "index": {"hash": "farm64", "buckets": BUCKETS}},
    {"name": "day", "role": "context", "index": {"ids": KINDS[0]}},
    {"name": "place", "role": "candidate", "index": {"ids": KINDS[1]}},
    {"name": "tags", "role": "candidate", "kind": "bag", "separator": ",", "index": {"ids": 20}},
    {"name": "price", "role": "candidate", "kind": "number"},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model as torch's exporter writes it: an array per table, `day` and `place` share one by offsets, weights outside."""
    folder = tmp_path_factory.mktemp("model")
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    weights = {
        "item.weight": draw(ITEMS + 1, WIDTH), "user.weight": draw(BUCKETS, WIDTH), "kinds.weight": draw(sum(KINDS), WIDTH),
        "tags.weight": draw(20, WIDTH), "offsets": np.array([0, KINDS[0]]), "flat": np.array([-1, 2 * WIDTH]),
        "w": draw(5 * WIDTH + 1, 1), "axis": np.array([1]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Add", ["kinds", "offsets"], ["rows"]),
        helper.make_node("Gather", ["kinds.weight", "rows"], ["kind_vectors"]),
        helper.make_node("Reshape", ["kind_vectors", "flat"], ["kinds_flat"]),
        helper.make_node("Gather", ["item.weight", "item"], ["items"]),
        helper.make_node("Gather", ["user.weight", "user"], ["users"]),
        helper.make_node("Squeeze", ["users", "axis"], ["users_flat"]),
        helper.make_node("Gather", ["tags.weight", "tags"], ["tag_vectors"]),
        helper.make_node("ReduceMean", ["tag_vectors"], ["tag_mean"], axes=[1], keepdims=0),
        helper.make_node("Concat", ["kinds_flat", "items", "users_flat", "tag_mean", "price"], ["all"], axis=1),
        helper.make_node("MatMul", ["all", "w"], ["y"]),
    ]
    integer, real = TensorProto.INT64, TensorProto.FLOAT
    inputs = [("item", integer, ["n"]), ("user", integer, ["n", 1]), ("kinds", integer, ["n", 2]), ("tags", integer, ["n", "l"]), ("price", real, ["n", 1])]  # fmt: skip
    graph = helper.make_graph(
        nodes, "whole", [helper.make_tensor_value_info(*i) for i in inputs], [helper.make_tensor_value_info("y", real, ["n", 1])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, folder / "m.onnx", save_as_external_data=True, location="m.onnx.data", size_threshold=0)
    (folder / "items.txt").write_text("".join(f"i{i}\n" for i in range(ITEMS)))

    def answers(rows):
        parts = [
            weights["kinds.weight"][rows["day"]], weights["kinds.weight"][rows["place"] + KINDS[0]],
            weights["item.weight"][[int(v[1:]) + 1 if int(v[1:]) < ITEMS else 0 for v in rows["item"]]],
            weights["user.weight"][[farm64(u.encode()) % BUCKETS for u in rows["user"]]],
            np.stack([weights["tags.weight"][[int(t) for t in text.split(",")]].mean(0) for text in rows["tags"]]),
            rows["price"].astype(np.float32)[:, None],
        ]  # fmt: skip
        return (np.concatenate(parts, 1) @ weights["w"])[:, 0]

    return folder, answers


def rows_with(answers, n=200):
    rng = np.random.default_rng(1)
    rows = {
        "item": [f"i{i}" for i in rng.integers(0, ITEMS + 20, n)],  # some are not in the vocabulary
        "user": [f"user {i}" for i in rng.integers(0, 10**9, n)],
        "day": rng.integers(0, KINDS[0], n),
        "place": rng.integers(0, KINDS[1], n),
        "tags": [",".join(map(str, rng.integers(0, 20, k))) for k in rng.integers(1, 4, n)],
        "price": rng.normal(size=n),
    }
    return pa.table({**rows, "score": answers(rows)})


def spec(folder, **changes):
    content = {"fields": FIELDS, "inputs": {"kinds": ["day", "place"]}, "fill": {"price": 0}, "kind": "logit"}
    return ImportSpec.of(content | changes, folder)


def test_all_tables_are_lifted_and_the_bundle_answers_as_the_model(model, tmp_path):
    folder, answers = model
    made = import_onnx(folder / "m.onnx", spec(folder), tmp_path / "b", name="b", check=Check(rows_with(answers)))
    assert made.parity is not None
    assert made.parity.rows == 200
    assert made.parity.worst_logit < 1e-5
    bundle = Bundle.open(tmp_path / "b", verify=True)
    found = {name: (info.rows, info.width) for name, info in bundle.manifest.tables.items()}
    assert found == {"item": (300, 4), "user": (50, 4), "day": (5, 4), "place": (7, 4), "tags": (20, 4)}
    kept = onnx.load(tmp_path / "b" / "dense.onnx").graph
    assert not any(len(t.dims) == 2 and t.dims[0] > 5 * WIDTH + 1 for t in kept.initializer)  # no table is left inside
    assert bundle.manifest.model_schema.fields[1].index.buckets == BUCKETS


def test_a_wrong_order_of_fields_is_found_by_the_comparison_and_the_worst_row_named(model, tmp_path):
    folder, answers = model
    wrong = [{**f, "index": {"ids": 5}} if f["name"] == "place" else f for f in FIELDS]
    rows = rows_with(answers).filter(pa.compute.less(rows_with(answers)["place"], 5))
    with pytest.raises(BundleError, match=r"The worst is row \d+ of rows: the bundle answers"):
        import_onnx(
            folder / "m.onnx", spec(folder, fields=wrong, inputs={"kinds": ["place", "day"]}), tmp_path / "b", name="b",
            check=Check(rows),
        )  # fmt: skip
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("name", "index", "what"),
    [
        ("item", {"vocabulary": "absent.txt"}, "absent.txt: cannot be read"),
        ("item", {"vocabulary": "items.txt", "first": 9}, "is of row 301; the table has 301 rows"),
        ("user", {"hash": "md5", "buckets": 5}, "is none; write ids"),
        ("user", {"hash": "farm64", "buckets": 500}, "500 buckets where the table has 50 rows"),
        ("place", {"ids": 9}, "reads row 12 of a table of 12 rows"),
        ("tags", None, "bag"),
        ("user", None, "give its values numbers under codes, or an index"),
    ],
)
def test_what_is_said_of_an_index_is_checked(model, tmp_path, name, index, what):
    folder, _ = model
    fields = [{**f, "index": index} if f["name"] == name else f for f in FIELDS]
    with pytest.raises(DataError, match=what):
        import_onnx(folder / "m.onnx", spec(folder, fields=fields), tmp_path / "b", name="b")
    assert not (tmp_path / "b").exists()

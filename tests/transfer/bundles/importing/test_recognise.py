"""Models by what they are: MLflow folders, trees, pipelines; what may run code is refused unless its source is trusted."""

import pickle

import lightgbm
import numpy as np
import onnx
import pandas as pd
import pyarrow as pa
import pytest
import torch
import xgboost
import yaml
from onnx import TensorProto, helper, numpy_helper
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from typer.testing import CliRunner

from pipeline.errors import BundleError, DataError
from serving.cli.main import app
from transfer.bundles.importing.parity import Check
from transfer.bundles.importing.recognise import import_model, recognised
from transfer.bundles.importing.spec import ImportSpec

FIELDS = [
    {"name": "country", "role": "context"},
    {"name": "price", "role": "candidate", "kind": "number"},
    {"name": "age", "role": "context", "kind": "number"},
]


@pytest.fixture(scope="module")
def log():
    rng = np.random.default_rng(0)
    n = 600
    frame = pd.DataFrame(
        {
            "country": rng.choice(["br", "de", "fr"], n),
            "price": rng.normal(size=n),
            "age": rng.integers(18, 80, n) / 1.0,
        }
    )
    logit = frame.price * (frame.country == "de") - 1
    return frame, rng.random(n) < 1 / (1 + np.exp(-logit))


def check(frame, scores):
    return Check(
        pa.Table.from_pandas(frame.assign(country=frame.country.astype(str), score=scores), preserve_index=False)
    )


def spec(**changes):
    return ImportSpec.of({"fields": FIELDS} | changes)


class Whole(torch.nn.Module):
    """Looks up its own table; one argument a field."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(3, 4)

    def forward(self, country, price):
        return self.table(country.squeeze(1)).sum(1) * price.squeeze(1)


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, place):
        self.place = str(place)

    def __reduce__(self):
        return (open, (self.place, "w"))


@pytest.mark.parametrize("name", ["m.pkl", "m.joblib", "m.pt", "m.pth", "m.pt2", "m.so", "m.bin"])
def test_a_file_that_may_run_code_is_refused_and_never_loaded(name, tmp_path):
    with (tmp_path / name).open("wb") as file:
        pickle.dump(Hostile(tmp_path / "ran"), file)
    with pytest.raises(BundleError, match=r"--trust-pickle|unpickles|is a program|not known"):
        import_model(tmp_path / name, spec(), tmp_path / "b", name="b")
    assert not (tmp_path / "ran").exists()
    if name in ("m.pt2", "m.so"):
        with pytest.raises(BundleError):
            recognised(tmp_path / name, trust_pickle=True)


def test_a_program_of_torch_export_that_runs_code_when_it_is_loaded_is_not_loaded(tmp_path):
    """Why `.pt2` is refused: torch's own loader unpickles what lies in the archive."""
    program = torch.export.export(torch.nn.Linear(2, 1), (torch.zeros(1, 2),))
    torch.export.save(program, tmp_path / "m.pt2")
    with pytest.raises(BundleError, match="Export the program to ONNX"):
        recognised(tmp_path / "m.pt2", trust_pickle=True)


def mlflow_folder(folder, flavours):
    folder.mkdir()
    (folder / "MLmodel").write_text(
        yaml.safe_dump({"flavors": {"python_function": {"loader_module": "x"}, **flavours}})
    )
    return folder


def test_an_mlflow_folder_with_onnx_and_external_data(tmp_path):
    folder = mlflow_folder(tmp_path / "model", {"onnx": {"data": "model.onnx", "save_as_external_data": True}})
    weights = np.array([[0.5], [-0.25]], np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Sigmoid", ["h"], ["p"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])], [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save_model(made, folder / "model.onnx", save_as_external_data=True, size_threshold=0)
    x = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    p = 1 / (1 + np.exp(-(x @ weights)[:, 0]))
    pd.DataFrame({"country": "de", "price": x[:, 0], "age": x[:, 1], "expected": p}).to_csv(
        tmp_path / "rows.csv", index=False
    )
    (tmp_path / "schema.yaml").write_text(
        yaml.safe_dump({"fields": FIELDS, "kind": "probability", "fill": {"price": 0, "age": 0}})
    )
    call = ["bundle", "import", str(folder), "--schema", str(tmp_path / "schema.yaml"), "--out", str(tmp_path / "b")]
    done = CliRunner().invoke(app, [*call, "--check", str(tmp_path / "rows.csv"), "-o", "json"])
    assert done.exit_code == 0, done.output
    assert '"rows compared": 50' in done.stdout


def test_folders_that_are_none_or_lead_outside_are_refused(tmp_path):
    (tmp_path / "secret.onnx").write_bytes(b"x")
    outside = mlflow_folder(tmp_path / "a", {"onnx": {"data": "../secret.onnx"}})
    other = mlflow_folder(tmp_path / "b", {"keras": {"data": "x"}})
    pickled = mlflow_folder(tmp_path / "c", {"sklearn": {"pickled_model": "model.pkl"}})
    (pickled / "model.pkl").write_bytes(b"x")
    for folder, what in ((outside, "outside the folder"), (other, "imported are onnx"), (pickled, "--trust-pickle"), (tmp_path, "1 ONNX")):  # fmt: skip
        if folder != tmp_path:
            with pytest.raises(BundleError, match=what):
                recognised(folder)
    (tmp_path / "second.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match="holds 2 ONNX files"):
        recognised(tmp_path)


def test_a_pipeline_of_texts_gets_its_codes_and_the_class_that_is_named(log, tmp_path):
    frame, clicked = log
    encode = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["country"]), remainder="passthrough")
    model = make_pipeline(encode, LogisticRegression()).fit(frame, np.where(clicked, "click", "skip"))
    folder = mlflow_folder(tmp_path / "model", {"sklearn": {"pickled_model": "model.pkl"}})
    (folder / "model.pkl").write_bytes(pickle.dumps(model))
    unknown = frame.assign(country=frame.country.where(frame.index % 5 > 0, "nowhere"))
    rows = check(unknown, model.predict_proba(unknown)[:, 0])
    with pytest.raises(BundleError, match="classes are 'click', 'skip'; say which"):
        import_model(folder, spec(fill={"price": 0, "age": 0}), tmp_path / "b", name="b", trust_pickle=True)
    good = spec(fill={"price": 0, "age": 0}, positive="click")
    made = import_model(folder, good, tmp_path / "b", name="b", check=rows, trust_pickle=True)
    assert made.parity.worst_probability < 1e-6
    assert made.bundle.manifest.tables["country"].rows == 3
    with pytest.raises(BundleError, match="differ"):
        import_model(
            folder,
            good.model_copy(update={"positive": "skip"}),
            tmp_path / "c",
            name="c",
            check=rows,
            trust_pickle=True,
        )


def test_a_whole_module_of_torch_has_its_tables_lifted_out(log, tmp_path):
    frame, _ = log
    folder = mlflow_folder(tmp_path / "model", {"pytorch": {"model_data": "data"}})
    (folder / "data").mkdir()
    module = Whole()
    torch.save(module, folder / "data" / "model.pth")
    (tmp_path / "countries.txt").write_text("br\nde\nfr\n")
    fields = [{**FIELDS[0], "index": {"vocabulary": "countries.txt"}}, *FIELDS[1:]]
    own = ImportSpec.of({"fields": fields, "kind": "logit", "fill": {"price": 0}}, tmp_path)
    with torch.no_grad():
        codes = torch.tensor(frame.country.map({"br": 0, "de": 1, "fr": 2}).to_numpy())
        answers = module(codes[:, None], torch.tensor(frame.price.to_numpy(np.float32))[:, None]).numpy()
    made = import_model(folder, own, tmp_path / "b", name="b", check=check(frame, answers), trust_pickle=True)
    assert made.parity.rows == len(frame)
    assert made.bundle.manifest.tables["country"].width == 4


@pytest.mark.parametrize("kind", ["lightgbm", "xgboost"])
def test_trees_with_categories_and_missing_numbers(kind, log, tmp_path):
    frame, clicked = log
    frame = frame.assign(price=frame.price.where(frame.index % 4 > 0))
    if kind == "lightgbm":
        trained = frame.assign(country=frame.country.astype("category"))[["price", "country", "age"]]
        model = lightgbm.LGBMClassifier(n_estimators=8, n_jobs=1, verbose=-1).fit(trained, clicked)
        model.booster_.save_model(tmp_path / "m.txt")
        path, own = tmp_path / "m.txt", spec()  # codes and columns are in the file
    else:
        codes = {"br": 0.0, "de": 1.0, "fr": 2.0}
        trained = frame.assign(country=frame.country.map(codes))
        model = xgboost.XGBClassifier(n_estimators=8, n_jobs=1).fit(trained, clicked.astype(int))
        model.save_model(tmp_path / "m.ubj")
        path, own = tmp_path / "m.ubj", spec(codes={"country": codes})
    made = import_model(path, own, tmp_path / "b", name="b", check=check(frame, model.predict_proba(trained)[:, 1]))
    assert made.parity.worst_probability < 2e-6
    assert made.bundle.manifest.tables["country"].rows == 3
    with pytest.raises(DataError, match="the model reads 3 columns"):
        import_model(path, spec(columns=["price", "age"]), tmp_path / "c", name="c")


def test_a_damaged_file_is_refused_by_name(tmp_path):
    for name in ("m.onnx", "m.txt", "m.ubj"):
        (tmp_path / name).write_bytes(b"tree\nnothing of the kind")
        with pytest.raises(BundleError, match=name):
            import_model(tmp_path / name, spec(codes={"country": {"de": 1.0}}), tmp_path / "b", name="b")

"""Models from elsewhere as frozen teachers: converted trees and linear models, a plain network, and what is refused."""

import json

import lightgbm
import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper
from onnxmltools import convert_lightgbm
from onnxmltools.convert.common.data_types import FloatTensorType as LightGbmFloats
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.linear_model import LogisticRegression
from small_log import SmallLog
from typer.testing import CliRunner

from pipeline.bundle.bundle import Bundle
from pipeline.bundle.versions import Repository
from pipeline.errors import BundleError, DataError
from pipeline.features import Bag, Features, Rows
from pipeline.hashing import hash_column
from pipeline.metrics import auc
from pipeline.model.model import Model
from serving.cli.main import app
from transfer.bundles import publish
from transfer.bundles.frozen import FrozenTeacher, load_teacher
from transfer.bundles.importing.network import import_onnx
from transfer.bundles.importing.spec import ImportSpec
from transfer.click_model.model import ClickModel
from transfer.offline.distill import transfer_offline
from transfer.offline.window import Window

USERS, COUNTRIES = 40, ["br", "de", "fr", "jp", "us"]
FIELDS = [
    {"name": "user", "role": "context"},
    {"name": "price", "role": "candidate", "kind": "number"},
    {"name": "country", "role": "context"},
    {"name": "tags", "role": "candidate", "kind": "bag", "separator": ","},
]
COLUMNS = ["country", "price", "user"]  # of the model, in another order than the fields


@pytest.fixture(scope="module")
def clicks():
    rng = np.random.default_rng(0)
    n = 4000
    user, country = rng.integers(0, USERS, n), rng.integers(0, len(COUNTRIES), n)
    price = rng.normal(size=n).astype(np.float32)
    logit = rng.normal(size=USERS)[user] + 0.8 * price * (country == 2) - 0.5
    y = (rng.random(n) < 1 / (1 + np.exp(-logit))).astype(int)
    return np.stack([country, price, user], 1).astype(np.float32), y


def spec(**changes):
    codes = {
        "user": {f"u{i}": float(i) for i in range(USERS)},
        "country": {c: float(i) for i, c in enumerate(COUNTRIES)},
    }
    return ImportSpec.model_validate({"fields": FIELDS, "columns": COLUMNS, "codes": codes} | changes)


def features(x):
    """The rows as a client sends them: values, hashed; every second bag has a tag."""
    country, price, user = x.T
    ids = np.stack(
        [
            hash_column("user", [f"u{int(u)}" for u in user]),
            hash_column("country", [COUNTRIES[int(c)] if 0 <= c < len(COUNTRIES) else "??" for c in country]),
        ],
        1,
    )
    tags = Bag(0, (np.arange(len(x) + 1) // 2).astype(np.int32), np.ones(len(x) // 2, np.int64))
    return Rows(ids, price.reshape(-1, 1).astype(np.float32), (tags,))


def lightgbm_model(x, y):
    model = lightgbm.LGBMClassifier(n_estimators=20, num_leaves=8, n_jobs=1, verbose=-1).fit(x, y)
    return model, convert_lightgbm(model, initial_types=[("x", LightGbmFloats([None, 3]))], zipmap=False)


def sklearn_model(x, y):
    model = LogisticRegression().fit(x, y)
    return model, to_onnx(model, initial_types=[("x", FloatTensorType([None, 3]))])  # with a list of dictionaries


@pytest.mark.parametrize("make", [lightgbm_model, sklearn_model])
def test_a_converted_model_is_verified_serves_its_own_scores_and_teaches(make, clicks, tmp_path):
    x, y = clicks
    model, converted = make(x, y)
    onnx.save(converted, tmp_path / "model.onnx")
    repository = Repository(tmp_path / "bundles")
    import_onnx(tmp_path / "model.onnx", spec(), tmp_path / "bundles" / "ranker" / "1", name="ranker")
    bundle = Bundle.open(tmp_path / "bundles" / "ranker" / "1", verify=True)
    assert bundle.frozen
    served = Model.load(repository, "ranker", segments=tmp_path / "segments")
    served.warm()
    expected = model.predict_proba(x)[:, 1]
    rows = features(x)
    np.testing.assert_allclose(served.score(Features.from_rows(rows)), expected, atol=2e-6)
    teacher = load_teacher(bundle.path)
    assert isinstance(teacher, FrozenTeacher)
    logits = teacher.calibrated_logits(rows)
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), expected, atol=2e-6)

    class Log(SmallLog):
        schema = teacher.schema

    log = Log(len(x))
    log._all = log._all.__class__(rows, y.astype(np.float32), *(getattr(log._all, k) for k in (
        "time_ms", "request", "routing_key", "position")))  # fmt: skip
    student, _ = transfer_offline(Window(teacher, log, 0.0, 0.9), "deepfm", width=4)
    test = log.window(0.9, 1.0)
    assert auc(test.labels, student.scores(test.rows)) > 0.6
    publish.save(student, tmp_path / "student", "student")
    assert isinstance(load_teacher(tmp_path / "student"), ClickModel)


def test_values_without_a_code_and_missing_numbers_reach_the_model_as_such(clicks, tmp_path):
    x, y = clicks
    model, converted = lightgbm_model(x, y)
    onnx.save(converted, tmp_path / "model.onnx")
    import_onnx(tmp_path / "model.onnx", spec(unknown=-7.0), tmp_path / "b", name="b")
    odd = x[:50].copy()
    odd[:, 0], odd[::2, 1] = -7, np.nan
    scores = 1 / (1 + np.exp(-load_teacher(tmp_path / "b").logits(features(odd))))
    np.testing.assert_allclose(scores, model.predict_proba(odd)[:, 1], atol=2e-6)


def network(inputs, nodes, *, output=("y", TensorProto.FLOAT, ["n", 1]), initialisers=(), domain=""):
    graph = helper.make_graph(
        nodes,
        "own",
        [helper.make_tensor_value_info(*i) for i in inputs],
        [helper.make_tensor_value_info(*output)],
        initializer=list(initialisers),
    )
    opsets = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def by_columns():
    """A network with an input per column; ids are int64, so that it could look embeddings up."""
    return network(
        [("price", TensorProto.FLOAT, ["n", 1]), ("user", TensorProto.INT64, ["n", 1])],
        [
            helper.make_node("Cast", ["user"], ["u"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["u", "price"], ["y"]),
        ],
    )


def test_a_network_with_an_input_per_column(clicks, tmp_path):
    x, _ = clicks
    onnx.save(by_columns(), tmp_path / "model.onnx")
    import_onnx(tmp_path / "model.onnx", spec(columns=["user", "price"], kind="logit"), tmp_path / "b", name="b")
    np.testing.assert_allclose(load_teacher(tmp_path / "b").logits(features(x)), x[:, 2] + x[:, 1], atol=1e-6)


def save(model, path):
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("model", "changes", "what"),
    [
        (by_columns, {"columns": ["user", "price"]}, "say what output 'y' holds"),
        (by_columns, {"columns": ["user", "country"], "kind": "logit"}, "name as columns what the network reads"),
        (by_columns, {"columns": ["user", "price"], "kind": "logit", "output": "z"}, "outputs are"),
        (
            lambda: network(
                [("x", TensorProto.DOUBLE, ["n", 3])],
                [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)],
                output=("y", TensorProto.FLOAT, ["n", 3]),
            ),
            {"kind": "logit", "output": "y"},
            "3 columns",
        ),
        (
            lambda: network(
                [("x", TensorProto.STRING, ["n", 1])],
                [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)],
            ),
            {"kind": "logit"},
            "not numeric",
        ),
        (
            lambda: network(
                [("x", TensorProto.FLOAT, ["n", 3])],
                [helper.make_node("Own", ["x"], ["y"], domain="my.ops")],
                domain="my.ops",
            ),
            {"kind": "logit"},
            "cannot run|custom operator",
        ),
    ],
)
def test_networks_that_do_not_fit_are_refused_and_leave_nothing(model, changes, what, tmp_path):
    path = save(model(), tmp_path / "model.onnx")
    with pytest.raises(BundleError, match=what):
        import_onnx(path, spec(**changes), tmp_path / "b", name="b")
    assert not (tmp_path / "b").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx"]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"columns": ["user", "nobody"]}, "not among the fields"),
        ({"columns": ["tags"]}, "is a bag"),
        ({"columns": ["user"], "codes": {}}, "numbers under codes"),
        ({"codes": {"price": {"1": 1}}}, "not a field of kind id"),
        ({"codes": {"user": {"a": 2.0**25}}, "columns": ["user", "price"], "kind": "logit"}, "32-bit"),
    ],
)
def test_specifications_that_contradict_themselves_are_refused(changes, what, tmp_path):
    path = save(by_columns(), tmp_path / "model.onnx")
    with pytest.raises(DataError, match=what):
        import_onnx(path, spec(**changes), tmp_path / "b", name="b")


def test_the_command_reads_codes_from_a_file_and_names_what_is_wrong(tmp_path):
    save(by_columns(), tmp_path / "sum.onnx")
    (tmp_path / "users.csv").write_text("value,code\n" + "".join(f"u{i},{i}\n" for i in range(USERS)))
    content = {"fields": FIELDS, "columns": ["user", "price"], "codes": {"user": "users.csv"}, "kind": "logit"}
    (tmp_path / "schema.yaml").write_text(yaml.safe_dump(content))
    call = [
        "bundle",
        "import-onnx",
        str(tmp_path / "sum.onnx"),
        "--schema",
        str(tmp_path / "schema.yaml"),
        "-o",
        "json",
    ]
    done = CliRunner().invoke(app, [*call, "--out", str(tmp_path / "b")])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["codes"] == USERS
    assert Bundle.open(tmp_path / "b").manifest.name == "sum"
    config = tmp_path / "baton.yaml"
    config.write_text("home: home")
    repository = Repository(tmp_path / "home" / "bundles")
    for version, where in (
        ("1", ["--name", "ranker", "--config", str(config)]),
        ("3", ["--out", str(repository.path("ranker", "3"))]),
        ("4", ["--name", "ranker", "--config", str(config)]),
    ):
        done = CliRunner().invoke(app, [*call, *where])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["version"] == version
        assert repository.open("ranker", version, verify=True).manifest.name == "ranker"
    assert sorted(path.name for path in (repository.root / "ranker").iterdir()) == [".versions", "1", "3", "4"]
    (tmp_path / "users.csv").write_text("a,b\n")
    assert CliRunner().invoke(app, [*call, "--name", "ranker", "--config", str(config)]).exit_code == 1
    assert repository.reserve("ranker") == "5", "a number that was not used is given again"
    refused = CliRunner().invoke(app, [*call, "--out", str(tmp_path / "c")])
    assert refused.exit_code == 1
    assert "users.csv" in refused.output

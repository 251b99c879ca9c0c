"""ONNX files: external data from the model's folder alone, old operator sets, classes by their labels, rows with answers."""

import numpy as np
import onnx
import pyarrow as pa
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.errors import BundleError, DataError
from transfer.bundles.importing.classes import positive_column
from transfer.bundles.importing.network import import_onnx
from transfer.bundles.importing.onnx_file import OnnxFile
from transfer.bundles.importing.parity import Check
from transfer.bundles.importing.spec import ImportSpec

FIELDS = [{"name": "u", "role": "context"}, {"name": "a", "role": "candidate", "kind": "number"}]


def linear(path, *, opset=17, ir=8, op="MatMul", kinds=()):
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"], **dict(kinds))], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])], [numpy_helper.from_array(np.array([[2.0]], np.float32), "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    if ir < 4:
        model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [1, 1]))
    onnx.save(model, path)
    return path


def external(path, location, offset=0, length=4):
    model = onnx.load(linear(path))
    (tensor,) = model.graph.initializer
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_is_read_from_the_models_folder_alone(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "w.bin").write_bytes(b"\0" * 8 + np.float32(3).tobytes())
    (tmp_path / "secret").write_bytes(b"\0" * 64)
    (folder / "link").symlink_to(tmp_path / "secret")
    file = OnnxFile.read(external(folder / "m.onnx", "w.bin", 8))
    assert numpy_helper.to_array(file.inside().graph.initializer[0]).tolist() == [[3.0]]
    for location, offset, length, what in (
        ("../secret", 0, 4, "outside the model's folder"), (str(tmp_path / "secret"), 0, 4, "outside the model's folder"),
        ("link", 0, 4, "outside the model's folder"), ("absent", 0, 4, "no file beside the model"), ("w.bin", 9, 4, "takes 4 bytes"),
        ("w.bin", 0, 8, "takes 4 bytes"), ("w.bin", -4, 4, "takes 4 bytes"), ("w.bin", "x", 4, "no number"),
    ):  # fmt: skip
        with pytest.raises(BundleError, match=what):
            OnnxFile.read(external(folder / "m.onnx", location, offset, length))


@pytest.mark.parametrize(("opset", "ir"), [(7, 3), (9, 4), (13, 7)])
def test_old_operator_sets_and_formats_are_converted(opset, ir, tmp_path):
    rows = pa.table({"u": ["x", "y", "z"], "a": [1.0, -2.0, 0.25], "logit": [2.0, -4.0, 0.5]})
    spec = ImportSpec.of({"fields": FIELDS, "kind": "logit", "fill": {"a": 0}})
    made = import_onnx(
        linear(tmp_path / "m.onnx", opset=opset, ir=ir), spec, tmp_path / "b", name="b", check=Check(rows)
    )
    assert made.parity.rows == 3
    assert made.warnings == []


@pytest.mark.parametrize(
    ("labels", "positive", "column"),
    [([0, 1], None, 1), ([1, 0], None, 0), (["False", "True"], None, 1), (["skip", "click"], "skip", 0), ([2, 5], 5, 1), ([], None, None), ([], 0, 0)],
)  # fmt: skip
def test_the_click_is_found_by_its_label(labels, positive, column):
    assert positive_column(labels, positive) == column


@pytest.mark.parametrize(
    ("labels", "positive", "what"),
    [(["a", "b"], None, "say which"), ([0, 1, 2], None, "3 classes"), ([0, 1, 2], 1, "3 classes"), (["a", "b"], "c", "no class of the model")],
)  # fmt: skip
def test_classes_that_leave_a_doubt_are_refused(labels, positive, what):
    with pytest.raises(BundleError, match=what):
        positive_column(labels, positive)


@pytest.mark.parametrize(
    ("rows", "error", "what"),
    [
        ({"u": ["x"], "a": [1.0]}, DataError, "no column score or expected"),
        ({"u": ["x"], "score": [1.0]}, DataError, "no column 'a'"),
        ({"u": ["x"], "a": ["cheap"], "score": [1.0]}, DataError, "does not hold numbers"),
        ({"u": ["x"], "a": [1.0], "probability": [2.0]}, DataError, "not a probability"),
        ({"u": ["x"], "a": [1.0], "score": [float("nan")]}, DataError, "not a finite logit"),
        ({"u": ["x", "y"], "a": [1.0, 2.0], "score": [2.0, 4.5]}, BundleError, "worst is row 1 of rows"),
        ({"u": ["x", "y"], "a": [1.0, None], "score": [2.0, 0.0]}, BundleError, "worst is row 1 of rows"),
        ({"u": ["x"], "a": [1.7e9 + 1], "score": [3.4e9 + 200]}, None, ""),
    ],
)
def test_every_row_is_compared(rows, error, what, tmp_path):
    spec = ImportSpec.of({"fields": FIELDS, "kind": "logit"})
    path = linear(tmp_path / "m.onnx")
    if error is None:  # logits so large are one probability
        assert import_onnx(path, spec, tmp_path / "b", name="b", check=Check(pa.table(rows))).parity.worst_logit == 0
        return
    with pytest.raises(error, match=what):
        import_onnx(path, spec, tmp_path / "b", name="b", check=Check(pa.table(rows)))
    assert not (tmp_path / "b").exists()

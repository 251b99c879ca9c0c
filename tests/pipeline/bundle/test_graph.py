from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from handmade import SCHEMA, write_network
from onnx import TensorProto, helper

from pipeline.bundle.graph import check_graph, inputs_of
from pipeline.errors import BundleError

WIDE = SCHEMA.with_width(4)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "dense.onnx"
    write_network(path, WIDE, linear=True)
    return path


def changed(path: Path, change: Callable[[onnx.ModelProto], object]) -> Path:
    model = onnx.load(str(path))
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def test_a_standard_network_passes(graph: Path) -> None:
    check_graph(graph, WIDE, linear=True)
    assert inputs_of(WIDE, linear=True) == {"embeddings": 16, "linear": 4, "numbers": 2}
    assert inputs_of(WIDE, linear=False) == {"embeddings": 16, "numbers": 2}


def custom(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.evil"


def custom_inside_a_branch(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([helper.make_node("Evil", [], ["x"], domain="com.evil")], "inner", [], [])
    model.graph.node.append(helper.make_node("If", ["missing"], ["y"], then_branch=inner, else_branch=inner))


def custom_inside_a_function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Evil", ["a"], ["b"], domain="com.evil")
    model.functions.append(helper.make_function("mine", "f", ["a"], ["b"], [node], [helper.make_opsetid("", 17)]))


def external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def other_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "vectors"


def other_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "probability"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (custom, "com.evil"),
        (custom_inside_a_branch, "com.evil"),
        (custom_inside_a_function, "com.evil"),
        (external, "outside the file"),
        (other_input, "'vectors'"),
        (other_output, "'probability'"),
    ],
)
def test_what_may_not_be_served(graph: Path, change: Callable[[onnx.ModelProto], None], message: str) -> None:
    with pytest.raises(BundleError, match=message) as refused:
        check_graph(changed(graph, change), WIDE, linear=True)
    assert refused.value.field == "dense.onnx"


def test_inputs_follow_the_schema(graph: Path) -> None:
    with pytest.raises(BundleError, match="linear"):
        check_graph(graph, WIDE, linear=False)
    graph.write_bytes(b"\xff\xfe not a graph")
    with pytest.raises(BundleError, match="ONNX"):
        check_graph(graph, WIDE, linear=True)


def test_the_split_layout_has_inputs_of_its_own(graph: Path) -> None:
    assert inputs_of(WIDE, linear=True, split=True) == {
        "context_embeddings": 8,
        "context_linear": 2,
        "context_numbers": 1,
        "candidate_embeddings": 8,
        "candidate_linear": 2,
        "candidate_numbers": 1,
        "request": 0,
    }
    with pytest.raises(BundleError, match="candidate_embeddings"):
        check_graph(graph, WIDE, linear=True, split=True)


def narrow(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 15


def double(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE


@pytest.mark.parametrize("change", [narrow, double])
def test_inputs_of_another_shape_or_type_are_refused(graph: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    with pytest.raises(BundleError, match=r"'embeddings' is not float32 \[n, 16\]"):
        check_graph(changed(graph, change), WIDE, linear=True)

import numpy as np
import onnxruntime
import pytest
import torch
from small_log import SCHEMA, SmallLog

from pipeline.bundle.bundle import DENSE, Bundle
from pipeline.features import Rows
from pipeline.schema import FieldSpec, Schema
from transfer.bundles.export import DenseGraph, trace
from transfer.bundles.publish import save
from transfer.click_model.model import ClickModel
from transfer.model_zoo import ZOO, Architecture, Architectures


class Folded(Architecture):
    """Uses a weight in a way that no initialiser shows: the graph cannot be refilled by name."""

    def __init__(self, fields, width, numbers):
        super().__init__(fields, width, numbers)
        self.w = torch.nn.Parameter(torch.ones(fields * width))

    def forward(self, embeddings, linear, numbers):
        return embeddings.flatten(1) @ torch.tensor(self.w.detach().numpy() * 2)


def hard_rows(n=200):
    """Unknown ids, empty bags, missing numbers, all in one batch."""
    rows = SmallLog(n, seed=9).window(0, 1).rows
    ids = rows.ids.copy()
    ids[::3, 0] = np.arange(len(ids[::3])) + 5_000_000_000
    numbers = rows.numbers.copy()
    numbers[::4] = np.nan
    return Rows(ids, numbers, rows.bags)


def onnx_logits(model, graph, rows):
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    vectors, linear = model.tables.gather(model.tables.lookup(rows, create=False))
    feeds = {"embeddings": vectors.reshape(len(rows), -1), "linear": linear, "numbers": rows.numbers}
    assert [o.name for o in session.get_outputs()] == ["logit"]
    return session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()})[0]


@pytest.mark.parametrize("arch", sorted(ZOO))
def test_onnx_scores_are_pytorchs(arch, tmp_path):
    chunk = SmallLog(2000).window(0, 1)
    model = ClickModel.create(SCHEMA, arch, 8, seed=3)
    model.fit_numbers(chunk.rows)
    rows = hard_rows()
    graphs = trace(model.network, model.schema)
    graph = graphs[DENSE]
    assert all(g.refillable for g in graphs.values())
    for _ in range(2):  # the second time only the weights are new
        model.step(chunk.rows, chunk.labels)
        model.tables.default_to_mean()
        np.testing.assert_allclose(onnx_logits(model, graph.write(), rows), model.logits(rows), atol=1e-5)
    one = rows.slice(0, 1)
    np.testing.assert_allclose(onnx_logits(model, graph.write(), one), model.logits(one), atol=1e-5)
    Bundle.open(save(model, tmp_path / "b", "m").path, verify=True)  # the graph passes every check


def test_a_schema_without_numbers():
    schema = Schema(fields=(FieldSpec(name="a", role="context"), FieldSpec(name="b", role="candidate")))
    rows = Rows(np.array([[1, 2], [3, 4]]), np.zeros((2, 0), np.float32))
    for arch in ZOO:
        model = ClickModel.create(schema, arch, 4, seed=1)
        model.step(rows, np.array([0, 1]))
        graph = DenseGraph(model.network, model.schema).write()
        np.testing.assert_allclose(onnx_logits(model, graph, rows), model.logits(rows), atol=1e-5)


def test_weights_that_are_not_initialisers_are_traced_again():
    own = f"{__name__}:Folded"
    model = ClickModel.create(SCHEMA, own, 4, seed=1, architectures=Architectures([own]))
    rows = hard_rows(20)
    model.tables.lookup(rows, create=True)
    graph = DenseGraph(model.network, model.schema)
    with torch.no_grad():
        model.network.body.w.fill_(3.0)
    np.testing.assert_allclose(onnx_logits(model, graph.write(), rows), model.logits(rows), atol=1e-5)

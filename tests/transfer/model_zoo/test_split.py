"""The split network: the same scores as the whole one, whatever the schema and however many requests."""

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InvalidInput
from pipeline.inputs import Layout
from pipeline.schema import FieldSpec, Schema
from transfer.bundles.export import CONTEXT, DENSE, trace
from transfer.click_model.network import DenseNetwork
from transfer.model_zoo import DNN, ZOO, Architectures

VARIANTS = [
    *((arch, {}) for arch, kind in sorted(ZOO.items()) if kind.can_split()),
    ("dcnv2", {"cross": 0}),
    ("dcnv2", {"cross": 1, "hidden": []}),
    ("dcnv2", {"cross": 3, "rank": 2}),
    ("dnn", {"hidden": []}),
]


@st.composite
def schemas(draw):
    kinds = st.sampled_from(["id", "bag", "number"])
    sides = {
        "context": draw(st.lists(kinds, min_size=1, max_size=4)),
        "candidate": draw(st.lists(kinds, min_size=1, max_size=4)),
    }
    fields = [(role, kind) for role, side in sides.items() for kind in side]
    fields += [("context", "id"), ("candidate", "id")][: max(0, 2 - sum(kind != "number" for _, kind in fields))]
    order = draw(st.permutations(fields))
    return Schema(
        fields=tuple(
            FieldSpec(
                name=f"f{i}",
                role=role,
                kind=kind,
                separator="," if kind == "bag" else None,
                transform=draw(st.sampled_from([None, "log1p"])) if kind == "number" else None,
            )
            for i, (role, kind) in enumerate(order)
        )
    )


def feeds(schema, width, rng, sizes):
    """Inputs of both layouts for requests of these sizes."""
    request = np.repeat(np.arange(len(sizes)), sizes)
    n, count = len(request), len(schema.numbers)
    numbers = rng.normal(0, 2, (n, count)).astype(np.float32)
    numbers[rng.random(numbers.shape) < 0.2] = np.nan
    vectors, weights = (
        rng.normal(0, 0.2, (n, len(schema.embedded), width)),
        rng.normal(0, 0.3, (n, len(schema.embedded))),
    )
    first = np.searchsorted(request, np.arange(len(sizes)))
    split = {"request": request}
    whole = {"embeddings": vectors.astype(np.float32), "linear": weights.astype(np.float32), "numbers": numbers}
    for block in Layout.split(schema).blocks:
        for name, columns in (("embeddings", block.places), ("linear", block.places), ("numbers", block.numbers)):
            mine = np.flatnonzero(columns >= 0)
            if block.prefix == "context_":
                whole[name][:, mine] = whole[name][first][:, mine][request]
            rows = whole[name][first if block.prefix == "context_" else slice(None)][:, mine]
            split[block.prefix + name] = rows.reshape(len(rows), -1)
    return {name: array.reshape(n, -1) for name, array in whole.items()}, split


def scores(graph, given):
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    logits = session.run(["logit"], {i.name: given[i.name] for i in session.get_inputs()})[0]
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


@pytest.mark.parametrize(("arch", "hyperparameters"), VARIANTS)
@settings(deadline=None, max_examples=8, derandomize=True)
@given(schemas(), st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 99))
def test_split_scores_are_those_of_the_whole(arch, hyperparameters, schema, sizes, seed):
    torch.manual_seed(seed)
    network = DenseNetwork(schema.with_width(4), arch, 4, hyperparameters)
    graphs = trace(network, schema.with_width(4))
    assert set(graphs) == {DENSE, CONTEXT}
    rng = np.random.default_rng(seed)
    for _ in range(2):  # the second time only the weights are new
        whole, split = feeds(schema, 4, rng, sizes)
        found = {name: graph.write() for name, graph in graphs.items()}
        np.testing.assert_allclose(scores(found[CONTEXT], split), scores(found[DENSE], whole), rtol=0, atol=1e-6)
        assert all(graph.refillable for graph in graphs.values())
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)


class Inherited(DNN):
    """Another `forward` than the one whose split it inherits."""

    def forward(self, embeddings, linear, numbers):
        return 2 * super().forward(embeddings, linear, numbers)


class Wrong(DNN):
    def forward(self, embeddings, linear, numbers):
        return 2 * super().forward(embeddings, linear, numbers)

    def forward_split(self, rows):
        return super().forward_split(rows)


PAIR = Schema(fields=(FieldSpec(name="a", role="context"), FieldSpec(name="b", role="candidate"))).with_width(4)


def test_an_architecture_of_ones_own_is_split_only_as_it_says():
    inherited, wrong = f"{__name__}:Inherited", f"{__name__}:Wrong"
    own = Architectures([inherited, wrong])
    assert set(trace(DenseNetwork(PAIR, inherited, 4, {}, own), PAIR)) == {DENSE}
    with pytest.raises(InvalidInput, match="forward_split"):
        trace(DenseNetwork(PAIR, wrong, 4, {}, own), PAIR)


def test_what_gains_nothing_is_not_split():
    assert set(trace(DenseNetwork(PAIR, "lr", 1, {}), PAIR)) == {DENSE}


def test_without_a_context_there_is_nothing_to_split():
    schema = Schema(fields=tuple(f.model_copy(update={"role": "candidate"}) for f in PAIR.fields))
    assert set(trace(DenseNetwork(schema, "deepfm", 4, {}), schema)) == {DENSE}

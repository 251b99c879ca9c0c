import pickle
import sys

import numpy as np
import pytest
import torch

from pipeline.errors import InvalidInput
from pipeline.schema import FieldSpec, Schema
from transfer.architecture_names import ZOO_NAMES, is_known
from transfer.click_model.network import DenseNetwork, NumberTransform
from transfer.model_zoo import (
    DNN,
    FM,
    LR,
    ZOO,
    ZOO_ALONE,
    Architecture,
    Architectures,
    DCNv2,
    DeepFM,
    FiBiNET,
    parse_arch,
)

E = torch.tensor([[[1.0, 2.0], [3.0, -1.0], [0.5, 1.0]]])  # one row, three fields, width 2
L = torch.tensor([[0.1, -0.2, 0.4]])
NONE = torch.zeros(1, 0)


class Own(Architecture):
    def forward(self, embeddings, linear, numbers):
        return embeddings.sum((1, 2))


def test_lr_is_the_sum_of_weights_and_bias():
    model = LR(3, 2, 1)
    with torch.no_grad():
        model.first.bias.fill_(0.5)
        model.first.numbers.weight.fill_(2.0)
    assert model(E, L, torch.tensor([[3.0]])).item() == pytest.approx(0.3 + 0.5 + 6.0)


def test_fm_adds_inner_products_of_all_pairs():
    # <1,2>: 1*3 - 2 = 1; <1,3>: .5 + 2 = 2.5; <2,3>: 1.5 - 1 = .5
    assert FM(3, 2, 0)(E, L, NONE).item() == pytest.approx(0.3 + 1.0 + 2.5 + 0.5)


def test_dnn_is_its_layers():
    model = DNN(3, 2, 0, hidden=[1])
    with torch.no_grad():
        model.deep[0].weight.copy_(torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0, 1.0]]))
        model.deep[0].bias.fill_(-0.5)
        model.deep[2].weight.fill_(2.0)
        model.deep[2].bias.fill_(1.0)
    assert model(E, None, NONE).item() == pytest.approx((6.5 - 0.5) * 2 + 1)


def test_deepfm_is_fm_plus_dnn():
    model = DeepFM(3, 2, 0)
    deep = model.deep(E.flatten(1)).squeeze(1)
    assert model(E, L, NONE).item() == pytest.approx(4.3 + deep.item(), abs=1e-5)


def test_dcnv2_crosses_with_the_input():
    model = DCNv2(1, 2, 0, cross=1, hidden=[])
    with torch.no_grad():
        model.cross[0].weight.copy_(torch.tensor([[0.0, 1.0], [2.0, 0.0]]))
        model.cross[0].bias.copy_(torch.tensor([1.0, -1.0]))
        model.head.weight.copy_(torch.tensor([[1.0, 10.0, 0.0, 0.0]]))
        model.head.bias.zero_()
    x = torch.tensor([[[2.0, 3.0]]])
    # W x + b = [4, 3]; x0 * that + x0 = [10, 12]
    assert model(x, None, NONE).item() == pytest.approx(10.0 + 120.0)


def test_dcnv2_low_rank_has_fewer_weights():
    full = sum(p.numel() for p in DCNv2(10, 16, 0, hidden=[]).cross.parameters())
    assert sum(p.numel() for p in DCNv2(10, 16, 0, hidden=[], rank=4).cross.parameters()) < full / 10


@pytest.mark.parametrize("bilinear", ["all", "each"])
def test_fibinet_pairs(bilinear):
    model = FiBiNET(3, 2, 0, bilinear=bilinear)
    with torch.no_grad():
        model.original.copy_(torch.tensor([[2.0, 0.0], [0.0, 3.0]]).expand_as(model.original))
    pairs = model._interact(E, model.original)[0].tolist()
    # (v_i W) * v_j for (1,2), (1,3), (2,3)
    assert pairs == pytest.approx([2 * 3, 6 * -1, 2 * 0.5, 6 * 1, 6 * 0.5, -3 * 1])


def test_names_widths_and_own_classes():
    assert parse_arch("DCNv2-8") == ("dcnv2", 8)
    assert parse_arch("fm") == ("fm", 16)
    own = f"{__name__}:Own"
    named = Architectures([own, "fm"])
    assert named.find("Fibinet") is FiBiNET
    assert named.find(own) is Own
    assert pickle.loads(pickle.dumps(named)).find(own) is Own
    for wrong in ("nope", "json:JSONDecoder", "no_such_module:X", "transfer.model_zoo:Nope", ":", ".:X"):
        with pytest.raises(InvalidInput, match="architecture"):
            Architectures([wrong])


def test_a_name_that_is_only_looked_up_is_not_imported(tmp_path, monkeypatch):
    """The module could be imported: it is on the path, and the same name given by the command line is taken from it."""
    (tmp_path / "payload_of_a_bundle.py").write_text(
        "from transfer.model_zoo import FM\nclass Network(FM):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    name = "payload_of_a_bundle:Network"
    for known in (ZOO_ALONE, Architectures([f"{__name__}:Own"])):
        with pytest.raises(InvalidInput, match="not of the zoo") as refused:
            known.find(name)
        assert name in str(refused.value)
        assert "payload_of_a_bundle" not in sys.modules
    assert Architectures([name]).find(name).__name__ == "Network"


def test_names_of_the_zoo_are_known_without_its_classes():
    assert tuple(ZOO) == ZOO_NAMES
    assert all(map(is_known, (*ZOO, "onnx")))
    assert not is_known("x:Y")
    assert is_known("x:Y", ["x:Y"])


@pytest.mark.parametrize(
    ("arch", "hyperparameters"),
    [
        ("dnn", {"hidden": [1] * 65}),
        ("dnn", {"hidden": [1 << 40]}),
        ("dnn", {"hidden": ["4"]}),
        ("dcnv2", {"cross": 10**9}),
        ("fibinet", {"reduction": 0}),
        ("fibinet", {"reduction": float("nan")}),
    ],
)
def test_sizes_of_a_network_are_bounded(arch, hyperparameters):
    fields = FieldSpec(name="a", role="context"), FieldSpec(name="b", role="context")
    with pytest.raises(InvalidInput, match=r"hidden|cross|reduction"):
        DenseNetwork(Schema(fields=fields), arch, 4, hyperparameters)


def test_a_width_of_0_is_refused():
    with pytest.raises(InvalidInput):
        parse_arch("fm-0")


@pytest.mark.parametrize("arch", sorted(ZOO))
def test_every_architecture_gives_one_logit_per_row(arch):
    fields = [FieldSpec(name=n, role="context") for n in "abc"] + [FieldSpec(name="x", role="context", kind="number")]
    network = DenseNetwork(Schema(fields=tuple(fields)).with_width(4), arch, 4, {})
    linear = torch.randn(5, 3) if network.uses_linear else None
    assert network(torch.randn(5, 12), linear, torch.randn(5, 1)).shape == (5,)


def test_unknown_hyperparameter_and_schema_without_ids_are_refused():
    number = Schema(fields=(FieldSpec(name="x", role="context", kind="number"),))
    with pytest.raises(InvalidInput, match="only numbers"):
        DenseNetwork(number, "dnn", 4, {})
    with pytest.raises(InvalidInput, match="wings"):
        DenseNetwork(Schema(fields=(FieldSpec(name="a", role="context"),)), "dnn", 4, {"wings": 2})


def test_numbers_are_logged_standardised_and_flagged():
    schema = Schema(
        fields=(
            FieldSpec(name="plain", role="context", kind="number"),
            FieldSpec(name="logged", role="context", kind="number", transform="log1p"),
        )
    )
    transform = NumberTransform(schema)
    raw = np.array([[1.0, 0.0], [3.0, np.e - 1], [np.nan, -(np.e - 1)]], np.float32)
    transform.fit(raw)
    out = transform(torch.from_numpy(raw)).numpy()
    scale = np.sqrt(1.5)  # of -1, 0, 1
    np.testing.assert_allclose(out[:, 0], [-1, 1, 0], atol=1e-6)
    np.testing.assert_allclose(out[:, 1], [0, scale, -scale], atol=1e-6)
    np.testing.assert_array_equal(out[:, 2:], [[0, 0], [0, 0], [1, 0]])

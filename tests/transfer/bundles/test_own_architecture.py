"""A user's own architecture, named as package.module:Class, goes the whole way that one of the zoo goes."""

import hashlib
import json
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from small_log import SmallLog
from torch import nn

from pipeline.bundle.versions import Repository
from pipeline.errors import BundleError, InvalidInput
from pipeline.features import Features
from pipeline.model.model import Model
from transfer.bundles.publish import load, save
from transfer.click_model.model import ClickModel
from transfer.model_zoo import ZOO, Architecture, Architectures, DCNv2, FiBiNET
from transfer.offline.distill import transfer_offline
from transfer.offline.train import train
from transfer.offline.window import Window

LOG = SmallLog(6_000)


class Gated(Architecture):
    """Fields weighted by a gate, then one layer."""

    def __init__(self, fields, width, numbers, *, units=8):
        super().__init__(fields, width, numbers)
        self.gate = nn.Linear(fields * width, fields)
        self.out = nn.Sequential(nn.Linear(self.dense_width, units), nn.ReLU(), nn.Linear(units, 1))

    def forward(self, embeddings, linear, numbers):
        gate = torch.sigmoid(self.gate(embeddings.flatten(1))).unsqueeze(2)
        return self.out(self.dense_input(embeddings * gate, numbers)).squeeze(1)


OWN = f"{__name__}:Gated"
NAMED = Architectures([OWN])
MODEL = train(LOG, "dnn", width=4, stop=0.3)


@pytest.mark.parametrize("arch", [*ZOO, OWN])
def test_contract_of_an_architecture(arch, tmp_path):
    """Trains, gives one finite logit per row, serves the trainer's scores through ONNX, goes on from its bundle."""
    model = train(LOG, arch, width=4, stop=0.3, architectures=NAMED)
    rows = LOG.window(0.3, 0.35).rows
    logits = model.logits(rows)
    assert logits.shape == (len(rows),)
    assert np.isfinite(logits).all()
    bundle = save(model, tmp_path / "bundles" / "m" / "1", "m")
    served = Model.load(Repository(tmp_path / "bundles"), "m", segments=tmp_path / "segments")
    np.testing.assert_allclose(served.score(Features.from_rows(rows)), model.scores(rows), atol=1e-5)
    again = load(bundle, NAMED)
    for one in (model, again):
        one.step(rows, LOG.window(0.3, 0.35).labels)
    np.testing.assert_array_equal(model.logits(rows), again.logits(rows))


def test_an_own_architecture_teaches_and_is_taught():
    teacher = train(LOG, OWN, width=4, stop=0.4, architectures=NAMED)
    student, _ = transfer_offline(Window(teacher, LOG, 0.4, 0.8), OWN, width=8, architectures=NAMED)
    assert student.arch == OWN
    other, _ = transfer_offline(Window(teacher, LOG, 0.4, 0.8), "dcnv2", width=8)
    assert abs(float(other.scores(LOG.window(0.8, 1.0).rows).mean()) - LOG.window(0.8, 1.0).labels.mean()) < 0.1


def renamed(bundle, **changes):
    path = bundle.path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_name_in_a_bundle_is_looked_up_and_never_imported(tmp_path, monkeypatch):
    """In the manifest, in the training state alone, and of a bundle without one; the module could be imported."""
    (tmp_path / "payload_of_a_state.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    name = "payload_of_a_state:Network"
    model = train(LOG, "lr", stop=0.3)
    bundle = save(model, tmp_path / "named", "m")
    frozen = save(model, tmp_path / "frozen", "m", training=False)
    model.arch = name
    inside = save(model, tmp_path / "inside", "m")
    renamed(inside, architecture="lr")
    for one in (bundle, frozen):
        renamed(one, architecture=name)
        with pytest.raises(InvalidInput, match="payload_of_a_state:Network' is not of the zoo"):
            load(one.path)
        with pytest.raises(InvalidInput, match="payload_of_a_state:Network' is not of the zoo"):
            load(one.path, NAMED)
    with pytest.raises(BundleError, match="training state is of 'payload_of_a_state:Network'"):
        load(inside.path)
    assert not (tmp_path / "ran").exists()
    assert "payload_of_a_state" not in sys.modules


@pytest.mark.parametrize(
    ("hyperparameters", "message"),
    [
        ({"hidden": [65536, 65536]}, r"network of 17,[0-9,]+ bytes where dense\.onnx has"),
        ({"hidden": [4] * 65}, "at most 64 layers"),
        ({"hidden": 5}, "not iterable"),
        ({"width": 10**9}, "width"),
        ({"width": "4"}, "width"),
        ({"dropout": 7}, "hyperparameters"),
        ({"device": "cuda"}, "device"),
    ],
)
def test_hyperparameters_of_a_bundle_take_no_memory_on_their_word(tmp_path, hyperparameters, message):
    for training in (True, False):
        bundle = save(MODEL, tmp_path / str(training), "m", training=training)
        renamed(bundle, hyperparameters={**bundle.manifest.hyperparameters, **hyperparameters})
        with pytest.raises(InvalidInput, match=message):
            load(bundle.path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tables.tags", lambda old: old + 1_000_000, "tags"),
        ("tables.touched", lambda old: np.array([1 << 40]), "touched"),
        ("tables.batch", lambda old: np.array([-5]), "sums"),
        ("tables.seen", lambda old: old[:-1].copy(), "seen"),
        ("tables.rows.squares", lambda old: old[:3].copy(), "squares"),
        ("tables.ids", lambda old: np.zeros(1_000_000, np.int64), "1000000 ids"),
        ("header", lambda old: np.frombuffer(b"[" * 50_000, np.uint8), "nested too deeply"),
        ("header", lambda old: np.frombuffer(b"{}", np.uint8), "not written by this trainer"),
        ("tables.tags", lambda old: None, "not written by this trainer"),
    ],
)
def test_a_training_state_points_at_nothing_outside_its_tables(tmp_path, key, value, message):
    """The kernels look at no bound: what they are given is looked at."""
    bundle = save(MODEL, tmp_path / "b", "m")
    name = "training/state.safetensors"
    arrays = bundle.tensors(name)
    new = value(arrays[key])
    save_file({k: v for k, v in {**arrays, key: new}.items() if v is not None}, bundle.path / name)
    raw = (bundle.path / name).read_bytes()
    files = json.loads((bundle.path / "manifest.json").read_text())["files"]
    renamed(bundle, files={**files, name: {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}})
    with pytest.raises(InvalidInput, match=message):
        load(bundle.path)


def test_what_is_no_architecture_is_refused():
    assert NAMED.find(OWN) is Gated
    with pytest.raises(InvalidInput, match="wings"):
        ClickModel.create(LOG.schema, OWN, 4, seed=0, hyperparameters={"wings": 2}, architectures=NAMED)


def test_dcnv2_is_cross_and_deep_side_by_side():
    # Paper: equation 1 and section 3.4; two inputs, one cross layer, one deep unit.
    model = DCNv2(1, 2, 0, cross=1, hidden=[1])
    with torch.no_grad():
        model.cross[0].weight.copy_(torch.tensor([[0.0, 1.0], [2.0, 0.0]]))
        model.cross[0].bias.copy_(torch.tensor([1.0, -1.0]))
        model.deep[0].weight.copy_(torch.tensor([[1.0, -2.0]]))
        model.deep[0].bias.fill_(5.0)
        model.head.weight.copy_(torch.tensor([[1.0, 10.0, 100.0]]))
        model.head.bias.fill_(0.5)
    x = torch.tensor([[[2.0, 3.0]]])
    # cross: x0 * [3 + 1, 4 - 1] + x0 = [10, 12]; deep: relu(2 - 6 + 5) = 1
    assert model(x, None, torch.zeros(1, 0)).item() == pytest.approx(10 + 120 + 100 + 0.5)


def test_fibinet_is_gate_pairs_and_a_linear_part():
    # Paper: squeeze (mean), excitation (two ReLU layers), bilinear pairs of both, equation 11; two fields of width 2.
    model = FiBiNET(2, 2, 0, reduction=2, hidden=[])
    with torch.no_grad():
        model.gate[0].weight.copy_(torch.tensor([[1.0, 1.0]]))
        model.gate[2].weight.copy_(torch.tensor([[2.0], [0.5]]))
        model.original.copy_(torch.eye(2).unsqueeze(0))
        model.gated.copy_(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]))
        model.deep[0].weight.copy_(torch.tensor([[1.0, 10.0, 100.0, 1000.0]]))
        model.deep[0].bias.zero_()
        model.first.bias.fill_(0.25)
    v = torch.tensor([[[1.0, 3.0], [2.0, -1.0]]])
    # means 2 and 0.5, squeezed to 2.5, excited to 5 and 1.25; gated vectors [5, 15] and [2.5, -1.25]
    # original pair: [1 * 2, 3 * -1] = [2, -3]; gated pair: [15 * 2.5, 5 * -1.25] = [37.5, -6.25]
    expected = 2 - 30 + 3750 - 6250 + 0.25 + 0.1 - 0.2
    assert model(v, torch.tensor([[0.1, -0.2]]), torch.zeros(1, 0)).item() == pytest.approx(expected, rel=1e-6)

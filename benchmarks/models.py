"""Models of the serving benches (39 id fields, vectors of 16, a perceptron of 3 x 400 on top), and requests to them.

Weights and rows are random, everything else is what `baton train` would write: networks of the zoo, exported and
published as bundles. The same requests come with hashed ids (for Baton) and as dense indices (for the limit and the bare
server, which so need no lookup of ids).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from pipeline.arrays import F32, I64
from pipeline.bundle.bundle import DENSE, Bundle, Table
from pipeline.bundle.versions import Repository
from pipeline.hashing import hash_column
from pipeline.schema import FieldSpec, Schema
from protos.baton.ranking.v1 import ranking_pb2 as ranking
from protos.inference import message
from transfer.bundles.publish import save
from transfer.click_model.model import ClickModel

__all__ = [
    "ARCHITECTURES",
    "FIELDS",
    "WIDTH",
    "Candidates",
    "InferRequest",
    "InferResponse",
    "Vocabulary",
    "flat_tables",
    "gathered_graph",
    "write_model",
]

ARCHITECTURES = ("deepfm", "dcnv2")
FIELDS, WIDTH, HIDDEN = 39, 16, (400, 400, 400)
CONTEXT_FRACTION = 0.6
ZIPF = 1.05

InferRequest, InferResponse = message("ModelInferRequest"), message("ModelInferResponse")


@dataclass(frozen=True)
class Vocabulary:
    """Schema, and the hashed ids of every field, int64 `[FIELDS, ids per field]`."""

    schema: Schema
    ids: I64

    @classmethod
    def make(cls, rows: int) -> Vocabulary:
        """About `rows` ids, divided among the fields; the first 60 % of the fields are context."""
        context = int(FIELDS * CONTEXT_FRACTION)
        fields = [FieldSpec(name=f"f{i}", role="context" if i < context else "candidate") for i in range(FIELDS)]
        each = np.arange(max(1, rows // FIELDS))
        return cls(Schema(fields=tuple(fields)), np.stack([hash_column(f.name, each) for f in fields]))


def write_model(
    repository: Repository, vocabulary: Vocabulary, arch: str, *, seed: int = 0
) -> tuple[Bundle, ClickModel]:
    """Publish a random model under the name of its architecture; the model can publish further versions."""
    hyperparameters = {"hidden": list(HIDDEN)}
    model = ClickModel.create(vocabulary.schema, arch, WIDTH, seed=seed, hyperparameters=hyperparameters)
    rng = np.random.default_rng(seed)
    for field, ids in zip(vocabulary.schema.fields, vocabulary.ids, strict=True):
        rows = rng.normal(0, 0.1, (len(ids), WIDTH)).astype(np.float32)
        linear = rng.normal(0, 0.1, len(ids)).astype(np.float32) if model.network.uses_linear else None
        model.tables.set_rows(field.name, Table(ids, rows, np.ones(len(ids), np.int64), linear))
    return save(model, repository, arch, training=False), model


def gathered_graph(bundle: Bundle, vocabulary: Vocabulary, path: Path) -> None:
    """Write the whole model as one ONNX graph: `index` int64 `[n, FIELDS]` into all tables, one after the other, to
    `score` float32 `[n]`."""
    rows, first = flat_tables(bundle, vocabulary)
    weights = {"rows": rows}
    shape = {"vectors": FIELDS * WIDTH}
    nodes = [
        helper.make_node("Gather", ["rows", "index"], ["gathered"], axis=0),
        helper.make_node("Reshape", ["gathered", "vectors_shape"], ["vectors"]),
    ]
    joined = [("vectors", "embeddings")]
    if bundle.manifest.linear:
        weights["weights"] = first
        nodes.append(helper.make_node("Gather", ["weights", "index"], ["first"], axis=0))
        shape["first"] = FIELDS
        joined.append(("first", "linear"))
    initialisers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    initialisers.append(numpy_helper.from_array(np.array([-1, FIELDS * WIDTH], np.int64), "vectors_shape"))
    front = helper.make_graph(
        nodes,
        "tables",
        [helper.make_tensor_value_info("index", TensorProto.INT64, ["n", FIELDS])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width]) for name, width in shape.items()],
        initialisers,
    )
    dense = onnx.load(str(bundle.file(DENSE)))
    model = compose.merge_models(
        _like(front, dense), compose.add_prefix(dense, "dense/"), [(a, f"dense/{b}") for a, b in joined]
    )
    calibration = bundle.manifest.calibration
    back = helper.make_graph(
        [
            helper.make_node("Mul", ["raw", "alpha"], ["scaled"]),
            helper.make_node("Add", ["scaled", "beta"], ["calibrated"]),
            helper.make_node("Sigmoid", ["calibrated"], ["score"]),
        ],
        "calibration",
        [helper.make_tensor_value_info("raw", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n"])],
        [
            numpy_helper.from_array(np.array(calibration.alpha, np.float32), "alpha"),
            numpy_helper.from_array(np.array(calibration.beta, np.float32), "beta"),
        ],
    )
    onnx.save(compose.merge_models(model, _like(back, dense), [("dense/logit", "raw")]), str(path))


def flat_tables(bundle: Bundle, vocabulary: Vocabulary) -> tuple[F32, F32]:
    """Rows `[V, WIDTH]` and weights `[V]` (empty without weights per id) of all tables, one field after the other."""
    fields = zip(vocabulary.schema.fields, vocabulary.ids, strict=True)
    tables = [_in_order(bundle.table(field.name), ids) for field, ids in fields]
    return np.concatenate([rows for rows, _ in tables]), np.concatenate([linear for _, linear in tables])


def _in_order(table: Table, ids: I64) -> tuple[F32, F32]:
    """A table's rows and weights in the order of `ids` instead of sorted by id."""
    places = np.searchsorted(table.ids, ids)
    linear = np.zeros(0, np.float32) if table.linear is None else table.linear[places]
    return np.asarray(table.rows[places], np.float32), np.asarray(linear, np.float32)


def _like(graph: onnx.GraphProto, model: onnx.ModelProto) -> onnx.ModelProto:
    return helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)


@dataclass(frozen=True)
class Candidates:
    """Requests of n candidates, by popularity: `picks` int64 `[requests, n, FIELDS]`, places within each field's ids."""

    vocabulary: Vocabulary
    picks: I64

    @classmethod
    def draw(cls, vocabulary: Vocabulary, n: int, requests: int, seed: int = 0, *, shared: bool = True) -> Candidates:
        """Zipf-distributed ids; `shared`: all candidates of a request have the same values of the context fields."""
        rng = np.random.default_rng(seed)
        size = vocabulary.ids.shape[1]
        # Popular ids lie anywhere in a table, as hashed ids do.
        picks = rng.permutation(size)[rng.zipf(ZIPF, (requests, n, FIELDS)) % size]
        if shared:
            context = [i for i, f in enumerate(vocabulary.schema.fields) if f.role == "context"]
            picks[:, :, context] = picks[:, :1, context]
        return cls(vocabulary, picks)

    @property
    def hashed(self) -> I64:
        """Ids as clients send them, int64 `[requests, n, FIELDS]`."""
        hashed: I64 = self.vocabulary.ids[np.arange(FIELDS), self.picks]
        return hashed

    @property
    def dense(self) -> I64:
        """Rows of `gathered_graph`, int64 `[requests, n, FIELDS]`."""
        index: I64 = self.picks + np.arange(FIELDS) * self.vocabulary.ids.shape[1]
        return index

    def infer_bodies(self, model: str, ids: I64, name: str = "ids") -> list[bytes]:
        """Serialised ModelInfer requests with one raw tensor."""
        return [_infer_body(model, name, matrix) for matrix in ids]

    def rank_bodies(self, endpoint: str) -> list[bytes]:
        """Serialised RankRequests: the context once, the rest per candidate."""
        fields = self.vocabulary.schema.fields
        sides = {role: [i for i, f in enumerate(fields) if f.role == role] for role in ("context", "candidate")}
        names = {role: [fields[i].name for i in columns] for role, columns in sides.items()}
        bodies = []
        for matrix in self.hashed:
            request = ranking.RankRequest(endpoint=endpoint)
            _fill(request.context.ids, names["context"], matrix[:1, sides["context"]])
            _fill(request.candidates.ids, names["candidate"], matrix[:, sides["candidate"]])
            bodies.append(request.SerializeToString())
        return bodies


def _infer_body(model: str, name: str, matrix: I64) -> bytes:
    request = InferRequest(model_name=model)
    request.inputs.add(name=name, datatype="INT64", shape=list(matrix.shape))
    request.outputs.add(name="score")
    request.raw_input_contents.append(np.ascontiguousarray(matrix, "<i8").tobytes())
    return bytes(request.SerializeToString())


def _fill(matrix: ranking.IdMatrix, names: list[str], values: I64) -> None:
    matrix.fields.extend(names)
    matrix.values.extend(values.reshape(-1).tolist())

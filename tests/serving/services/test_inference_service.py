from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.rpc import error_details_pb2, status_pb2
from handmade import EXTREME, SCHEMA, Reference, random_rows
from installation import Installation, RunningLane
from tritonclient.utils import InferenceServerException

from pipeline.features import Features, Rows
from pipeline.traffic.log import FeedbackEntry, Outcome
from protos.inference import SERVICE, message
from serving.client import RankingClient

Served = tuple[Installation, RunningLane]
N = 12


@pytest.fixture
def client(served: Served) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(served[1].target)
    yield client
    client.close()


def call(target: str, method: str, request: Any, timeout: float = 10, **more: Any) -> Any:
    """A plain grpc client."""
    with grpc.insecure_channel(target, options=[("grpc.max_send_message_length", -1)]) as channel:
        rpc = channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=lambda m: m if isinstance(m, bytes) else m.SerializeToString(),
            response_deserializer=message(f"{method}Response").FromString,
        )
        return rpc(request, timeout=timeout, **more)


def rows_of(made: Installation, n: int = N, seed: int = 3) -> Rows:
    """Rows whose context fields are equal, so that `Rank` can send them too."""
    features = Features.from_context(SCHEMA, random_rows(np.random.default_rng(seed), n, made.tables))
    return features.rows(SCHEMA)


def padded(rows: Rows, bag: int) -> np.ndarray[Any, Any]:
    b = rows.bags[bag]
    width = max(1, int(np.diff(b.offsets).max()))
    out = np.zeros((b.rows, width), np.int64)
    for i in range(b.rows):
        values = b.values[b.offsets[i] : b.offsets[i + 1]]
        out[i, : len(values)] = values
    return out


def packed(rows: Rows) -> dict[str, tuple[str, np.ndarray[Any, Any]]]:
    return {
        "ids": ("INT64", np.ascontiguousarray(rows.ids)),
        "numbers": ("FP32", np.ascontiguousarray(rows.numbers)),
        "bag:tags": ("INT64", padded(rows, 0)),
        "bag:genres": ("INT64", padded(rows, 1)),
    }


def triton_inputs(tensors: dict[str, tuple[str, np.ndarray[Any, Any]]]) -> list[Any]:
    inputs = []
    for name, (datatype, values) in tensors.items():
        tensor = triton.InferInput(name, list(values.shape), datatype)
        tensor.set_data_from_numpy(values)
        inputs.append(tensor)
    return inputs


def plain(rows: Rows, *, raw: bool) -> Any:
    request = message("ModelInferRequest")(model_name="ranker", id="abc")
    for name, (datatype, values) in packed(rows).items():
        tensor = request.inputs.add(name=name, datatype=datatype, shape=values.shape)
        if raw:
            request.raw_input_contents.append(values.tobytes())
        elif datatype == "INT64":
            tensor.contents.int64_contents.extend(values.ravel().tolist())
        else:
            tensor.contents.fp32_contents.extend(values.ravel().tolist())
    return request


def kserve(target: str, rows: Rows, folder: Path) -> Any:
    """Scores by kserve's client, asked raw and typed."""
    np.savez(folder / "inputs.npz", **{name: values for name, (_, values) in packed(rows).items()})
    script = Path(__file__).parents[2] / "support" / "kserve_client.py"
    done = subprocess.run(
        [sys.executable, script, target, folder / "inputs.npz", folder / "scores.npz"],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return np.load(folder / "scores.npz")


def test_every_client_gets_the_same_scores_for_the_same_rows(served: Served, client: Any, tmp_path: Path) -> None:
    made, lane = served
    rows = rows_of(made)
    expected = Reference([made.repository.open("teacher", "1")]).score(rows)

    by_triton = client.infer("ranker", triton_inputs(packed(rows))).as_numpy("score")
    by_raw = np.frombuffer(call(lane.target, "ModelInfer", plain(rows, raw=True)).raw_output_contents[0], "<f4")
    by_typed = list(call(lane.target, "ModelInfer", plain(rows, raw=False)).outputs[0].contents.fp32_contents)

    by_kserve = kserve(lane.target, rows, tmp_path)
    with RankingClient(lane.target) as ranking:
        by_rank = ranking.rank("ranker", SCHEMA, Features.from_context(SCHEMA, rows)).scores
    for got in (by_triton, by_raw, by_typed, by_kserve["raw"], by_kserve["typed"], by_rank):
        assert np.shape(got) == (N,)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(np.asarray(got, np.float32), by_rank)


def test_named_inputs_score_as_their_hashes_do(served: Served, client: Any) -> None:
    from pipeline.hashing import hash_bag_column, hash_column

    text = {
        "user": ["ann", "", "bob"],
        "item": [3, -7, 12],
        "tags": ["a,b", "", "c"],
        "genres": ["x", "y|z", ""],
    }
    numbers = {"age": [1.0, np.nan, 3.0], "price": [0.5, 0.25, 2.0]}
    tensors: dict[str, tuple[str, np.ndarray[Any, Any]]] = {
        name: ("BYTES", np.array([v.encode() for v in text[name]], np.object_)) for name in ("user", "tags", "genres")
    }
    tensors["item"] = ("INT64", np.array([[v] for v in text["item"]], np.int64))
    tensors |= {name: ("FP32", np.array(v, np.float32)) for name, v in numbers.items()}
    named = client.infer("ranker", triton_inputs(tensors)).as_numpy("score")

    from pipeline.features import Bag

    rows = Rows(
        np.stack([hash_column("user", text["user"]), hash_column("item", text["item"])], 1),
        np.array([numbers["age"], numbers["price"]], np.float32).T,
        (Bag(0, *hash_bag_column("tags", text["tags"], ",")), Bag(1, *hash_bag_column("genres", text["genres"], "|"))),
    )
    by_hash = client.infer("ranker", triton_inputs(packed(rows))).as_numpy("score")
    np.testing.assert_array_equal(named, by_hash)


@pytest.mark.parametrize("kind", ["BYTES", "INT64"])
@pytest.mark.parametrize("many", [N, 200])
def test_clicks_on_a_triton_answer_by_request_id_and_item_id(served: Served, client: Any, kind: str, many: int) -> None:
    made, lane = served
    request_id = f"page-{kind}-{many}"
    numbers = np.arange(many, dtype=np.int64)
    named = np.array([f"item-{i}".encode() for i in numbers], np.object_) if kind == "BYTES" else 10 * numbers
    plain = client.infer("ranker", triton_inputs(packed(rows_of(made, many)))).as_numpy("score")
    inputs = triton_inputs({"candidate_ids": (kind, named), **packed(rows_of(made, many))})
    answer = client.infer("ranker", inputs, request_id=request_id)
    np.testing.assert_array_equal(answer.as_numpy("score"), plain)
    click = Outcome(name="item-3" if kind == "BYTES" else "30", label=1.0)
    with RankingClient(lane.target) as labels:
        entry = FeedbackEntry(request_id=request_id, endpoint="ranker", outcomes=[click])
        assert labels.feedback([entry])[0].outcomes == ("accepted",)
        by_id = answer.get_response().parameters["prediction_id"].string_param
        assert labels.feedback([FeedbackEntry(by_id, outcomes=[Outcome(3, 1.0)])])[0].outcomes == ("duplicate",)


@pytest.mark.parametrize(
    ("kind", "named", "why"),
    [
        ("INT64", np.arange(N - 1), f"has {N - 1} ids for {N} candidates"),
        ("INT64", np.zeros(N, np.int64), "must all be different"),
        ("FP32", np.arange(N, dtype=np.float32), "is BYTES or INT64"),
    ],
)
def test_candidate_ids_that_are_none(served: Served, client: Any, kind: str, named: Any, why: str) -> None:
    inputs = triton_inputs({**packed(rows_of(served[0])), "candidate_ids": (kind, named)})
    with pytest.raises(InferenceServerException, match=why):
        client.infer("ranker", inputs)


def test_any_id_never_seen_scores_with_the_default_row(served: Served, client: Any) -> None:
    made, _ = served
    known = set(made.tables["item"].ids.tolist())
    unknown = [v for v in (2, -3, 2**62 + 5, -(2**62) - 5, 1 << 40) if v not in known]
    rows = Rows(
        np.array([[5, v] for v in [*unknown, *EXTREME.tolist()]], np.int64),
        np.zeros((len(unknown) + len(EXTREME), 2), np.float32),
        rows_of(made, len(unknown) + len(EXTREME)).bags,
    )
    scores = client.infer("ranker", triton_inputs(packed(rows))).as_numpy("score")
    expected = Reference([made.repository.open("teacher", "1")]).score(rows)
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_the_answer_says_who_gave_it(served: Served, client: Any) -> None:
    made, _ = served
    inputs = triton_inputs(packed(rows_of(made)))
    parameters = client.infer("ranker", inputs, request_id="r9").get_response()
    assert parameters.id == "r9"
    assert parameters.parameters["arm"].string_param == "stable"
    assert parameters.parameters["version"].string_param == parameters.model_version == "1"
    assert len(parameters.parameters["prediction_id"].string_param) == 32
    by_name = client.infer("student", inputs, model_version="1").get_response()
    assert by_name.parameters["arm"].string_param == "direct"
    chosen = client.infer("ranker", inputs, parameters={"arm": "candidate", "routing_key": "k"})
    assert chosen.get_response().parameters["arm"].string_param == "candidate"
    np.testing.assert_array_equal(chosen.as_numpy("score"), client.infer("student", inputs).as_numpy("score"))


def test_triton_clients_find_their_way_round(served: Served, client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("ranker")
    assert client.is_model_ready("teacher", "1")
    assert client.get_server_metadata().extensions == ["model_repository", "statistics", "model_configuration"]
    assert [i.name for i in client.get_model_metadata("ranker").inputs] == ["ids", "numbers", "bag:tags", "bag:genres"]
    config = client.get_model_config("ranker").config
    assert (config.name, config.max_batch_size) == ("ranker", 1000)
    ready = {(m.name, m.version, m.state) for m in client.get_model_repository_index().models}
    assert ready == {("teacher", "1", "READY"), ("student", "1", "READY"), ("ranker", "1", "READY")}


def test_statistics_count_what_was_answered(served: Served, client: Any) -> None:
    def student() -> Any:
        return client.get_inference_statistics("student", "1").model_stats[0]

    before = student()
    client.infer("student", triton_inputs(packed(rows_of(served[0]))))
    after = student()
    assert after.execution_count == before.execution_count + 1
    assert after.inference_count == before.inference_count + N
    assert after.inference_stats.success.ns > before.inference_stats.success.ns
    assert after.inference_stats.compute_infer.ns > before.inference_stats.compute_infer.ns
    assert after.last_inference > 0


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        (lambda r: setattr(r, "model_name", "nobody"), grpc.StatusCode.NOT_FOUND, None),
        (
            lambda r: (setattr(r, "model_name", "teacher"), setattr(r, "model_version", "9")),
            grpc.StatusCode.NOT_FOUND,
            None,
        ),
        (lambda r: setattr(r, "model_version", "1"), grpc.StatusCode.INVALID_ARGUMENT, "model_version"),
        (lambda r: r.inputs[0].shape.append(3), grpc.StatusCode.INVALID_ARGUMENT, "ids"),
        (lambda r: setattr(r.inputs[1], "name", "number"), grpc.StatusCode.INVALID_ARGUMENT, "number"),
        (
            lambda r: r.inputs[1].contents.fp32_contents.__setitem__(0, float("inf")),
            grpc.StatusCode.INVALID_ARGUMENT,
            "age",
        ),
        (lambda r: r.inputs.pop(1), grpc.StatusCode.INVALID_ARGUMENT, "numbers"),
        (lambda r: setattr(r.parameters["arm"], "string_param", "best"), grpc.StatusCode.INVALID_ARGUMENT, "arm"),
        (lambda r: setattr(r.parameters["arm"], "int64_param", 1), grpc.StatusCode.INVALID_ARGUMENT, "arm"),
        (lambda r: setattr(r.parameters["timeout"], "int64_param", -1), grpc.StatusCode.INVALID_ARGUMENT, "timeout"),
        (lambda r: setattr(r.parameters["timeout"], "int64_param", 1), grpc.StatusCode.DEADLINE_EXCEEDED, None),
    ],
)
def test_a_bad_request_gets_its_code_and_the_server_goes_on(
    served: Served, change: Any, code: grpc.StatusCode, field: str | None
) -> None:
    made, lane = served
    request = plain(rows_of(made), raw=False)
    change(request)
    with pytest.raises(grpc.RpcError) as caught:
        call(lane.target, "ModelInfer", request)
    assert caught.value.code() is code
    if field is not None:
        trailing = dict(caught.value.trailing_metadata())
        status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
        violation = error_details_pb2.BadRequest()
        assert status.details[1].Unpack(violation)
        assert violation.field_violations[0].field == field
    assert len(call(lane.target, "ModelInfer", plain(rows_of(made), raw=True)).raw_output_contents[0]) == 4 * N


@pytest.mark.parametrize(
    "body", [b"\xff" * 100, b"\0" * (2 << 20), bytes(100 << 20)], ids=["garbage", "2 MB", "100 MB"]
)
def test_a_body_that_is_no_request_or_too_large_is_refused(served: Served, body: bytes) -> None:
    made, lane = served
    with pytest.raises(grpc.RpcError) as caught:
        call(lane.target, "ModelInfer", body, timeout=30)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    call(lane.target, "ModelInfer", plain(rows_of(made), raw=True))


def test_models_are_loaded_and_unloaded_by_name(installation: Installation) -> None:
    from installation import running

    installation.publish("spare", 5)
    with running(installation.config) as lane:
        client = triton.InferenceServerClient(lane.target)
        inputs = triton_inputs(packed(rows_of(installation)))
        assert not client.is_model_ready("spare")
        with pytest.raises(InferenceServerException, match="NOT_FOUND"):
            client.infer("spare", inputs)
        client.load_model("spare")
        assert client.is_model_ready("spare")
        client.infer("spare", inputs)
        client.unload_model("spare")
        assert not client.is_model_ready("spare")
        with pytest.raises(InferenceServerException, match="NOT_FOUND"):
            client.load_model("../spare")
        with pytest.raises(InferenceServerException, match="FAILED_PRECONDITION"):
            client.unload_model("teacher")
        with pytest.raises(InferenceServerException, match="INVALID_ARGUMENT"):
            client.load_model("spare", config="{}")
        client.close()

"""Calls to other servers on real sockets: what a model there is sent, and what becomes of answers that are late, odd or
hostile."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import trustme
from installation import eventually
from scripted_server import Answer, ScriptedServer, response, tensors

from pipeline.bundle.bundle import Bundle
from pipeline.clock import SystemClock
from pipeline.errors import (
    BundleError,
    DeadlineExceeded,
    InvalidInput,
    NotFinite,
    RemoteFault,
    RemoteTimeout,
    RemoteUnavailable,
)
from pipeline.event import Event
from pipeline.features import Bag, Features, Rows
from pipeline.hashing import hash_value
from pipeline.model.remote import RemoteModel
from serving.config.remote import RemoteConfig
from serving.lane.remote import RemoteServers
from transfer.bundles.remote.importing import RemoteFile, import_remote

FIELDS = [
    {"name": "country", "role": "context"},
    {"name": "age", "role": "context", "kind": "number"},
    {"name": "item", "role": "candidate"},
    {"name": "price", "role": "candidate", "kind": "number"},
    {"name": "tags", "role": "candidate", "kind": "bag", "separator": ","},
]
COUNTRIES = {"de": 1, "fr": 2}
MATRIX = {"INPUT__0": {"fields": ["price", "age", "country"], "dtype": "FP32"}}
CLICK = {"click": {"name": "OUTPUT__0", "column": 1}}


def bundle_of(folder: Path, target: str, **parts: Any) -> Bundle:
    remote = {"address": f"grpc://{target}", "model": "ranker", "timeout_ms": 2000, **parts.pop("remote", {})}
    spec = {
        "remote": remote,
        "fields": FIELDS,
        "inputs": MATRIX,
        "codes": {"country": COUNTRIES},
        "outputs": CLICK,
        **parts,
    }
    return import_remote(RemoteFile.model_validate(spec), folder / "bundle", name="away")


def opened(folder: Path, server: ScriptedServer, **parts: Any) -> RemoteModel:
    servers = RemoteServers(RemoteConfig(), SystemClock())
    return RemoteModel.open(bundle_of(folder, server.target, **parts), servers.connect)


def request_of(
    model: RemoteModel, n: int = 3, *, country: str = "fr", price: float = 1.0, age: float = 30.0
) -> Features:
    countries = np.full(n, hash_value("country", country))
    items = np.array([hash_value("item", i) for i in range(n)], np.int64)
    numbers = np.stack([np.full(n, age), price + np.arange(n)], 1).astype(np.float32)
    tags = np.array([hash_value("tags", tag) for tag in "abc"], np.int64)
    bag = Bag(0, np.array([0, 3, *[3] * (n - 1)], np.int32), tags)
    return Features.from_context(model.schema, Rows(np.stack([countries, items], 1), numbers, (bag,)))


def by_price(request: Any, context: Any) -> Any:
    """Two columns: 0, and a tenth of the first number."""
    matrix = tensors(request)["INPUT__0"]
    return response(np.stack([0 * matrix[:, 0], np.abs(matrix[:, 0]) / 100], 1).astype(np.float32))


def test_a_model_there_is_sent_the_matrix_that_it_was_trained_on(tmp_path: Path) -> None:
    with ScriptedServer(by_price) as server:
        model = opened(tmp_path, server)
        assert np.allclose(model.score(request_of(model)), [0.01, 0.02, 0.03], atol=1e-7)
        assert np.array_equal(tensors(server.seen[-1])["INPUT__0"], [[1, 30, 2], [2, 30, 2], [3, 30, 2]])
        model.score(request_of(model, country="it", age=np.nan))
        sent = tensors(server.seen[-1])["INPUT__0"]
        assert np.isnan(sent[:, 1]).all()
        assert (sent[:, 2] == -1).all()
        report = model.report()
        assert (report.calls, report.rows, report.ids, report.unknown) == (2, 6, 6 - 4, 1)


def test_inputs_of_all_kinds(tmp_path: Path) -> None:
    inputs = {
        "user": {"fields": ["age"], "dtype": "INT32", "per_request": True},
        "country": {"field": "country"},
        "items": {"field": "item", "hashed": True, "shape": ["n"]},
        "tags": {"field": "tags", "pad_to": 2, "pad": 9, "dtype": "INT32"},
        "price": {"field": "price", "dtype": "FP64", "shape": ["n", 1, 1]},
    }
    parts = {"inputs": inputs, "codes": {"country": {"de": "DE", "fr": "FR"}, "tags": {"a": 1, "b": 2, "c": 3}}}

    def answer(request: Any, context: Any) -> Any:
        return response(np.full((request.inputs[4].shape[0], 2), 0.5, np.float32))

    with ScriptedServer(answer) as server:
        model = opened(tmp_path, server, **parts)
        model.score(request_of(model))
        sent = server.seen[-1]
        assert [tuple(put.shape) for put in sent.inputs] == [(1, 1), (3, 1), (3,), (3, 2), (3, 1, 1)]
        assert sent.raw_input_contents[1] == b"\x02\0\0\0FR" * 3
        found = tensors(sent)
        assert found["user"].tolist() == [[30]]
        assert found["items"].tolist() == [hash_value("item", i) for i in range(3)]
        assert found["tags"].tolist() == [[2, 3], [9, 9], [9, 9]]  # the last elements, as long as they fit
        before = len(server.seen)
        two = [model.embed(request_of(model)), model.embed(request_of(model))]
        assert len(model.infer_batch(two)) == 2
        assert len(server.seen) == before + 2, "context that is sent once makes a call per request"
        with pytest.raises(InvalidInput, match="'age' is missing, and input 'user'"):
            model.embed(request_of(model, age=np.nan))
        with pytest.raises(InvalidInput, match=r"'age' is 30.5"):
            model.embed(request_of(model, age=30.5))
        rows = request_of(model).rows(model.schema)
        rows.numbers[:, 0] = [1, 2, 3]
        with pytest.raises(InvalidInput, match="'age' differs between the rows"):
            model.embed(Features.from_rows(rows))


def test_requests_share_calls_of_so_many_rows(tmp_path: Path) -> None:
    with ScriptedServer(by_price) as server:
        model = opened(tmp_path, server, remote={"max_rows": 8})
        windows = [model.embed(request_of(model, n, price=n)) for n in (3, 4, 5, 20)]
        scores = model.infer_batch(windows)
        for n, found in zip((3, 4, 5, 20), scores, strict=True):
            assert isinstance(found, np.ndarray)
            assert np.allclose(found, (n + np.arange(n)) / 100, atol=1e-6)
        assert [request.inputs[0].shape[0] for request in server.seen] == [7, 5, 8, 8, 4]


def raising(code: grpc.StatusCode) -> Answer:
    def answer(request: Any, context: Any) -> Any:
        context.abort(code, "somewhere.internal:9 says no")

    return answer


def two_answers(values: np.ndarray, **how: Any) -> Answer:
    return lambda request, context: response(values.astype(np.float32), **how)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (two_answers(np.full((2, 2), 0.5)), "shape"),
        (two_answers(np.full((3, 1), 0.5)), "column 1"),
        (two_answers(np.full((3, 2), 0.5), shape=(3, 4)), "in 24 bytes"),
        (two_answers(np.full((3, 2), 0.5), shape=(3, -2)), "shape"),
        (two_answers(np.full((3, 2), 0.5), name="other"), "no output 'OUTPUT__0'"),
        (two_answers(np.full((3, 2), 0.5), datatype="BYTES"), "BYTES"),
        (two_answers(np.full((3, 2), 7.0)), "no probability"),
        (lambda request, context: b"\xff\xff\xff", "no ModelInferResponse"),
        (two_answers(np.zeros((2_500_000, 2))), "more than 16,777,216 bytes"),
        (raising(grpc.StatusCode.INVALID_ARGUMENT), "refuses the call"),
        (raising(grpc.StatusCode.CANCELLED), "refuses the call"),
    ],
)  # fmt: skip
def test_answers_that_cannot_be_used_are_errors_and_close_nothing(tmp_path: Path, answer: Answer, said: str) -> None:
    with ScriptedServer(by_price) as server:
        model = opened(tmp_path, server)
        server.answer = answer
        for _ in range(4):
            with pytest.raises(RemoteFault, match=said) as caught:
                model.score(request_of(model))
            assert "internal" not in str(caught.value), "what it says is for the log"
        server.answer = by_price
        assert len(model.score(request_of(model))) == 3
        assert model.report().failed == {"RemoteFault": 4}


def test_a_score_that_is_not_finite_fails_its_own_request_alone(tmp_path: Path) -> None:
    with ScriptedServer(by_price) as server:
        model = opened(tmp_path, server)
        ill, fine = model.infer_batch([model.embed(request_of(model, price=np.nan)), model.embed(request_of(model))])
        assert isinstance(ill, NotFinite)
        assert isinstance(fine, np.ndarray)


def test_logits_and_typed_contents_are_read(tmp_path: Path) -> None:
    def answer(request: Any, context: Any) -> Any:
        made = response(np.zeros((3,), np.float32), name="logit")
        made.ClearField("raw_output_contents")
        made.outputs[0].contents.fp32_contents.extend([-1.0, 0.0, 1.0])
        return made

    with ScriptedServer(answer) as server:
        model = opened(tmp_path, server, outputs={"click": {"name": "logit", "kind": "logit"}})
        assert np.allclose(model.score(request_of(model)), 1 / (1 + np.exp([1.0, 0.0, -1.0])), atol=1e-7)


def hanging(release: threading.Event) -> Answer:
    def answer(request: Any, context: Any) -> Any:
        release.wait(20)
        return by_price(request, context)

    return answer


def test_the_breaker_opens_and_a_server_that_lives_again_is_found_by_itself(tmp_path: Path) -> None:
    release = threading.Event()
    with ScriptedServer(by_price) as server:
        model = opened(tmp_path, server, remote={"timeout_ms": 30})
        server.answer, server.ready = hanging(release), False
        for _ in range(3):
            with pytest.raises(RemoteTimeout, match="within 30 ms"):
                model.score(request_of(model))
        with pytest.raises(RemoteUnavailable, match="not asked now"):
            model.score(request_of(model))
        assert not model.available
        assert (model.report().breaker, model.report().opened) == ("open", 1)
        release.set()
        server.answer, server.ready = by_price, True
        eventually(lambda: model.available, "the watch has found it")
        assert len(model.score(request_of(model))) == 3
        assert model.report().breaker == "closed"
        assert model.report().reason == ""


def test_a_deadline_of_the_caller_is_no_fault_of_the_server(tmp_path: Path) -> None:
    release = threading.Event()
    with ScriptedServer(by_price) as server:
        model = opened(tmp_path, server)
        server.answer = hanging(release)
        for _ in range(5):
            wait = Event(deadline=model.network.clock.monotonic() + 0.03)
            with pytest.raises(RemoteTimeout, match="within the deadline"):
                model.infer(model.embed(request_of(model)), wait)
        assert model.available
        release.set()
        server.answer = by_price
        now = model.network.clock.monotonic()
        waits = [Event(deadline=now - 1), Event(deadline=now + 20), Event(deadline=now + 20, cancelled=True)]
        late, fine, gone = model.infer_batch([model.embed(request_of(model)) for _ in waits], waits)
        assert isinstance(late, DeadlineExceeded)
        assert isinstance(fine, np.ndarray)
        assert "Cancelled" in type(gone).__name__


def test_one_short_deadline_of_a_batch_does_not_fail_the_others(tmp_path: Path) -> None:
    release = threading.Event()
    with ScriptedServer(by_price) as server:
        model = opened(tmp_path, server)
        server.answer = hanging(release)
        now = model.network.clock.monotonic()
        waits = [Event(deadline=now + 0.1), Event(deadline=now + 20)]
        windows = [model.embed(request_of(model)) for _ in waits]
        threading.Timer(0.3, release.set).start()
        short, long = model.infer_batch(windows, waits)
        assert isinstance(short, RemoteTimeout)
        assert isinstance(long, np.ndarray)
        assert [request.inputs[0].shape[0] for request in server.seen] == [6, 3]


def test_a_call_ends_once_all_its_callers_have_gone(tmp_path: Path) -> None:
    release = threading.Event()
    with ScriptedServer(by_price) as server:
        model = opened(tmp_path, server, remote={"timeout_ms": 20_000})
        server.answer = hanging(release)
        waits = [Event(), Event()]
        found: list[Any] = []
        windows = [model.embed(request_of(model)) for _ in waits]
        thread = threading.Thread(target=lambda: found.extend(model.infer_batch(windows, waits)))
        thread.start()
        eventually(lambda: waits[0].abandon is not None and bool(server.seen), "the call is on its way")
        for wait in waits:
            assert not found
            wait.cancelled = True
            abandon: Callable[[], None] | None = wait.abandon
            assert abandon is not None
            abandon()
        thread.join(10)
        assert [type(error).__name__ for error in found] == ["CancelledError", "CancelledError"]
        assert server.cancelled.wait(10)
        release.set()
        assert model.available


def test_a_server_is_looked_at_before_it_serves(tmp_path: Path) -> None:
    inputs, outputs = {"INPUT__0": ("FP32", [-1, 3])}, {"OUTPUT__0": ("FP32", [-1, 2])}
    with ScriptedServer(by_price, inputs, outputs) as server:
        opened(tmp_path / "a", server).warm()
        server.ready = False
        with pytest.raises(RemoteUnavailable, match="not ready"):
            opened(tmp_path / "b", server)
        server.ready = True
        server.inputs = {"INPUT__0": ("FP64", [-1, 4]), "more": ("INT64", [-1])}
        server.outputs = {"OUTPUT__0": ("FP32", [-1, 1])}
        with pytest.raises(BundleError) as caught:
            opened(tmp_path / "c", server)
        for what in ("FP64 there", "shape [-1, 4] there", "'more' is needed", "column 1 is wanted"):
            assert what in str(caught.value)
    with pytest.raises(RemoteUnavailable, match="cannot be asked: UNAVAILABLE"):
        opened(tmp_path / "d", server)


def test_a_bundle_names_no_address_that_the_installation_does_not(tmp_path: Path) -> None:
    servers = RemoteServers(RemoteConfig(addresses=("triton:8001",)), SystemClock())
    servers.connect(bundle_of(tmp_path / "a", "triton:8001").remote_spec())
    with pytest.raises(BundleError, match=r"may not call elsewhere:8001: add it to `remote.addresses`"):
        servers.connect(bundle_of(tmp_path / "b", "elsewhere:8001").remote_spec())


def test_a_server_with_tls_is_asked_with_the_certificates_of_the_configuration(tmp_path: Path) -> None:
    servers, clients = trustme.CA(), trustme.CA()
    mine, theirs = clients.issue_cert("baton@example.org"), servers.issue_cert("127.0.0.1")
    credentials = grpc.ssl_server_credentials(
        [(theirs.private_key_pem.bytes(), theirs.cert_chain_pems[0].bytes())],
        clients.cert_pem.bytes(),
        require_client_auth=True,
    )
    files = {"tls_ca": servers.cert_pem, "tls_cert": mine.cert_chain_pems[0], "tls_key": mine.private_key_pem}
    for name, blob in files.items():
        blob.write_to_path(tmp_path / name)
    config = RemoteConfig(**{name: Path(name) for name in files}).below(tmp_path)
    with ScriptedServer(by_price, credentials=credentials) as server:
        bundle = bundle_of(tmp_path, server.target, remote={"tls": True})
        model = RemoteModel.open(bundle, RemoteServers(config, SystemClock()).connect)
        assert len(model.score(request_of(model))) == 3
        with pytest.raises(RemoteUnavailable):
            RemoteModel.open(bundle, RemoteServers(RemoteConfig(tls_ca=config.tls_ca), SystemClock()).connect)
        with pytest.raises(BundleError, match="nothing cannot be read"):
            RemoteModel.open(bundle, RemoteServers(RemoteConfig(tls_ca=tmp_path / "nothing"), SystemClock()).connect)


def test_a_version_that_is_gone_keeps_no_connections(tmp_path: Path) -> None:
    with ScriptedServer(by_price) as server:
        servers = RemoteServers(RemoteConfig(), SystemClock())
        model = RemoteModel.open(bundle_of(tmp_path, server.target), servers.connect)
        caller = weakref.ref(model.network)
        assert caller() is not None
        del model
        gc.collect()
        eventually(lambda: caller() is None, "the caller is collected, which closes its channels")

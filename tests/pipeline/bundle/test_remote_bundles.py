"""Bundles at a URL: fetched once, verified, never seen in part, published, pruned everywhere."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from handmade import random_tables, write_bundle

from pipeline.bundle.bundle import Bundle, sha256_of
from pipeline.bundle.remote import RemoteRepository
from pipeline.bundle.versions import Repository
from pipeline.errors import BundleError, InvalidInput, NotFound, NotReady

TABLES = random_tables(1)


def publish(repository: Repository, name: str = "ranker") -> Bundle:
    return write_bundle(repository, TABLES, name=name)


def remote(root: Path, url: str, **settings: object) -> RemoteRepository:
    return RemoteRepository(root, url, refresh=0.0, **settings)  # type: ignore[arg-type]


def same(one: Bundle, other: Bundle) -> bool:
    return one.manifest == other.manifest and all(
        sha256_of(one.path / name) == sha256_of(other.path / name) for name in one.manifest.files
    )


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/shared" if request.param == "file" else f"memory://{uuid.uuid4().hex}"


class Served(http.server.ThreadingHTTPServer):
    """A folder over HTTP. `asked`: GETs by path. A path in `held` sends half of its file and then nothing more."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.asked: Counter[str] = Counter()
        self.held: set[str] = set()
        self.holding = threading.Event()
        self.release = threading.Event()
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Served)
        server.asked[self.path] += 1
        super().do_GET()

    def copyfile(self, source, outputfile) -> None:  # type: ignore[no-untyped-def]
        server = self.server
        assert isinstance(server, Served)
        if any(self.path.endswith(name) for name in server.held):
            content = source.read()
            outputfile.write(content[: len(content) // 2])
            outputfile.flush()
            server.holding.set()
            server.release.wait(60)
            return
        with contextlib.suppress(BrokenPipeError):
            super().copyfile(source, outputfile)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path / "shared")
    thread = threading.Thread(target=served.serve_forever, name="bundles-http", daemon=True)
    thread.start()
    yield served
    served.release.set()
    served.shutdown()
    served.server_close()
    thread.join(10)


def fetching(root: Path, url: str) -> subprocess.Popen[bytes]:
    code = (
        "import sys; from pathlib import Path; from pipeline.bundle.remote import RemoteRepository;"
        "RemoteRepository(Path(sys.argv[1]), sys.argv[2]).open('ranker', verify=True)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(root), url],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )


def test_a_version_published_on_one_machine_is_opened_on_another(url: str, tmp_path: Path) -> None:
    trainer, lane = remote(tmp_path / "trainer", url), remote(tmp_path / "lane", url)
    made = publish(trainer)
    assert lane.names() == ["ranker"]
    assert lane.versions("ranker") == [made.manifest.version]
    assert lane.held("ranker") == []  # to choose a version costs its manifest alone
    assert lane.manifest("ranker", made.manifest.version) == made.manifest
    assert same(lane.open("ranker", verify=True), made)
    assert lane.held("ranker") == [made.manifest.version]


def test_numbers_are_given_out_once_for_all_machines(url: str, tmp_path: Path) -> None:
    one, other = remote(tmp_path / "one", url), remote(tmp_path / "other", url)
    given = [repository.reserve("ranker") for repository in (one, other, one, other)]
    assert given == ["1", "2", "3", "4"]


def test_a_version_whose_manifest_is_not_there_yet_is_not_seen(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/shared"
    made = publish(remote(tmp_path / "trainer", url))
    manifest = tmp_path / "shared" / "ranker" / "1" / "manifest.json"
    hidden = manifest.rename(manifest.with_name(".manifest.json.half"))  # as `publish` leaves it until its last step
    lane = remote(tmp_path / "lane", url)
    assert lane.versions("ranker") == []
    with pytest.raises(NotFound, match="no version '1'"):
        lane.fetch("ranker", "1")
    hidden.rename(manifest)
    lane.refresh()
    assert same(lane.open("ranker", "1"), made)


def test_what_cannot_be_written_behind_the_url_appears_nowhere(tmp_path: Path) -> None:
    trainer = remote(tmp_path / "trainer", f"file://{tmp_path}/shared")
    publish(trainer)
    folder = tmp_path / "shared" / "ranker" / "2"
    folder.write_text("in the way")
    with pytest.raises(NotReady, match="cannot write ranker/2"):
        publish(trainer)
    assert trainer.versions("ranker") == ["1"]
    folder.unlink()
    assert publish(trainer).manifest.version == "3"
    assert remote(tmp_path / "lane", trainer.url).versions("ranker") == ["1", "3"]


@pytest.mark.parametrize("harm", [b"\0" * 7, b""])
def test_a_damaged_file_is_refused_and_fetched_once_it_is_whole(harm: bytes, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/shared"
    made = publish(remote(tmp_path / "trainer", url))
    network = tmp_path / "shared" / "ranker" / "1" / "dense.onnx"
    whole = network.read_bytes()
    network.write_bytes(harm)
    lane = remote(tmp_path / "lane", url)
    with pytest.raises(BundleError, match=r"dense\.onnx does not match its SHA-256"):
        lane.open("ranker", "1")
    assert lane.held("ranker") == []
    network.write_bytes(whole)
    assert same(lane.open("ranker", "1"), made)


def test_a_manifest_that_names_files_outside_is_refused(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/shared"
    publish(remote(tmp_path / "trainer", url))
    manifest = tmp_path / "shared" / "ranker" / "1" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("dense.onnx", "../../../dense.onnx"))
    with pytest.raises(BundleError, match="leaves the bundle's directory"):
        remote(tmp_path / "lane", url).fetch("ranker", "1")
    assert not (tmp_path / "dense.onnx").exists()


@pytest.mark.parametrize(
    "first", [b"", b'{"name": "ranker", ', b"[]", b"{}", b"\xff\xfe", b"of another version", b"with another digest"]
)
@pytest.mark.parametrize("noted", [False, True])
def test_a_manifest_that_is_made_right_later_is_read_again(first: bytes, noted: bool, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/shared"
    trainer = remote(tmp_path / "trainer", url)
    publish(trainer)
    made = publish(trainer)
    manifest = tmp_path / "shared" / "ranker" / "2" / "manifest.json"
    whole = manifest.read_bytes()
    if first == b"of another version":
        first = (tmp_path / "shared" / "ranker" / "1" / "manifest.json").read_bytes()
    elif first == b"with another digest":
        first = whole.replace(made.manifest.files["dense.onnx"].sha256.encode(), b"0" * 64)
    manifest.write_bytes(first)
    if noted:  # by a Baton that took whatever was there
        note = tmp_path / "lane" / "ranker" / ".remote" / "2.json"
        note.parent.mkdir(parents=True)
        note.write_bytes(first)
    lane = remote(tmp_path / "lane", url)
    assert lane.open("ranker", "1").manifest.version == "1"
    with pytest.raises(BundleError):
        lane.open("ranker", "2")
    manifest.write_bytes(whole)
    lane.refresh()
    assert lane.versions("ranker") == ["1", "2"]
    assert same(lane.open("ranker"), made)


def test_a_bundle_that_cannot_be_listed_holds_no_other_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path / 'shared'}"
    for name in ("first", "other"):
        publish(remote(tmp_path / "trainer", url), name)
    lane = remote(tmp_path / "lane", url)
    listing = lane._fs.ls

    def ls(place: str, **options: object) -> object:
        if place.endswith("/first"):
            raise PermissionError(place)
        return listing(place, **options)

    monkeypatch.setattr(lane._fs, "ls", ls)
    assert lane.versions("other") == ["1"]
    assert "cannot list first" in caplog.text


@pytest.mark.parametrize("name", ["manifest.json", "dense.onnx"])
def test_a_pipe_is_not_waited_for_and_holds_no_other_version_up(name: str, tmp_path: Path) -> None:
    publisher = Repository(tmp_path / "shared")
    publish(publisher)
    piped = publish(publisher).path / name
    piped.unlink()
    os.mkfifo(piped)
    here = remote(tmp_path / "here", (tmp_path / "shared").as_uri())
    with contextlib.suppress(OSError), open(os.open(piped, os.O_RDWR | os.O_NONBLOCK), "wb") as writer:
        end = threading.Timer(5.0, writer.close)  # so that a reader which waits fails here and does not hang
        end.start()
        with pytest.raises(BundleError, match="no regular file"):
            here.open("ranker", "2")
        assert end.is_alive(), "it waited"
        end.cancel()
    assert here.open("ranker", "1").manifest.version == "1"


def test_a_full_disk_is_told_before_anything_is_fetched(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/shared"
    publish(remote(tmp_path / "trainer", url))
    lane = remote(tmp_path / "lane", url, reserve_bytes=1 << 60)
    with pytest.raises(NotReady, match=r"version 1 of bundle ranker needs .* make room"):
        lane.open("ranker", "1")
    assert not list((tmp_path / "lane" / "ranker").rglob("*.onnx"))


def test_processes_of_a_machine_fetch_every_file_once(server: Served, tmp_path: Path) -> None:
    made = publish(Repository(tmp_path / "shared"))
    children = [fetching(tmp_path / "lane", server.url) for _ in range(3)]
    assert [child.wait(120) for child in children] == [0, 0, 0]
    asked = {path: count for path, count in server.asked.items() if path.startswith("/ranker/1/")}
    assert asked == {f"/ranker/1/{name}": 1 for name in ("manifest.json", *made.manifest.files)}
    assert same(Repository(tmp_path / "lane").open("ranker", "1"), made)


def test_a_fetch_that_was_killed_is_gone_on_with(server: Served, tmp_path: Path) -> None:
    made = publish(Repository(tmp_path / "shared"))
    last = list(made.manifest.files)[-1]
    server.held = {last}
    child = fetching(tmp_path / "lane", server.url)
    assert server.holding.wait(120)
    child.send_signal(signal.SIGKILL)
    child.wait(20)
    lane = remote(tmp_path / "lane", server.url)
    assert lane.held("ranker") == []
    server.held = set()
    server.release.set()
    before = Counter(server.asked)
    assert same(lane.open("ranker", "1", verify=True), made)
    fetched = server.asked - before
    assert [path for path in fetched if path.startswith("/ranker/1/")] == [f"/ranker/1/{last}"]


def test_what_is_pruned_goes_everywhere(url: str, tmp_path: Path) -> None:
    trainer, lane = remote(tmp_path / "trainer", url), remote(tmp_path / "lane", url)
    for _ in range(4):
        publish(trainer)
    for version in ("1", "2"):
        lane.fetch("ranker", version)
    assert trainer.prune("ranker", {"2", "4"}, unfinished_before=0.0) == ["1", "3"]
    lane.refresh()
    for repository in (trainer, lane, remote(tmp_path / "new", url)):
        assert repository.versions("ranker") == ["2", "4"]
    assert lane.held("ranker") == ["2"]
    assert trainer.reserve("ranker") == "5"


def test_a_url_that_does_not_answer_leaves_what_is_known(
    server: Served, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(Repository(tmp_path / "shared"))
    lane = remote(tmp_path / "lane", server.url)
    lane.open("ranker", "1")
    server.shutdown()
    server.server_close()
    lane.refresh()
    lane.refresh()
    assert lane.versions("ranker") == ["1"]
    assert lane.open("ranker").manifest.version == "1"
    assert [r.message for r in caplog.records if "going on with what is known" in r.message][1:] == []
    assert "cannot list" in caplog.text


def test_a_url_to_read_from_alone_refuses_a_publisher(server: Served, tmp_path: Path) -> None:
    publish(Repository(tmp_path / "shared"))
    with pytest.raises(NotReady, match="cannot reserve a version of ranker"):
        publish(remote(tmp_path / "trainer", server.url))


def test_an_unknown_scheme_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="nosuch"):
        RemoteRepository(tmp_path, "nosuch://bucket")


def test_what_is_longer_than_it_says_is_not_fetched_to_its_end(tmp_path: Path) -> None:
    """A manifest without an end, a file that goes on after its bytes, and numbers that are none."""
    url = f"file://{tmp_path}/shared"
    bundle = publish(Repository(tmp_path / "shared"))
    long = bundle.path / "dense.onnx"
    with long.open("ab") as file:
        file.truncate(1 << 40)  # sparse; copied to its end it would fill the disk
    for name in ("007", "\u0663", "1" * 40):
        (tmp_path / "shared" / "ranker" / name).mkdir()
    (tmp_path / "shared" / "ranker" / "2").mkdir()
    with (tmp_path / "shared" / "ranker" / "2" / "manifest.json").open("wb") as file:
        file.truncate(1 << 40)
    (tmp_path / "shared" / "bad name").mkdir()
    repository = remote(tmp_path / "here", url)
    assert repository.versions("ranker") == ["1"]
    assert repository.names() == ["ranker"]
    with pytest.raises(BundleError, match=r"at most 8,388,608 are read"):
        repository.manifest("ranker", "2")
    with pytest.raises(BundleError, match=r"dense\.onnx does not match"):
        repository.open("ranker", "1")
    left = sum(path.stat().st_size for path in (tmp_path / "here").rglob("*") if path.is_file())
    assert left < 16 << 20
